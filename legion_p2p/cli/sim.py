"""legion-sim: whole swarms of the real engine in virtual time, from a scenario.

This module reads the options and shows progress; legion_p2p.scenarios simulates. torch is imported when a simulation begins.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from legion_p2p.cli.common import at_least, make_app
from legion_p2p.cli.failures import DONE, FAILED
from legion_p2p.cli.new_folder import new_folder
from legion_p2p.cli.output import print_json, print_table, table_of
from legion_p2p.cli.running import run_and_exit
from legion_p2p.cli.sim_dht import dht
from legion_p2p.cli.sim_options import AsJsonLine, Changes, ScenarioName, chosen_scenario
from legion_p2p.cli.sim_sweep import sweep
from legion_p2p.cli.sim_train import train

if TYPE_CHECKING:
    from legion_p2p.scenarios.trace import Sample

REDRAW_S = 0.25  # of wall time, between two looks at the progress

HELP = """Simulate whole swarms: the real engine in virtual time, over emulated links, with churn and faults.

  legion-sim list
  legion-sim run churn --peers 20
  legion-sim run my-scenario.toml --seed 3 --out my-results
  legion-sim sweep good rounds.local_steps=5,10,20
  legion-sim train legion-out/sim-churn-1/graph.jsonl.gz --set task.kind=text
  legion-sim run faults --until-violation --seeds 100"""

app = make_app("legion-sim", HELP)


@app.command(name="list")
def list_(*, json: AsJsonLine = False) -> int:
    """List the scenarios that come with the package.

    Parameters
    ----------
    json
        Print the list as JSON, on one line.
    """
    from legion_p2p.scenarios.scenario_files import read_scenario, ready_names

    found = [(name, read_scenario(name)[1]) for name in ready_names()]
    if json:
        return print_json([
            {"name": name, "about": scenario.about, "peers": sum(group.count for group in scenario.peers),
             "duration_s": scenario.duration_s}
            for name, scenario in found
        ])  # fmt: skip
    table = table_of("scenario", "peers", "minutes", "what it shows")
    for name, scenario in found:
        table.add_row(name, str(sum(group.count for group in scenario.peers)), f"{scenario.duration_s / 60:g}", scenario.about)
    print_table(table)
    return DONE


@app.command
def show(scenario: ScenarioName, /) -> int:
    """Print a scenario as a file, as a start for one of your own.

    Example: legion-sim show churn > mine.toml

    Parameters
    ----------
    scenario
        Name of one that comes with the package, or a TOML file.
    """
    from legion_p2p.scenarios.scenario_files import path_of_ready, read_scenario, ready_names, scenario_toml

    if scenario in ready_names():
        print(path_of_ready(scenario).read_text(encoding="utf-8"), end="")
    else:
        print(scenario_toml(read_scenario(scenario)[1]), end="")
    return DONE


@app.command
def fields() -> int:
    """Print what a scenario file may contain, as Markdown: every field, the allowed values, and the meaning."""
    from legion_p2p.scenarios.reference import reference_lines

    print("\n".join(reference_lines()))
    return DONE


@app.command
def run(  # noqa: PLR0913 (each is an option)
    scenario: ScenarioName,
    /,
    *,
    seed: Annotated[int, Parameter(validator=at_least(0))] = 0,
    out: Annotated[str, Parameter(metavar="FOLDER")] = "",
    peers: Annotated[int | None, Parameter(validator=at_least(1))] = None,
    minutes: Annotated[float | None, Parameter(validator=at_least(0.01))] = None,
    changes: Changes = (),
    infra: Annotated[bool, Parameter(negative=())] = False,
    report: bool = True,
    graph: bool = True,
    until_violation: Annotated[bool, Parameter(negative=())] = False,
    all_seeds: Annotated[bool, Parameter(negative=())] = False,
    seeds: Annotated[int, Parameter(validator=at_least(1))] = 100,
    jobs: Annotated[int, Parameter(validator=at_least(1))] = 1,
    quiet: Annotated[bool, Parameter(negative=())] = False,
    json: AsJsonLine = False,
) -> int:
    """Simulate a scenario and write a report.

    Example: legion-sim run churn --peers 20 --minutes 30

    Parameters
    ----------
    scenario
        Name of one that comes with the package, or a TOML file.
    seed
        Of everything that is random. The same seed gives the same trace, bit for bit.
    out
        New folder for report.html, pictures, trace.jsonl, summary.json and the graph. [default: legion-out/sim-NAME-1, -2, ...]
    peers
        Scale the groups, in their proportions, to about this many peers in all.
    minutes
        Virtual minutes: everything that happens is squeezed into them.
    changes
        Other values for fields of the scenario, as in rounds.local_steps=20 or peers.home.count=5.
    infra
        Train nothing: run membership, ownership and empty rounds only, to see the cost of the engine alone.
    report
        Draw the report and its pictures.
    graph
        Leave the graph of who averaged what when, for `legion-sim train`. Of liars there is none.
    until_violation
        Try one seed after another, from --seed on, until an invariant is violated; then shrink the scenario, and write the
        smallest one that shows the violation.
    all_seeds
        Try all of --seeds, whatever is found, and list the violations in violations.jsonl.
    seeds
        With --until-violation or --all-seeds: how many.
    jobs
        With these as well: processes that simulate at the same time.
    quiet
        Show no progress.
    json
        Print only the summary, as a line of JSON.
    """
    from legion_p2p.scenarios.results import simulate_into

    name, chosen = chosen_scenario(scenario, changes, infra, peers, minutes)
    folder = new_folder(out, f"sim-{name}")
    if until_violation or all_seeds:
        from legion_p2p.cli.sim_search import list_into, search_into

        look = list_into if all_seeds else search_into
        return look(folder, name, chosen, range(seed, seed + seeds), jobs, quiet=quiet, json=json)
    with progress(name, chosen.duration_s, quiet or json) as on_sample:
        summary = simulate_into(folder, name, chosen, seed, on_sample=on_sample, draws=report, records=graph)
    if json:
        print_json(summary)
    else:
        print("\n".join(format_summary(summary, folder)))
    return FAILED if summary["violations"] else DONE


@contextlib.contextmanager
def progress(name: str, duration_s: float, quiet: bool) -> "Iterator[Callable[[Sample], None]]":
    """A live line on stderr with the progress and the time left, if stderr is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda sample: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeRemainingColumn(),
                   console=console, transient=True, auto_refresh=False)  # fmt: skip
    began, drawn = time.monotonic(), 0.0
    with bar:
        task = bar.add_task(name, total=duration_s, done="begins")

        def on_sample(sample: "Sample") -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - drawn < REDRAW_S:
                return
            drawn = now
            bar.update(task, completed=min(sample.at_s, duration_s), done=_progress_text(sample, now - began))
            bar.refresh()

        yield on_sample


