"""The page of a peer in a run, from its status and what was recorded of it."""

from collections import Counter

import msgspec

from legion_p2p.core.answers import RoundScores
from legion_p2p.core.traffic_ledger import RELAYED
from legion_p2p.core.units import rate_text
from legion_p2p.observe import human
from legion_p2p.observe.advice import advice_on
from legion_p2p.observe.event_text import rounds_of
from legion_p2p.observe.status import ConnectionStatus, ControlStatus, MemberStatus, Status
from legion_p2p.observe.words import (
    alone_text,
    connection_text,
    doing,
    join_command,
    own_left_text,
    reach_text,
    relayed_text,
    target_text,
)
from legion_p2p.web.page_blocks import (
    Block,
    Cell,
    Chart,
    ControlState,
    Facts,
    Figure,
    Head,
    MapNode,
    Notice,
    PeerMap,
    Prose,
    Table,
    TableColumn,
    WebPage,
    rows_of,
)
from legion_p2p.web.record import RunRecord
from legion_p2p.web.run_blocks import (
    LEARNING,
    TRAFFIC,
    checkpoint_blocks,
    error_block,
    in_short,
    learning_blocks,
    plain_bytes,
    round_blocks,
    saved_text,
    traffic_tables,
)

MAX_PEERS_MAPPED = 60  # more would hide each other
MAX_PEERS_LISTED = 200
MAX_SHARDS_LISTED = 200
MAX_SIGNERS_LISTED = 40
MAX_REASONS = 4
ERROR_NOTICE_S = 60.0  # an error stays at the top for so long; the list of errors keeps it

PEERS, MINE, SETTINGS = "Peers", "My contribution", "Settings"


class PeerFacts(msgspec.Struct, frozen=True):
    """The facts of a peer that do not change while it runs."""

    n_params: int = 0
    """Elements that the run trains; 0: unknown."""
    settings: tuple[tuple[str, str], ...] = ()
    store: str = ""
    """Folder of its checkpoints; empty: it keeps none."""


def peer_page(status: Status, record: RunRecord, facts: PeerFacts, now: float, checkpoints: Table | None = None) -> WebPage:
    """`now`: seconds since the epoch. `checkpoints`: those that there are, with their buttons; None: what was recorded."""
    return WebPage(
        _head(status, record, now),
        (
            *learning_blocks(record),
            *_test(status.test),
            *_peer_blocks(status),
            *round_blocks(record, lambda peer: _name(peer, status)),
            *_traffic_blocks(status, record, facts),
            *((checkpoints,) if checkpoints is not None else ()),
            *checkpoint_blocks(record, facts.store, has_table=checkpoints is not None),
            *_contribution(status, record),
            error_block(record, now),
            Facts("settings", SETTINGS, "Settings in force", (*_running_settings(status), *facts.settings)),
        ),
    )


def _head(status: Status, record: RunRecord, now: float) -> Head:
    alive = [member for member in status.members if member.liveness.upper() == "ALIVE"]
    swarm_rate = sum(member.tokens_per_s for member in alive if member.training)
    target = f" of {human.whole_text(status.target_steps)}" if status.target_steps else ""
    left = f", {own_left_text(status)}" if own_left_text(status) else ""
    if status.target is not None:
        left += f"; the run ends at {target_text(status.target)}"
    return Head(
        title=human.clean(status.run.name, 80) if status.run else "no run yet",
        subtitle=f"peer {human.short_id(status.peer_id)}, {human.seconds_text(status.uptime_s)} elapsed{left}",
        state=human.clean(status.state, 20),
        figures=(
            Figure("step", human.whole_text(status.step) + target),
            Figure("loss", human.loss_text(status.loss)),
            Figure("tokens/s, mine", human.count_text(status.tokens_per_s)),
            Figure("tokens/s, all", human.count_text(swarm_rate)),
            Figure("members", human.whole_text(len(alive))),
            Figure("rounds", human.whole_text(rounds_of(status))),
            Figure("sent", human.bytes_text(status.sent_bytes)),
            Figure("received", human.bytes_text(status.received_bytes)),
        ),
        notices=tuple(_notices(status, record, now)),
        control=_control(status.control),
    )


def _control(control: ControlStatus) -> ControlState:
    def text(limit_bps: float | None) -> str:
        return "" if limit_bps is None else rate_text(limit_bps)

    return ControlState(control.wish == "pause", text(control.upload_bps), text(control.download_bps))


