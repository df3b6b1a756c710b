"""legion-sim run --until-violation: what was found, and where the smallest scenario that shows it is."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from legion_p2p.cli.failures import DONE, FAILED
from legion_p2p.cli.output import print_json

if TYPE_CHECKING:
    from legion_p2p.scenarios.scenario import Scenario

SMALLEST, FOUND = "smallest.toml", "violations.jsonl"


def list_into(
    folder: Path, name: str, scenario: "Scenario", seeds: Sequence[int], n_jobs: int, *, quiet: bool, json: bool
) -> int:
    """Look at all seeds, and list those with a violation. The exit code is 1 if there is one."""
    from legion_p2p.scenarios.search import violations_in

    tell = _teller(quiet or json)
    kinds: Counter[str] = Counter()
    with (folder / FOUND).open("w", encoding="utf-8") as file:
        for seed, found in violations_in(scenario, seeds, n_jobs=n_jobs, tell=tell):
            kinds[found["kind"]] += 1
            print_json({"seed": seed, **found}, file)
            file.flush()
    if json:
        print_json({"scenario": name, "seeds": len(seeds), "found": dict(kinds)})
    elif kinds:
        told = ", ".join(f"{kind} in {n}" for kind, n in kinds.most_common())
        print(f"{name}: {kinds.total()} of {len(seeds)} seeds, {seeds[0]} to {seeds[-1]}, violate something: {told}")
        print(f"  {folder / FOUND} has each; --until-violation with --seed N --seeds 1 makes the scenario of one smaller")
    else:
        print(f"{name}: no violation in {len(seeds)} seeds, {seeds[0]} to {seeds[-1]}")
    return FAILED if kinds else DONE


def _teller(quiet: bool) -> Callable[[str], None]:
    """Says what happens on stderr."""

    def tell(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr, flush=True)

    return tell


def search_into(
    folder: Path, name: str, scenario: "Scenario", seeds: Sequence[int], n_jobs: int, *, quiet: bool, json: bool
) -> int:
    """Look for a violation. The exit code is 1 if there is one."""
    from legion_p2p.scenarios.scenario_files import scenario_toml
    from legion_p2p.scenarios.search import search

    found = search(scenario, seeds, n_jobs=n_jobs, tell=_teller(quiet or json))
    if found is None:
        if json:
            return print_json({"scenario": name, "seeds": len(seeds), "found": None})
        print(f"{name}: no violation in {len(seeds)} seeds, {seeds[0]} to {seeds[-1]}")
        return DONE
    path = folder / SMALLEST
    path.write_text(scenario_toml(found.scenario), encoding="utf-8")
    n_peers, n_faults = len(found.scenario.peers), len(found.scenario.faults)
    if json:
        print_json({
            "scenario": name, "seeds": len(seeds), "found": found.kind, "seed": found.seed, "text": found.text,
            "at_s": found.at_s, "n_peers": n_peers, "n_faults": n_faults, "smallest": str(path),
        })  # fmt: skip
    else:
        print(f"{name}: {found.kind} with seed {found.seed} at {found.at_s:g} s: {found.text}")
        print(f"  the smallest scenario that shows it has {n_peers} peers and {n_faults} faults ({found.n_tries} were tried)")
        print(f"  legion-sim run {path} --seed {found.seed}")
    return FAILED
