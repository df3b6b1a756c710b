"""A page of a run, ended or not, made from the metrics.jsonl of one or several peers."""

from collections.abc import Callable
from typing import IO, Any

import msgspec

from legion_p2p.observe import human
from legion_p2p.observe.events import Event
from legion_p2p.web.page_blocks import Block, Cell, Chart, Facts, Figure, Head, Line, Table, TableColumn, WebPage
from legion_p2p.web.record import RunRecord
from legion_p2p.web.run_blocks import LEARNING, TRAFFIC, checkpoint_blocks, error_block, learning_blocks, round_blocks

PEERS = "Peers"
MAX_LINE_BYTES = 1 << 20  # of one event; longer ones are not ours
MAX_CURVES = 12  # in one chart: more cannot be told apart

_decoder = msgspec.json.Decoder(dict[str, Any])


def read_events(file: IO[bytes], record: Callable[[Event], None]) -> int:
    """Tell `record` of every event; how many lines are none. A peer that was killed leaves half a line."""
    n_bad, is_rest = 0, False
    while line := file.readline(MAX_LINE_BYTES):
        event = None if is_rest else _event(line)
        if event is not None:
            record(event)
        elif not is_rest and line.strip():
            n_bad += 1
        is_rest = not line.endswith(b"\n")
    return n_bad


def _event(line: bytes) -> Event | None:
    try:
        fields = _decoder.decode(line)
        name, at = fields.pop("event"), fields.pop("at")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        return None
    if not isinstance(name, str) or isinstance(at, bool) or not isinstance(at, int | float) or not abs(at) < 1e12:
        return None
    return Event(name, float(at), fields, fields.pop("error", False) is True)


def metrics_page(records: dict[str, RunRecord]) -> WebPage:
    """By the name of each peer. Of one peer the page has all that its events tell; of several, how they compare."""
    began = min((record.began for record in records.values() if record.began is not None), default=0.0)
    ended = max((record.ended for record in records.values() if record.ended is not None), default=0.0)
    run = next((record.run for record in records.values() if record.run), "a run")
    finished = [record.finished for record in records.values() if record.finished]
    held_out = [record.newest("val_loss") for record in records.values()]
    known = [loss for loss in held_out if loss is not None]
    totals = [sum(record.newest(name) or 0.0 for record in records.values()) for name in ("sent_bytes", "received_bytes")]
    head = Head(
        title=human.clean(run, 80),
        subtitle=f"{len(records)} peer{'s' * (len(records) != 1)}, {human.seconds_text(ended - began)}",
        state="report",
        figures=(
            Figure("step", human.whole_text(round(max((r.newest_step for r in records.values()), default=0)))),
            Figure("loss, held out", human.loss_text(min(known, default=None))),
            Figure("rounds of shards", human.whole_text(max((record.n_rounds for record in records.values()), default=0))),
            Figure("sent", human.bytes_text(totals[0])),
            Figure("received", human.bytes_text(totals[1])),
            Figure("ended in order", f"{len(finished)} of {len(records)}"),
        ),
    )
    if len(records) == 1:
        (record,) = records.values()
        return WebPage(head, _of_one(record))
    return WebPage(head, _of_several(records, began))


def _of_one(record: RunRecord) -> tuple[Block, ...]:
    sent, received = record.line("sent_bytes", "sent"), record.line("received_bytes", "received")
    ended = tuple((name.replace("_", " "), human.clean(_text(name, value), 200)) for name, value in record.finished.items())
    return (
        *learning_blocks(record),
        *round_blocks(record),
        Chart("bytes", TRAFFIC, "Bytes since the start", "bytes", (sent, received), record.marks()),
        *checkpoint_blocks(record, ""),
        error_block(record, 0.0),
        *((Facts("end", "The end", "How it ended", ended),) if ended else ()),
    )


def _text(name: str, value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return human.bytes_text(value) if "bytes" in name else f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
    return str(value)


def _of_several(records: dict[str, RunRecord], began: float) -> tuple[Block, ...]:
    def lines(name: str) -> tuple[Line, ...]:
        found = [record.line(name, human.clean(label, 60), began) for label, record in records.items()]
        return tuple(line for line in found if line.x)[:MAX_CURVES]

    marks = next(iter(records.values())).marks(began)
    rows: list[tuple[Cell, ...]] = [
        (
            human.clean(label, 60), round(record.newest_step), record.newest("loss"), record.newest("val_loss"), record.n_rounds,
            record.averaged / record.n_rounds if record.n_rounds else None, record.newest("sent_bytes"),
            record.newest("received_bytes"), human.clean(str(record.finished.get("reason", "no end was recorded")), 60),
        )
        for label, record in records.items()
    ]  # fmt: skip
    return (
        Chart("loss", LEARNING, "Training loss of each peer, in nats per token", "loss", lines("loss"), marks),
        Chart("val", LEARNING, "Loss of the common model on held-out text", "loss", lines("val_loss"), marks),
        Chart("speed", LEARNING, "Tokens per second of each peer", "count", lines("tokens_per_s"), marks),
        Chart("bytes", TRAFFIC, "Bytes sent by each peer", "bytes", lines("sent_bytes"), marks),
        Table(
            "peers", PEERS, "Peers",
            (
                TableColumn("peer"), TableColumn("step", "int"), TableColumn("loss", "loss"), TableColumn("held out", "loss"),
                TableColumn("rounds of shards", "int"), TableColumn("averaged", "percent"), TableColumn("sent", "bytes"),
                TableColumn("received", "bytes"), TableColumn("ended"),
            ),
            tuple(rows), is_wide=True,
        ),
    )  # fmt: skip