def _notices(status: Status, record: RunRecord, now: float) -> list[Notice]:
    told = []
    if status.control.wish == "pause":
        until = f"until {human.clock_text(status.control.until)}" if status.control.until is not None else "until you resume it"
        why = ", ".join(human.clean(reason, 100) for reason in status.control.reasons[:MAX_REASONS])
        told.append(Notice("warning", f"Paused {why}, {until}.", "It goes on serving others, and nobody waits for it."))
    newest = next(iter(record.troubles()), None)
    if newest is not None and now - newest.at < ERROR_NOTICE_S:
        told.append(Notice("error", in_short(newest.text), advice_on(newest.event)))
    if alone_text(status):
        told.append(Notice("warning", human.short_ids(alone_text(status))))
    if relayed_text(status):
        told.append(Notice("info", relayed_text(status), "Forwarding a port of the router to this machine would help."))
    return told


def _test(scores: RoundScores | None) -> tuple[Table, ...]:
    """How well the common model does in the tasks of --eval-tasks."""
    if scores is None:
        return ()
    rows: list[tuple[Cell, ...]] = [
        (human.clean(task.task, 60), task.acc, task.stderr, task.acc_norm, task.n_answered, task.n) for task in scores.tasks
    ]
    columns = (
        TableColumn("task"), TableColumn("right", "percent"), TableColumn("standard error", "percent"),
        TableColumn("right by length", "percent"), TableColumn("answered", "int"), TableColumn("questions", "int"),
    )  # fmt: skip
    steps = human.whole_text(scores.last_step)
    if scores.first_step != scores.last_step:
        steps = f"{human.whole_text(scores.first_step)} to {steps}"
    told = f"The common model at steps {steps} of the run. Members share the questions; each tells the others its answers."
    return (Table("test", LEARNING, "Multiple-choice tasks", columns, tuple(rows), told, is_wide=True),)


def _peer_blocks(status: Status) -> tuple[Block, ...]:
    connections = {connection.peer_id: connection for connection in status.connections}
    members = sorted(status.members, key=lambda m: (m.peer_id != status.peer_id, m.liveness.upper() == "DEAD", m.peer_id))
    nodes = [_node(member, connections.get(member.peer_id), status) for member in members]
    shown, n_more = rows_of([_member_row(m, connections.get(m.peer_id), status) for m in members], MAX_PEERS_LISTED)
    owners = Counter(shard.owner for shard in status.shards)
    shard_rows: list[tuple[Cell, ...]] = [
        (shard.shard, shard.version, _name(shard.owner, status), _name(shard.standby, status), human.clean(shard.digest, 16))
        for shard in status.shards
    ]
    joining = join_command(status.run.name, [human.clean(address) for address in status.addresses]) if status.run else ""
    reached = f"How others reach this peer: {reach_text(status.reach)}."
    shards, n_more_shards = rows_of(shard_rows, MAX_SHARDS_LISTED)
    return (
        PeerMap(
            "map", PEERS, "Map by latency", tuple(nodes[:MAX_PEERS_MAPPED]),
            "The distance from the middle is the round trip from this peer. A larger mark owns more of the model.",
            max(0, len(nodes) - MAX_PEERS_MAPPED),
        ),
        Prose("join", PEERS, "Others join with", joining, True, reached),
        Table(
            "members", PEERS, f"Members ({len(status.members)})",
            (
                TableColumn("peer", "id"), TableColumn("region"), TableColumn("state"), TableColumn("step", "int"),
                TableColumn("loss", "loss"), TableColumn("tokens/s", "count"), TableColumn("tokens", "count"),
                TableColumn("shards", "int"), TableColumn("connection"), TableColumn("delay", "ms"),
                TableColumn("rate", "rate"), TableColumn("sent", "bytes"), TableColumn("received", "bytes"),
            ),
            shown, n_more=n_more, is_wide=True,
        ),
        Table(
            "shards", PEERS, f"Shards of the model ({len(status.shards)}), and who owns them",
            (
                TableColumn("shard", "int"), TableColumn("version", "int"), TableColumn("owner", "id"),
                TableColumn("standby", "id"), TableColumn("digest"),
            ),
            shards, f"{len([owner for owner in owners if owner])} members own shards.", n_more_shards,
        ),
    )  # fmt: skip


def _node(member: MemberStatus, connection: ConnectionStatus | None, status: Status) -> MapNode:
    me = member.peer_id == status.peer_id
    rtt_s = member.rtt_s if connection is None or connection.rtt_s is None else connection.rtt_s
    return MapNode(
        member.peer_id, human.short_id(member.peer_id), human.clean(member.region, 24),
        "" if connection is None else human.clean(connection.kind, 16), (connection.relay or "") if connection else "",
        0.0 if me else rtt_s, member.shards_owned, doing(member), me,
    )  # fmt: skip


