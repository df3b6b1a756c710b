"""legion-sim sweep: one scenario with other values for some fields, compared."""

from typing import Annotated, Any

from cyclopts import Parameter

from legion_p2p.cli.common import at_least
from legion_p2p.cli.failures import DONE
from legion_p2p.cli.new_folder import new_folder
from legion_p2p.cli.output import print_json, print_table, progress_bar, table_of
from legion_p2p.cli.sim_options import AsJsonLine, ScenarioName, chosen_scenario, value_of_text
from legion_p2p.errors import UsageError

MAX_COMBINATIONS = 1000  # each is a simulation for every seed


def sweep(  # noqa: PLR0913 (each is an option)
    scenario: ScenarioName,
    grid: Annotated[tuple[str, ...], Parameter(metavar="FIELD=VALUE,VALUE...")],
    /,
    *,
    seeds: Annotated[int, Parameter(validator=at_least(1))] = 1,
    jobs: Annotated[int, Parameter(validator=at_least(1))] = 1,
    out: Annotated[str, Parameter(metavar="FOLDER")] = "",
    peers: Annotated[int | None, Parameter(validator=at_least(1))] = None,
    minutes: Annotated[float | None, Parameter(validator=at_least(0.01))] = None,
    quiet: Annotated[bool, Parameter(negative=())] = False,
    json: AsJsonLine = False,
) -> int:
    """Simulate a scenario with all combinations of these values, and compare the results.

    Example: legion-sim sweep good rounds.local_steps=5,10,20 peers.home.count=10,20 --seeds 3 --jobs 2

    Parameters
    ----------
    scenario
        Name of one that comes with the package, or a TOML file.
    grid
        Fields of the scenario, each with the values to try.
    seeds
        Simulations of each combination, with seeds 0, 1, ...
    jobs
        Processes that simulate at the same time.
    out
        New folder for sweep.json. [default: legion-out/sweep-NAME-1, -2, ...]
    peers
        Scale the groups, in their proportions, to about this many peers in all.
    minutes
        Virtual minutes: everything that happens is squeezed into them.
    quiet
        Show no progress.
    json
        Print the comparison as JSON, on one line.
    """
    from legion_p2p.scenarios.sweep import COMPARED, combinations
    from legion_p2p.scenarios.sweep import sweep as sweep_all

    chosen = combinations(dict(map(values_of, grid)))
    if len(chosen) > MAX_COMBINATIONS:
        raise UsageError(f"{len(chosen)} combinations, at most {MAX_COMBINATIONS}")
    scenarios = []
    for changes in chosen:
        said = tuple(f"{field}={_plain(value)}" for field, value in changes.items())
        name, made = chosen_scenario(scenario, said, peers=peers, minutes=minutes)
        scenarios.append((changes, made))
    folder = new_folder(out, f"sweep-{name}")
    with progress_bar(name, len(scenarios) * seeds, quiet or json) as advance:
        rows = list(sweep_all(name, scenarios, seeds, n_jobs=jobs, on_done=lambda: advance(1)))
    with (folder / "sweep.json").open("w", encoding="utf-8") as file:
        print_json(rows, file)
    if json:
        return print_json(rows)
    table = table_of(*dict(map(values_of, grid)), *(field.replace("_", " ") for field in COMPARED))
    for row in rows:
        figures = ["-" if (value := row.figures[field]) is None else f"{value:.4g}" for field in COMPARED]
        if row.loss_spread is not None:
            figures[0] += f" ± {row.loss_spread:.2g}"
        table.add_row(*map(str, row.chosen.values()), *figures)
    print_table(table)
    print(f"{folder}/sweep.json has the same")
    return DONE


def values_of(text: str) -> tuple[str, list[Any]]:
    """FIELD=VALUE,VALUE: the field and its values. Raises: UsageError."""
    field, equals, values = text.partition("=")
    if not equals or not field or not values:
        raise UsageError(f"{text!r}: the form is FIELD=VALUE,VALUE, as in rounds.local_steps=5,10")
    return field, [value_of_text(value) for value in values.split(",")]


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
