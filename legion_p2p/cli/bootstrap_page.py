"""The page of a bootstrap node: which facts of the network it shows, and serving it."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from legion_p2p.errors import NetworkError
from legion_p2p.observe.status import ConnectionStatus, Status
from legion_p2p.web.node_page import Introduced, NodeDetails, NodeRecord, OpenCircuit, node_page
from legion_p2p.web.page_blocks import WebPage

if TYPE_CHECKING:
    import trio

    from legion_p2p.net.network import Libp2pNetwork


async def host_node_page(
    network: "Libp2pNetwork", choice: str, key_file: str, status: Callable[[], Status], record: NodeRecord,
    note: Callable[[str], object], nursery: "trio.Nursery",
) -> None:  # fmt: skip
    """Serve the page in `nursery`, as `choice` says, and print its address. A node whose page cannot be served goes on without
    one."""
    from legion_p2p.web.hosting import host_page, ports_of

    ports = ports_of(choice)
    if not ports:
        return

    def make() -> WebPage:
        return node_page(status(), record, details_of(network))

    try:
        note(f"dashboard: {await nursery.start(partial(host_page, make, ports=ports, key_file=key_file))}")
    except NetworkError as bad:
        note(f"{bad}; this node has no page")


def details_of(network: "Libp2pNetwork") -> NodeDetails:
    """The peers that the node is connected to or has introduced."""
    connections = [(peer, network.reachability.connection(peer)) for peer in sorted(network.messenger.connected())]
    details = NodeDetails(
        tuple(ConnectionStatus(peer, one.kind.value, one.relay, one.rtt_s, one.rate_bps) for peer, one in connections),
        tuple(Introduced(one.at, one.asker, one.named) for one in network.tally.introductions),
    )
    if network.relay is None:
        return details
    ledger = network.relay.ledger
    return msgspec.structs.replace(
        details,
        circuits=tuple(OpenCircuit(source, target, n, ledger.hourly_bytes(source)) for source, target, n in ledger.circuits()),
        reserved=ledger.reserved(),
        refusals=dict(ledger.refusals),
    )