def _member_row(member: MemberStatus, connection: ConnectionStatus | None, status: Status) -> tuple[Cell, ...]:
    rtt_s = member.rtt_s if connection is None or connection.rtt_s is None else connection.rtt_s
    me = member.peer_id == status.peer_id
    return (
        _name(member.peer_id, status), human.clean(member.region, 24), doing(member), member.step, member.loss,
        member.tokens_per_s, member.tokens, member.shards_owned, "" if me else connection_text(connection),
        None if rtt_s is None else 1000 * rtt_s, None if connection is None else connection.rate_bps,
        member.sent_bytes, member.received_bytes,
    )  # fmt: skip


def _name(peer: str | None, status: Status) -> str:
    if not peer:
        return "nobody"
    return human.short_id(peer) + (" (me)" if peer == status.peer_id else "")


def _traffic_blocks(status: Status, record: RunRecord, facts: PeerFacts) -> tuple[Block, ...]:
    both = status.bytes_in_region + status.bytes_across
    rows = [
        ("sent", human.bytes_text(status.sent_bytes)),
        ("received", human.bytes_text(status.received_bytes)),
        ("rate up, now", human.rate_text(status.upload_bps)),
        ("rate down, now", human.rate_text(status.download_bps)),
        ("between regions", f"{human.bytes_text(status.bytes_across)} of {human.bytes_text(both)}"),
        ("training waited for the network", human.percent_text(status.blocked_fraction)),
    ]
    plain = plain_bytes(facts.n_params, status.step, len(status.members))
    if plain and status.sent_bytes:
        rows += [
            ("plain all-reduce would have sent", human.bytes_text(plain)),
            ("saved by compression and local steps", saved_text(plain, status.sent_bytes)),
        ]
    return (
        Chart(
            "bytes", TRAFFIC, "Bytes since the start", "bytes",
            (record.line("sent_bytes", "sent"), record.line("received_bytes", "received")), record.marks(),
        ),
        Facts(
            "traffic", TRAFFIC, "Traffic of this peer", tuple(rows),
            "Plain all-reduce: a ring that sums fp32 gradients of all parameters at every step, among the present members.",
        ),
        *traffic_tables(status.books, lambda peer: _name(peer, status), has_volume=True),
    )  # fmt: skip


def _contribution(status: Status, record: RunRecord) -> tuple[Block, ...]:
    of_all = sum(member.tokens for member in status.members)
    relayed = sum(row.sent_bytes for row in status.books.classes if row.name == RELAYED)
    owned = sum(shard.owner == status.peer_id for shard in status.shards)
    share = f", {human.percent_text(status.tokens / of_all)} of what the present members have" if of_all else ""
    facts = Facts(
        "contribution", MINE, "What this peer has contributed",
        (
            ("tokens trained", human.count_text(status.tokens) + share),
            ("rounds that contain its work", f"{human.whole_text(record.n_own)} of {human.whole_text(record.n_rounds)}"),
            ("shards that it owns now", f"{owned} of {len(status.shards)}"),
            ("bytes sent to others", human.bytes_text(status.sent_bytes)),
            ("bytes passed on between others", human.bytes_text(relayed)),
            ("hours", f"{status.uptime_s / 3600:.2f}"),
        ),
        "Each update is signed by its owner and names the members whose work it contains: this proves a contribution.",
    )  # fmt: skip
    signed: list[tuple[Cell, ...]] = [(_name(owner, status), n) for owner, n in record.signed()]
    shown, n_more = rows_of(signed, MAX_SIGNERS_LISTED)
    columns = (TableColumn("owner", "id"), TableColumn("rounds", "int"))
    return facts, Table("signed", MINE, "Signed updates with its work, by their owners", columns, shown, n_more=n_more)


def _running_settings(status: Status) -> tuple[tuple[str, str], ...]:
    rates = (("upload", status.upload_limit_bps), ("download", status.download_limit_bps))
    return (
        ("region", human.clean(status.region, 64) or human.NOTHING),
        ("local steps, now", human.whole_text(status.local_steps)),
        ("codec of pushes, now", human.clean(status.push_codec, 64) or human.NOTHING),
        ("codec of updates, now", human.clean(status.update_codec, 64) or human.NOTHING),
        *((f"{name} limit, now", "none" if bps is None else human.rate_text(bps)) for name, bps in rates),
    )
