"""legion-ctl top: all peers of this machine, one line each, again and again."""

import os
import time
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from legion_p2p.cli.failures import DONE
from legion_p2p.cli.output import print_json
from legion_p2p.observe import human

if TYPE_CHECKING:
    from rich.console import RenderableType

    from legion_p2p.net.status_http import FoundPeer

EVERY_S = 1.0
FILE_CHARS = 120


def top(
    *,
    once: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Show all peers of this machine, a line each, until Ctrl+C.

    Example: legion-ctl top

    Parameters
    ----------
    once
        Print them once; so it is as well where the output is no terminal.
    json
        Print their records as JSON, on one line.
    """
    import trio
    from rich.console import Console
    from rich.live import Live

    from legion_p2p.net.status_http import find_peers

    if json:
        return print_json(trio.run(find_peers))
    console = Console(highlight=False)
    if once or not console.is_terminal:
        width = int(os.environ.get("COLUMNS", FILE_CHARS)) if not console.is_terminal else console.width
        Console(highlight=False, width=width).print(table_of_peers(trio.run(find_peers), width))
        return DONE
    with Live(console=console, screen=False, auto_refresh=False) as live:
        while True:
            live.update(table_of_peers(trio.run(find_peers), console.width, console.options.ascii_only), refresh=True)
            time.sleep(EVERY_S)


def table_of_peers(found: "tuple[FoundPeer, ...]", width: int, ascii_only: bool = False) -> "RenderableType":
    """A line for each peer that answered; for the others, why not."""
    from rich.console import Group

    from legion_p2p.dashboard.fit import Column, fit_table, line

    rows = [(probe.address, probe.status) for probe in found if probe.status is not None]
    if not rows:
        told = [f"{probe.address}: {probe.problem}" for probe in found] or ["no peer runs on this machine"]
        return Group(*(line(human.shorten(human.clean(text), width), width=width) for text in told))
    columns = (
        Column("peer", lambda row: row[0].rpartition(":")[2], 0, right=False),
        Column(
            "run", lambda row: human.clean(row[1].run.name, 24) if row[1].run else human.NOTHING, 0, right=False, max_chars=24
        ),
        Column("state", lambda row: human.clean(row[1].state), 0, right=False, max_chars=30),
        Column("step", lambda row: human.whole_text(row[1].step) if row[1].run else human.NOTHING, 1),
        Column("loss", lambda row: human.loss_text(row[1].loss), 2),
        Column("tokens/s", lambda row: human.count_text(row[1].tokens_per_s) if row[1].run else human.NOTHING, 2),
        Column("members", lambda row: human.whole_text(len(row[1].members)) if row[1].run else human.NOTHING, 3),
        Column("up", lambda row: human.rate_text(row[1].upload_bps), 4),
        Column("down", lambda row: human.rate_text(row[1].download_bps), 4),
        Column("sent", lambda row: human.bytes_text(row[1].sent_bytes), 5),
        Column("received", lambda row: human.bytes_text(row[1].received_bytes), 5),
        Column("process", lambda row: str(row[1].pid), 6),
    )
    silent = [
        line(human.shorten(f"{p.address}: {human.clean(p.problem)}", width), width=width) for p in found if p.status is None
    ]
    return Group(fit_table(columns, rows, width, ascii_only=ascii_only), *silent)
