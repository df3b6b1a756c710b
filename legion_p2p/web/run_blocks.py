"""Parts of a page that follow from a record alone: of a running peer, or of one whose metrics.jsonl is read."""

import shlex
from collections.abc import Callable, Iterable, Sequence

from legion_p2p.observe import human
from legion_p2p.observe.advice import advice_on
from legion_p2p.observe.status import BooksStatus, FailedPush, ShardTrafficRow, TrafficRow
from legion_p2p.observe.words import reason_text
from legion_p2p.web.page_blocks import Block, Cell, Chart, Prose, Table, TableColumn, rows_of
from legion_p2p.web.record import RunRecord

MAX_ROUNDS_LISTED = 40
MAX_ERRORS_LISTED = 20
MAX_TRAFFIC_ROWS = 100
FP32_BYTES = 4

LEARNING, ROUNDS, TRAFFIC, CHECKPOINTS, ERRORS = "Learning", "Rounds", "Traffic", "Checkpoints", "Errors"


def learning_blocks(record: RunRecord) -> tuple[Block, ...]:
    """Loss and speed."""
    return (
        Chart(
            "loss", LEARNING, "Loss, in nats per token", "loss",
            (
                record.line("loss", "training, this peer"), record.line("swarm_loss", "training, mean of all"),
                record.line("val_loss", "common model, held-out text"),
            ),
            record.marks(),
            "The first two are smoothed. Peers with --eval-every-s measure held-out text while training, others at the end.",
        ),
        Chart(
            "speed", LEARNING, "Tokens per second", "count",
            (record.line("swarm_tokens_per_s", "all members"), record.line("tokens_per_s", "this peer")), record.marks(),
        ),
    )  # fmt: skip


def round_blocks(record: RunRecord, name: Callable[[str], str] = human.short_id) -> tuple[Block, ...]:
    """Which members each round had, and which ones were missing."""
    rows: list[tuple[Cell, ...]] = [
        (
            human.clock_text(closed.at), closed.shard, closed.version, closed.n_included, closed.n_expected,
            closed.averaged_fraction, _missing_text(closed.missing, name),
        )
        for closed in record.rounds()
    ]  # fmt: skip
    shown, n_more = rows_of(rows, MAX_ROUNDS_LISTED)
    missed: list[tuple[Cell, ...]] = [(name(peer), n) for peer, n in record.missed()]
    missing, n_more_missing = rows_of(missed, MAX_ROUNDS_LISTED)
    n = record.n_rounds
    told = (
        f"{human.whole_text(n)} rounds of single shards closed; {human.percent_text(record.n_complete / n)} of them had every "
        f"member, {human.percent_text(record.averaged / n)} of all work was averaged at once. What is late counts in the next."
        if n
        else "No round has closed yet."
    )
    return (
        Table(
            "rounds", ROUNDS, "The newest rounds",
            (
                TableColumn("at"), TableColumn("shard", "int"), TableColumn("version", "int"), TableColumn("included", "int"),
                TableColumn("expected", "int"), TableColumn("averaged", "percent"), TableColumn("not in it, and why"),
            ),
            shown, told, n_more, is_wide=True,
        ),
        *(
            (Table("missed", ROUNDS, "Members that were not in a round",
                   (TableColumn("peer", "id"), TableColumn("rounds", "int")), missing, n_more=n_more_missing),)
            if missing else ()
        ),
    )  # fmt: skip


def _missing_text(missing: tuple[tuple[str, str], ...], name: Callable[[str], str]) -> str:
    told = [f"{name(peer)}: {reason_text(FailedPush(peer, reason), 80)}" for peer, reason in missing[:4]]
    return "; ".join(told) + (f"; and {len(missing) - 4} more" if len(missing) > 4 else "")


def plain_bytes(n_params: int, steps: int, n_members: int) -> float:
    """What each of `n_members` would send if every step were a ring all-reduce of fp32 gradients; 0: nothing to compare."""
    return 2 * (n_members - 1) / n_members * FP32_BYTES * n_params * steps if n_members > 1 else 0.0


def saved_text(plain: float, sent: float) -> str:
    """How much less was sent."""
    if plain <= sent:
        return "nothing yet"
    return f"{human.percent_text(1 - sent / plain)}: {plain / sent:.3g} times less"


