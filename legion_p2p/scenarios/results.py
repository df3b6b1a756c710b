"""A simulation into a folder: trace.jsonl and the graph while it runs, then summary.json, the report and its pictures."""

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from legion_p2p.scenarios.graph import GRAPH_FILE, GraphWriter
from legion_p2p.scenarios.report import draw_pictures, report_html
from legion_p2p.scenarios.scenario import Scenario
from legion_p2p.scenarios.scenario_files import scenario_toml
from legion_p2p.scenarios.simulation import OnSample, simulate
from legion_p2p.scenarios.summary import SimOutcome, summary_of


def simulate_into(
    folder: Path, name: str, scenario: Scenario, seed: int, *, on_sample: OnSample, draws: bool = True, records: bool = True
) -> dict[str, Any]:
    """Run a scenario, leave everything in `folder`, and return the summary.

    `draws`: the report and its pictures as well. `records`: the graph as well, unless liars push what they did not train.
    """
    (folder / "scenario.toml").write_text(scenario_toml(scenario), encoding="utf-8")
    records = records and all(group.attack == "none" for group in scenario.peers)
    with contextlib.ExitStack() as files:
        trace = files.enter_context((folder / "trace.jsonl").open("wb"))
        graph = files.enter_context(GraphWriter(folder / GRAPH_FILE)).write if records else None
        outcome = simulate(scenario, seed, write=trace.write, on_sample=on_sample, graph=graph)
    return write_results(folder, name, scenario, seed, outcome, draws=draws)


def write_results(
    folder: Path, name: str, scenario: Scenario, seed: int, outcome: SimOutcome, *, draws: bool = True
) -> dict[str, Any]:
    """Everything but the trace; the summary."""
    summary = summary_of(name, seed, scenario, outcome)
    (folder / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=1) + b"\n")
    if draws:
        pictures = draw_pictures(scenario, outcome, folder)
        (folder / "report.html").write_text(report_html(scenario, summary, outcome, pictures), encoding="utf-8")
    return summary
