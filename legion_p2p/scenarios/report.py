"""report.html of a simulation: one file that needs no network, with its pictures inside."""

import base64
import html
import io
import math
from pathlib import Path
from typing import Any

from legion_p2p.observe import human
from legion_p2p.scenarios.pictures import Picture, drawn, pictures_of
from legion_p2p.scenarios.scenario import Scenario
from legion_p2p.scenarios.scenario_files import scenario_toml
from legion_p2p.scenarios.summary import SimOutcome

MAX_FAULTS_LISTED = 200

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem }
p.about { color: #555; margin-top: .2rem } img { width: 100%; height: auto }
table { border-collapse: collapse } td, th { padding: .15rem .9rem .15rem 0; text-align: left; vertical-align: top }
th { font-weight: 600 } td.n { text-align: right; font-variant-numeric: tabular-nums }
.bad { color: #a3201b } .good { color: #2f7a2a } code, pre { font: 13px/1.45 ui-monospace, monospace }
pre { background: #f5f5f3; padding: .8rem; overflow-x: auto } details { margin: 1rem 0 } summary { cursor: pointer }
.facts { display: flex; flex-wrap: wrap; gap: 0 3rem }
"""


def draw_pictures(scenario: Scenario, outcome: SimOutcome, folder: Path) -> list[tuple[Picture, bytes]]:
    """Each picture as PNG in the folder, and as SVG for the report."""
    made = []
    for picture in pictures_of(outcome, scenario.duration_s):
        with drawn(picture) as figure:
            figure.savefig(folder / f"{picture.name}.png")
            svg = io.BytesIO()
            figure.savefig(svg, format="svg", metadata={"Date": None})
            made.append((picture, svg.getvalue()))
    return made


def report_html(scenario: Scenario, summary: dict[str, Any], outcome: SimOutcome, pictures: list[tuple[Picture, bytes]]) -> str:
    """The page."""
    title = f"{summary['scenario']}, seed {summary['seed']}"
    parts = [
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">', f"<title>{_text(title)}: a simulated swarm</title>",
        '<meta name="viewport" content="width=device-width, initial-scale=1">', f"<style>{_STYLE}</style></head><body>",
        f"<h1>{_text(title)}</h1>", f'<p class="about">{_text(scenario.about)}</p>', _verdict(summary),
        f'<div class="facts">{_table(_facts(summary))}{_table(_costs(summary))}</div>',
    ]  # fmt: skip
    for picture, svg in pictures:
        data = base64.b64encode(svg).decode()
        alt = _text(f"{picture.title}. {picture.says}")
        parts.append(f'<h2>{_text(picture.title)}</h2><img alt="{alt}" src="data:image/svg+xml;base64,{data}">')
    parts += [_faults(outcome), _events(summary)]
    parts.append(f"<details><summary>The scenario</summary><pre>{_text(scenario_toml(scenario))}</pre></details>")
    parts.append(f"<p>hash of the trace: <code>{summary['hash']}</code></p></body></html>")
    return "\n".join(part for part in parts if part) + "\n"


def _verdict(summary: dict[str, Any]) -> str:
    if summary["violations"]:
        rows = "".join(
            f"<li>{one['at_s']:g} s: <b>{_text(one['kind'])}</b>: {_text(one['text'])}</li>" for one in summary["violations"]
        )
        return f'<p class="bad">What must never happen did:</p><ul class="bad">{rows}</ul>'
    agreed = " At the end all held the same." if summary["agreed"] else ""
    return f'<p class="good">No invariant was broken.{agreed}</p>'


def _facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    loss = "none"
    if summary["loss_last"] is not None:
        loss = f"{human.loss_text(summary['loss_first'])} → {human.loss_text(summary['loss_last'])}"
    return [
        ("peers in all", human.whole_text(summary["n_peers"])),
        ("in the run at the end", human.whole_text(summary["n_at_the_end"])),
        ("virtual time", human.seconds_text(summary["virtual_s"])),
        ("loss", loss),
        ("local steps", human.whole_text(summary["steps"])),
        ("of them in an update", human.percent_text(summary["goodput"])),
        ("versions of a shard", f"{summary['updates_per_shard']:.0f}, of {summary['n_shards']} shards"),
        ("faults", human.whole_text(summary["n_faults"])),
        ("deaths reported wrongly", human.whole_text(summary["n_dead_wrongly"])),
    ]


def _costs(summary: dict[str, Any]) -> list[tuple[str, str]]:
    def seconds(value: float | None) -> str:
        return "none" if value is None else human.duration_text(value)

    return [
        ("sent by a peer", f"{human.bytes_text(summary['sent_bytes_per_peer_and_s'])}/s"),
        ("gossip that it hears", f"{human.bytes_text(summary['gossip_bytes_per_peer_and_s'])}/s"),
        ("joining, median", seconds(summary["join_median_s"])),
        ("joining, longest", seconds(summary["join_longest_s"])),
        ("wall time", human.seconds_text(summary["wall_s"])),
        ("speed", f"{summary['times_real_time']:.1f} times real time"),
        ("CPU of a peer", f"{summary['cpu_ms_per_peer_and_s']:.2f} ms a virtual second"),
    ]


def _table(rows: list[tuple[str, str]]) -> str:
    return (
        "<table>"
        + "".join(f'<tr><td>{_text(name)}</td><td class="n">{_text(value)}</td></tr>' for name, value in rows)
        + "</table>"
    )


def _faults(outcome: SimOutcome) -> str:
    faults = outcome.record.faults
    if not faults:
        return ""
    rows = [
        f"<tr><td class=n>{fault['at_s']:g}</td><td>{_text(fault['kind'])}</td><td>{_text(', '.join(fault['peers'][:8]))}"
        f"{' ...' * (len(fault['peers']) > 8)}</td><td class=n>{_lasting(fault['for_s'])}</td></tr>"
        for fault in faults[:MAX_FAULTS_LISTED]
    ]
    more = f"<p>and {len(faults) - MAX_FAULTS_LISTED} more</p>" if len(faults) > MAX_FAULTS_LISTED else ""
    head = "<tr><th>at (s)</th><th>what</th><th>peers</th><th>for (s)</th></tr>"
    return f"<details><summary>{len(faults)} faults</summary><table>{head}{''.join(rows)}</table>{more}</details>"


def _lasting(for_s: float) -> str:
    return "ever" if not for_s or not math.isfinite(for_s) else f"{for_s:g}"


def _events(summary: dict[str, Any]) -> str:
    rows = [(name, human.whole_text(count)) for name, count in summary["events"].items()]
    return f"<details><summary>Events of all peers</summary>{_table(rows)}</details>"


def _text(value: str) -> str:
    return html.escape(value)
