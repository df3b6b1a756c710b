"""The page of a bootstrap node: which peers it introduced to which, what it relays, and what it refused."""

from collections.abc import Mapping, Sequence

import msgspec

from legion_p2p.observe import human
from legion_p2p.observe.status import ConnectionStatus, ServiceStatus, Status
from legion_p2p.observe.words import connection_text, n_lost
from legion_p2p.web.curve import Curve
from legion_p2p.web.page_blocks import (
    Block,
    Cell,
    Chart,
    Facts,
    Figure,
    Head,
    Notice,
    Prose,
    Table,
    TableColumn,
    WebPage,
    rows_of,
)
from legion_p2p.web.run_blocks import traffic_tables

MAX_ROWS = 200
MAX_NAMED_SHOWN = 6
OVER_TIME, PEERS, RELAY, NODE = "Over time", "Peers", "Relay", "This node"


class Introduced(msgspec.Struct, frozen=True):
    """A peer asked, and was told of others. Seconds since the epoch."""

    at: float
    asker: str
    named: tuple[str, ...]


class OpenCircuit(msgspec.Struct, frozen=True):
    """What is carried between two peers now."""

    source: str
    target: str
    n: int
    sent_bytes: int
    """By the source, in the hour that runs for it, over all its circuits."""


class NodeDetails(msgspec.Struct, frozen=True):
    """What the status of a node does not tell, because it names peers."""

    connections: tuple[ConnectionStatus, ...] = ()
    introductions: tuple[Introduced, ...] = ()
    """The newest last."""
    circuits: tuple[OpenCircuit, ...] = ()
    reserved: frozenset[str] = frozenset()
    """Peers that are reached through this node."""
    refusals: Mapping[str, int] = {}
    """How often the relay refused, by the reason."""


class NodeRecord:
    """How a node stood, over time."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._connected, self._relayed = Curve(), Curve()

    def note(self, status: Status, at: float) -> None:
        """How it stands `at`, in seconds since the epoch."""
        self._began = at if self._began is None else self._began
        self._connected.add(at, status.n_connected)
        self._relayed.add(at, (status.service or ServiceStatus()).relayed_bytes)

    def charts(self) -> tuple[Chart, ...]:
        began = self._began or 0.0
        return (
            Chart(
                "connected", OVER_TIME, "Peers connected", "count", (self._connected.line("connected", began, has_steps=False),)
            ),
            Chart("relayed", OVER_TIME, "Bytes relayed", "bytes", (self._relayed.line("relayed", began, has_steps=False),)),
        )


def node_page(status: Status, record: NodeRecord, details: NodeDetails) -> WebPage:
    """All of it."""
    service = status.service or ServiceStatus()
    blocks: tuple[Block, ...] = (
        *record.charts(), _introductions(details), _connections(details), *_relay(details, service),
        *traffic_tables(status.books), *_node(status),
    )  # fmt: skip
    return WebPage(_head(status, service), blocks)


def _head(status: Status, service: ServiceStatus) -> Head:
    lost = n_lost(status)
    notice = Notice(
        "warning", f"{lost} of {len(status.contacts)} other bootstrap nodes cannot be reached.",
        "They are retried in the background. The reasons are listed under This node.",
    )  # fmt: skip
    return Head(
        title="bootstrap node",
        subtitle=f"{human.short_id(status.peer_id)}, {human.seconds_text(status.uptime_s)} elapsed",
        state="serving",
        figures=(
            Figure("connected", human.whole_text(status.n_connected)),
            Figure("connections so far", human.whole_text(service.n_connections)),
            Figure("turned away", human.whole_text(service.n_refused)),
            Figure("questions answered", human.whole_text(service.n_questions)),
            Figure("relayed", human.bytes_text(service.relayed_bytes)),
            Figure("circuits", human.whole_text(service.n_circuits)),
            Figure("relay refused", human.whole_text(service.n_relay_refusals)),
            Figure("peers known", human.whole_text(service.n_known)),
        ),
        notices=(notice,) if lost else (),
    )


def _introductions(details: NodeDetails) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (human.clock_text(one.at), human.short_id(one.asker), _named_text(one.named)) for one in reversed(details.introductions)
    ]
    shown, n_more = rows_of(rows, MAX_ROWS)
    return Table(
        "introductions", PEERS, "Introductions, the newest first",
        (TableColumn("at"), TableColumn("peer", "id"), TableColumn("was told of")), shown,
        "A peer asks for the members of a run, or for relays, and dials those that it learns of.", n_more,
    )  # fmt: skip


def _named_text(named: Sequence[str]) -> str:
    more = f" and {len(named) - MAX_NAMED_SHOWN} more" if len(named) > MAX_NAMED_SHOWN else ""
    return ", ".join(map(human.short_id, named[:MAX_NAMED_SHOWN])) + more


def _connections(details: NodeDetails) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            human.short_id(one.peer_id), connection_text(one), None if one.rtt_s is None else 1000 * one.rtt_s, one.rate_bps,
            "yes" if one.peer_id in details.reserved else "no",
        )
        for one in details.connections
    ]  # fmt: skip
    shown, n_more = rows_of(rows, MAX_ROWS)
    return Table(
        "connections", PEERS, f"Connected now ({len(rows)})",
        (
            TableColumn("peer", "id"), TableColumn("connection"), TableColumn("delay", "ms"), TableColumn("rate", "rate"),
            TableColumn("reached through here"),
        ),
        shown, n_more=n_more,
    )  # fmt: skip


def _relay(details: NodeDetails, service: ServiceStatus) -> tuple[Block, ...]:
    busiest = sorted(details.circuits, key=lambda circuit: -circuit.sent_bytes)
    rows: list[tuple[Cell, ...]] = [
        (human.short_id(one.source), human.short_id(one.target), one.n, one.sent_bytes) for one in busiest
    ]
    shown, n_more = rows_of(rows, MAX_ROWS)
    reasons = sorted(details.refusals.items(), key=lambda reason: -reason[1])[:MAX_ROWS]
    refused: Block = Prose("refusals", RELAY, "What the relay refused, and why", "Nothing.")
    if reasons:
        columns = (TableColumn("because"), TableColumn("times", "int"))
        refused = Table("refusals", RELAY, "What the relay refused, and why", columns, tuple(reasons))
    relayed = f"{human.bytes_text(service.relayed_bytes)} relayed since the start."
    if not rows:
        return Prose("circuits", RELAY, "Circuits open now", f"None. {relayed}"), refused
    circuits = Table(
        "circuits", RELAY, "Circuits open now",
        (
            TableColumn("from", "id"), TableColumn("to", "id"), TableColumn("circuits", "int"),
            TableColumn("sent by it this hour", "bytes"),
        ),
        shown, f"{relayed} What passes is encrypted between the two.", n_more,
    )  # fmt: skip
    return circuits, refused


def _node(status: Status) -> tuple[Block, ...]:
    others = [(human.clean(c.address, 160), human.clean(c.problem, 160) or "connected") for c in status.contacts[:MAX_ROWS]]
    addresses = [human.clean(address, 300) for address in status.addresses]
    return (
        Prose("addresses", NODE, "What peers enter through", "--initial-peers " + " ".join(addresses), is_code=True),
        *((Facts("others", NODE, "Other bootstrap nodes", tuple(others)),) if others else ()),
    )  # fmt: skip
