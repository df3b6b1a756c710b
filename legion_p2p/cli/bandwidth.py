"""legion-ctl bw: what a peer has sent and received, by peer, by what it was for, and by hour; and what all of it comes to."""

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from legion_p2p.cli.failures import DONE
from legion_p2p.cli.find_peer import PeerOption, chosen_peer
from legion_p2p.cli.output import print_json
from legion_p2p.observe import human
from legion_p2p.observe.status import BooksStatus, ShardTrafficRow, TrafficRow

REST = "headers and encryption"  # handshakes too, and what broke off on its way
MOST_PEERS = 20  # of the table; --json has all


def bw(*, peer: PeerOption = "", json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Show what a peer has sent and received: by peer, by what it was for, and by hour.

    Example: legion-ctl bw

    Parameters
    ----------
    peer
        HOST:PORT of its status, or PORT. Needed only where several peers run on this machine.
    json
        Print the books as JSON, on one line.
    """
    import trio

    from legion_p2p.net.status_http import fetch_status

    status = trio.run(fetch_status, *chosen_peer(peer))
    if json:
        return print_json(status.books)
    print("\n".join(lines_of(status.books)))
    return DONE


def lines_of(books: BooksStatus) -> list[str]:
    """Tables, one below the other."""
    by_bytes = sorted(books.peers, key=lambda row: -(row.sent_bytes + row.received_bytes))
    peers = [(human.short_id(row.name), row) for row in by_bytes[:MOST_PEERS]]
    hours = [(human.hour_text(float(row.name)), row) for row in books.hours]
    largest = sorted(books.classes, key=lambda row: -(row.sent_bytes + row.received_bytes))
    classes = [(human.clean(row.name, 24), row) for row in largest]
    if books.rest is not None and books.total is not None:
        classes += [(REST, books.rest), ("all that the sockets moved", books.total)]
    if books.local is not None:
        classes.append(("of it on this network", books.local))
    lines = [*_table("for", classes), "", *_compression(books.shards), *_table("with", peers)]
    if len(by_bytes) > MOST_PEERS:
        lines.append(f"and {len(by_bytes) - MOST_PEERS} more peers")
    return [*lines, "", *_table("in the hour from", hours)]


def _compression(shards: Sequence[ShardTrafficRow]) -> list[str]:
    """What codecs save; nothing where no shard was sent or received."""
    if not shards:
        return []
    lines = [f"{'shards, in codecs':<26}  {'sent':>10}  {'saved':>10}  {'received':>10}  {'saved':>10}"]
    for row in shards:
        sent = f"{human.bytes_text(row.sent_bytes):>10}  {saved_text(row.sent_fp32_bytes, row.sent_bytes):>10}"
        received = f"{human.bytes_text(row.received_bytes):>10}  {saved_text(row.received_fp32_bytes, row.received_bytes):>10}"
        lines.append(f"{human.clean(row.name, 24):<26}  {sent}  {received}")
    return [*lines, ""]


def saved_text(plain_bytes: int, moved_bytes: int) -> str:
    """Which share of the bytes a codec saved."""
    return human.percent_text(max(0.0, 1 - moved_bytes / plain_bytes)) if plain_bytes else human.NOTHING


def _table(title: str, rows: list[tuple[str, TrafficRow]]) -> list[str]:
    head = f"{title:<26}  {'sent':>10}  {'received':>10}"
    told = [f"{name:<26}  {human.bytes_text(r.sent_bytes):>10}  {human.bytes_text(r.received_bytes):>10}" for name, r in rows]
    return [head, *(told or ["nothing yet"])]
