"""The books of a peer's traffic, as a status shows them."""

from collections.abc import Sequence

import msgspec

from legion_p2p.core.shard_traffic import PUSHES, UPDATES, WHOLE, Carried, ShardTraffic
from legion_p2p.core.traffic_ledger import HOUR_S, MovedBytes, NetworkTraffic, TrafficLedger, left_over, summed
from legion_p2p.observe.status import BooksStatus, ShardTrafficRow, TrafficRow


def books_of(requests: Sequence[TrafficLedger], network: NetworkTraffic, shards: tuple[ShardTrafficRow, ...] = ()) -> BooksStatus:
    """`requests`: the ledgers of those that make and answer requests, beside the network's own."""
    ledgers = (*requests, network.ledger)
    classes = summed(ledger.by_class for ledger in ledgers)
    sockets = network.sockets
    hours = summed(ledger.by_hour.hours for ledger in ledgers) if sockets is None else sockets.by_hour
    books = BooksStatus(
        tuple(_row(peer, moved) for peer, moved in summed(ledger.by_peer for ledger in ledgers).items()),
        tuple(_row(name, moved) for name, moved in sorted(classes.items())),
        tuple(_row(str(hour * HOUR_S), moved) for hour, moved in sorted(hours.items())),
        shards=shards,
    )
    if sockets is None:
        return books
    return msgspec.structs.replace(
        books, total=_row("total", sockets.total), rest=_row("rest", left_over(sockets.total, classes.values())),
        local=_row("local", sockets.local),
    )  # fmt: skip


def shard_rows(traffic: ShardTraffic, shard_bytes: float) -> tuple[ShardTrafficRow, ...]:
    """`shard_bytes`: of a shard as fp32; all but the last have the same size."""
    rows = []
    for name in (PUSHES, UPDATES, WHOLE):
        sent, received = traffic.sent.get(name, Carried()), traffic.received.get(name, Carried())
        if sent.n_shards or received.n_shards:
            plain_sent, plain_received = round(shard_bytes * sent.n_shards), round(shard_bytes * received.n_shards)
            rows.append(ShardTrafficRow(name, sent.n_bytes, plain_sent, received.n_bytes, plain_received))
    return tuple(rows)


def _row(name: str, moved: MovedBytes) -> TrafficRow:
    return TrafficRow(name, moved.sent_bytes, moved.received_bytes)
