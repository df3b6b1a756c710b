"""legion-ctl bw: what a peer has sent and received, by peer, by what it was for, and by hour."""

import time
from typing import Annotated

from cyclopts import Parameter

from legion_p2p.cli.failures import DONE
from legion_p2p.cli.find_peer import PeerOption, chosen_peer
from legion_p2p.cli.output import print_json
from legion_p2p.observe import human
from legion_p2p.observe.status import BooksStatus, TrafficRow

MOST_PEERS = 20  # of the table; --json has all


def bw(*, peer: PeerOption = "", json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Show what a peer has sent and received: by peer, by what it was for, and by hour.

    Example: legion-ctl bw

    Parameters
    ----------
    peer
        HOST:PORT of its status, or PORT, where several peers run on this machine; with one, it is found.
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
    """Three tables, one below the other."""
    by_bytes = sorted(books.peers, key=lambda row: -(row.sent_bytes + row.received_bytes))
    peers = [(human.short_id(row.name), row) for row in by_bytes[:MOST_PEERS]]
    hours = [(time.strftime("%d %b %H:00", time.localtime(int(row.name))), row) for row in books.hours]
    lines = [*_table("for", [(human.clean(row.name, 24), row) for row in books.classes]), ""]
    lines += [*_table("with", peers)]
    if len(by_bytes) > MOST_PEERS:
        lines.append(f"and {len(by_bytes) - MOST_PEERS} more peers")
    return [*lines, "", *_table("in the hour from", hours)]


def _table(title: str, rows: list[tuple[str, TrafficRow]]) -> list[str]:
    head = f"{title:<24}  {'sent':>10}  {'received':>10}"
    told = [f"{name:<24}  {human.bytes_text(r.sent_bytes):>10}  {human.bytes_text(r.received_bytes):>10}" for name, r in rows]
    return [head, *(told or ["nothing yet"])]
