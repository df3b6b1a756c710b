"""The books of a peer's traffic, as a status shows them."""

from collections.abc import Sequence

import msgspec

from legion_p2p.core.traffic_ledger import HOUR_S, MovedBytes, NetworkTraffic, TrafficLedger, left_over, summed
from legion_p2p.observe.status import BooksStatus, TrafficRow


def books_of(requests: Sequence[TrafficLedger], network: NetworkTraffic) -> BooksStatus:
    """`requests`: the ledgers of those that make and answer requests, beside the network's own."""
    ledgers = (*requests, network.ledger)
    classes = summed(ledger.by_class for ledger in ledgers)
    sockets = network.sockets
    hours = summed(ledger.by_hour.hours for ledger in ledgers) if sockets is None else sockets.by_hour
    books = BooksStatus(
        tuple(_row(peer, moved) for peer, moved in summed(ledger.by_peer for ledger in ledgers).items()),
        tuple(_row(name, moved) for name, moved in sorted(classes.items())),
        tuple(_row(str(hour * HOUR_S), moved) for hour, moved in sorted(hours.items())),
    )
    if sockets is None:
        return books
    return msgspec.structs.replace(
        books, total=_row("total", sockets.total), rest=_row("rest", left_over(sockets.total, classes.values())),
        local=_row("local", sockets.local),
    )  # fmt: skip


def _row(name: str, moved: MovedBytes) -> TrafficRow:
    return TrafficRow(name, moved.sent_bytes, moved.received_bytes)