def traffic_tables(
    books: BooksStatus, name: Callable[[str], str] = human.short_id, *, has_volume: bool = False
) -> tuple[Table, ...]:
    """Bytes by what they were for, by peer, and by hour. `has_volume`: a limit for a month can be set."""

    def largest(found: tuple[TrafficRow, ...]) -> list[TrafficRow]:
        return sorted(found, key=lambda row: -(row.sent_bytes + row.received_bytes))

    purposes = [(human.clean(row.name, 40), row) for row in largest(books.classes)]
    if books.rest is not None and books.total is not None:
        purposes += [("headers and encryption", books.rest), ("all", books.total)]
    peers, n_more = rows_of(_traffic_rows((name(row.name), row) for row in largest(books.peers)), MAX_TRAFFIC_ROWS)
    hours = _traffic_rows((human.hour_text(float(row.name)), row) for row in reversed(books.hours))
    local = "" if books.local is None else (
        f"{human.bytes_text(books.local.sent_bytes + books.local.received_bytes)} of all stayed on this machine and its local "
        f"network{', which --monthly does not count' if has_volume else ''}."
    )  # fmt: skip
    both = (TableColumn("sent", "bytes"), TableColumn("received", "bytes"))
    return (
        *_compression(books.shards),
        Table(
            "purposes", TRAFFIC, "Bytes by what they were for", (TableColumn("for"), *both), tuple(_traffic_rows(purposes)), local
        ),
        Table("traffic-peers", TRAFFIC, "Bytes by peer", (TableColumn("peer", "id"), *both), peers, n_more=n_more),
        Table("hours", TRAFFIC, "Bytes by hour", (TableColumn("from"), *both), tuple(hours)),
    )  # fmt: skip


def _compression(shards: Sequence[ShardTrafficRow]) -> tuple[Table, ...]:
    """What codecs save, where anything was sent or received."""
    rows: list[tuple[Cell, ...]] = [
        (
            row.name, row.sent_bytes, row.sent_fp32_bytes, _saved_share(row.sent_fp32_bytes, row.sent_bytes),
            row.received_bytes, row.received_fp32_bytes, _saved_share(row.received_fp32_bytes, row.received_bytes),
        )
        for row in shards
    ]  # fmt: skip
    columns = (
        TableColumn("of"), TableColumn("sent", "bytes"), TableColumn("as fp32", "bytes"), TableColumn("saved", "percent"),
        TableColumn("received", "bytes"), TableColumn("as fp32", "bytes"), TableColumn("saved", "percent"),
    )  # fmt: skip
    told = "As fp32: what the same shards have without a codec. Local steps save as well: fewer pushes are made than steps."
    return (Table("compression", TRAFFIC, "Saved by compression", columns, tuple(rows), told, is_wide=True),) if rows else ()


def _saved_share(plain: int, moved: int) -> float | None:
    """None: nothing was moved. Whole shards have a header as well, so that they save a little less than nothing."""
    return max(0.0, 1 - moved / plain) if plain else None


def _traffic_rows(named: Iterable[tuple[str, TrafficRow]]) -> list[tuple[Cell, ...]]:
    return [(name, row.sent_bytes, row.received_bytes) for name, row in named]


def checkpoint_blocks(record: RunRecord, store: str, *, has_table: bool = False) -> tuple[Block, ...]:
    """Which checkpoints were stored, and how to look at one in a terminal. `has_table`: another block says which there are."""
    stored = record.stored()
    shown, n_more = rows_of([(human.clock_text(one.at), one.step, one.cid, one.took_s) for one in stored], MAX_ROUNDS_LISTED)
    if not stored and has_table:
        return ()
    if not stored:
        why = "None yet." if store else "This peer keeps no checkpoints: --store FOLDER names a folder for them."
        return (Prose("checkpoints", CHECKPOINTS, "Checkpoints", why),)
    commands: tuple[Block, ...] = ()
    if store:
        where = f"--store {shlex.quote(store)}"
        cid = stored[0].cid
        commands = (
            Prose(
                "checkpoint-commands", CHECKPOINTS, "The same in a terminal",
                f"legion-ctl checkpoint verify {cid} {where}\n"
                f"legion-ctl checkpoint export {cid} --safetensors exported {where}\n"
                f"legion-ctl checkpoint show {cid} {where}",
                is_code=True,
            ),
        )  # fmt: skip
    if has_table:
        return commands
    return (
        Table(
            "checkpoints", CHECKPOINTS, "Checkpoints of this peer",
            (TableColumn("at"), TableColumn("step", "int"), TableColumn("CID"), TableColumn("took", "seconds")),
            shown, "Peers that fetch one check every block by its CID.", n_more, is_wide=True,
        ),
        *commands,
    )  # fmt: skip


def error_block(record: RunRecord, now: float) -> Block:
    """What went wrong, in words, and what to do."""
    rows: list[tuple[Cell, ...]] = [
        (
            f"{human.seconds_text(max(0.0, now - trouble.at))} ago" if now else human.clock_text(trouble.at),
            in_short(trouble.text), advice_on(trouble.event), human.clean(trouble.event, 60),
        )
        for trouble in record.troubles()
    ]  # fmt: skip
    shown, n_more = rows_of(rows, MAX_ERRORS_LISTED)
    if not shown:
        return Prose("errors", ERRORS, "Errors", "None.")
    return Table(
        "errors", ERRORS, "Errors, and what to do",
        (TableColumn("when"), TableColumn("what"), TableColumn("what to do"), TableColumn("event")),
        shown, n_more=n_more, is_wide=True,
    )  # fmt: skip


def in_short(text: str) -> str:
    return human.clean(human.short_ids(text), 400)