def _progress_text(sample: "Sample", wall_s: float) -> str:
    from legion_p2p.observe.human import loss_text, seconds_text

    loss = "" if sample.loss is None else f", loss {loss_text(sample.loss)}"
    return f"{seconds_text(sample.at_s)} at {sample.at_s / max(wall_s, 1e-9):.1f} times real time, {sample.n_joined} peers{loss}"


def format_summary(summary: dict[str, Any], folder: Path) -> list[str]:
    """The result, in words."""
    from legion_p2p.observe import human

    loss = ""
    if summary["loss_last"] is not None:
        loss = f"loss {human.loss_text(summary['loss_first'])} -> {human.loss_text(summary['loss_last'])}, "
    lines = [
        f"{summary['scenario']}, seed {summary['seed']}: {human.whole_text(summary['n_peers'])} peers, "
        f"{human.seconds_text(summary['virtual_s'])} in {human.seconds_text(summary['wall_s'])} "
        f"({summary['times_real_time']:.1f} times real time, {summary['cpu_ms_per_peer_and_s']:.1f} ms of CPU a peer and second)",
        f"  {loss}{human.whole_text(summary['steps'])} steps, {human.percent_text(summary['goodput'])} of them in an update, "
        f"{summary['updates_per_shard']:.0f} versions of each of {summary['n_shards']} shards",
        f"  sent {human.bytes_text(summary['sent_bytes_per_peer_and_s'])} a peer and second, and heard "
        f"{human.bytes_text(summary['gossip_bytes_per_peer_and_s'])} of gossip",
    ]
    if summary["join_median_s"] is not None:
        lines.append(
            f"  joining took {human.seconds_text(summary['join_median_s'])} at the median, "
            f"{human.seconds_text(summary['join_longest_s'])} at most"
        )
    if summary["n_faults"] or summary["n_dead_wrongly"]:
        lines.append(f"  {summary['n_faults']} faults; {summary['n_dead_wrongly']} false reports of a death")
    lines += [f"  VIOLATION at {one['at_s']:g} s: {one['kind']}: {human.clean(one['text'])}" for one in summary["violations"]]
    if summary["agreed"]:
        lines.append("  at the end all peers held the same parameters")
    first = "report.html" if (folder / "report.html").exists() else "summary.json"
    return [*lines, f"  hash {summary['hash']}", f"  {folder}{os.sep}{first} and the rest are there"]


app.command(sweep)
app.command(train)
app.command(dht)


def main() -> None:
    """The console script."""
    run_and_exit(app)


if __name__ == "__main__":
    main()
