"""What a run would cost its peers, as `legion-ctl plan` prints it."""

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from legion_p2p.dashboard.fit import Column, fit_table, line
from legion_p2p.observe import human

if TYPE_CHECKING:
    from legion_p2p.train.sizing import Forecast, RoundCost

NOT_COUNTED = "Not included: announcements, and the layers below the messages (Noise, yamux, TCP, IP: some per cent)."
MAX_TEXT_CHARS = 100


def render_forecast(made: "Forecast", model: str, *, width: int = 80, ascii_only: bool = False) -> RenderableType:
    """A report of `width` characters; `model` is what the user calls it."""
    parts: list[RenderableType] = [*_facts(made, model, width), Text("")]
    if made.adapted != made.initial:
        parts += [line("as the run begins", width=width, style="bold"), _table(made.initial, width, ascii_only), Text("")]
        parts.append(line("as peers adapt, within what the run allows", width=width, style="bold"))
    parts += [_table(made.adapted, width, ascii_only), Text("")]
    for warning in made.warnings:
        parts += _wrapped(f"! {warning}", width, "yellow", indent="  ")
    parts += _wrapped(NOT_COUNTED, width, "dim")
    return Group(*parts)


def _facts(made: "Forecast", model: str, width: int) -> list[Text]:
    link = made.connection
    joining_s = 8 * made.model_bytes / link.download_bps if link.download_bps else 0.0
    facts = [
        ("model", f"{human.clean(model)}: {human.count_text(made.n_params)} parameters in {made.n_shards} shards "
                  f"of {human.whole_text(made.shard_elements)}"),
        ("peers", f"{human.whole_text(made.n_members)}, each with {human.rate_text(link.upload_bps)} up, "
                  f"{human.rate_text(link.download_bps)} down, {human.duration_text(link.rtt_s)} round trip"),
        ("step", f"{human.whole_text(made.tokens_per_step)} tokens in {human.duration_text(made.step_s)}"),
        ("memory", f"about {human.bytes_text(made.memory_bytes)} for each, in fp32"),
        ("joining", f"fetches {human.bytes_text(made.model_bytes)}, which takes {human.duration_text(joining_s)}"),
        ("announcing", f"{human.bytes_text(made.announcement_bytes)} each; to hear all others takes "
                       f"{human.rate_text(made.announcements_bps)} or more"),
    ]  # fmt: skip
    lines: list[Text] = []
    for name, value in facts:
        first, *more = textwrap.wrap(value, max(20, width - 12))
        lines += [Text.assemble((f"{name:<12}", "bold"), first), *(Text(" " * 12 + text) for text in more)]
    return lines


def _table(costs: Sequence["RoundCost"], width: int, ascii_only: bool) -> Table:
    """A row for each figure; a column for each of the three peers."""
    names = (("owns fewest", 2), ("on average", 0), ("owns most", 1))
    rows = list(zip(*map(_cells, costs), strict=True))
    columns = [
        Column("one round of a peer", lambda row: row[0][0], 0, right=False, max_chars=40),
        *(Column(name, _figure_of(i), rank, min_chars=12, max_chars=20) for i, (name, rank) in enumerate(names)),
    ]
    return fit_table(columns, rows, width, ascii_only=ascii_only)


def _figure_of(peer_idx: int) -> Callable[[Sequence[tuple[str, str]]], str]:
    return lambda row: row[peer_idx][1]


def _cells(cost: "RoundCost") -> list[tuple[str, str]]:
    bytes_text, duration_text, percent_text = human.bytes_text, human.duration_text, human.percent_text
    return [
        ("shards owned", f"{cost.owned_shards:.3g}"),
        ("pushes as", cost.push_codec),
        ("updates as", cost.update_codec),
        ("local steps", human.whole_text(cost.local_steps)),
        ("sent", bytes_text(cost.traffic.sent_bytes)),
        ("received", bytes_text(cost.traffic.received_bytes)),
        ("sent per token trained", bytes_text(cost.sent_bytes_per_token)),
        ("computing takes", duration_text(cost.compute_s)),
        ("sync takes", duration_text(cost.sync_s)),
        ("share of time if waited for", percent_text(cost.sync_share)),
        ("share of time not overlapped", percent_text(cost.exposed_share)),
        ("keeps up", "yes" if cost.keeps_up else "no"),
    ]


def _wrapped(text: str, width: int, style: str, indent: str = "") -> list[Text]:
    width = min(max(20, width), MAX_TEXT_CHARS)
    return [Text(piece, style=style, no_wrap=True) for piece in textwrap.wrap(text, width, subsequent_indent=indent)]
