"""legion-ctl: ask a running peer on this machine what it knows, tell it what to do, look into a store, or plan a run.

It finds peers by trying the loopback ports on which they serve their status, so there is no file to write or to clean up.
"""

import os
import sys
import time
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from legion_p2p.cli.access import ban, show_id, token, unban
from legion_p2p.cli.bandwidth import bw
from legion_p2p.cli.bugreport import bugreport
from legion_p2p.cli.checkpoint import checkpoint
from legion_p2p.cli.common import addresses_of_peers, make_app
from legion_p2p.cli.control import finish, leave, limits, pause, resume
from legion_p2p.cli.data import data
from legion_p2p.cli.doctor import doctor
from legion_p2p.cli.dry_run import plan
from legion_p2p.cli.failures import DONE
from legion_p2p.cli.find_peer import PeerOption, chosen_peer
from legion_p2p.cli.output import print_json
from legion_p2p.cli.report import report
from legion_p2p.cli.running import run_and_exit
from legion_p2p.cli.system_service import service
from legion_p2p.cli.top import top
from legion_p2p.cli.visitors import NetworkKeyOption, visitor_by_options
from legion_p2p.errors import NetworkError

if TYPE_CHECKING:
    from rich.console import Console

    from legion_p2p.core.wire import RunSummary
    from legion_p2p.observe.status import Status
    from legion_p2p.visit import Visitor

WATCH_EVERY_S = 1.0
FILE_CHARS = 120
RUNS_S = 5.0  # to be introduced to peers that are in a run
RUNS_EVERY_S = 0.5

app = make_app(
    "legion-ctl",
    "Ask a running peer on this machine what it knows, pause or limit it, work on checkpoints, prepare data, or plan a run.",
)
for command in (pause, resume, finish, leave, limits, doctor, bugreport, top, bw):
    app.command(command)
app.command(service)
app.command(checkpoint)
app.command(data)
app.command(token)
app.command(show_id, name="id")
app.command(ban)
app.command(unban)
app.command(plan)
app.command(report)


@app.command
def status(
    *,
    peer: PeerOption = "",
    json: Annotated[bool, Parameter(negative=())] = False,
    watch: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Show the run, members, shards, traffic and last errors of a peer.

    Example: legion-ctl status --watch

    Parameters
    ----------
    peer
        HOST:PORT of its status, or PORT. Needed only where several peers run on this machine.
    json
        Print the record as JSON, on one line.
    watch
        Show it again every second until Ctrl+C.
    """
    import trio

    host, port = chosen_peer(peer)
    if watch:
        return _watch(host, port, json)
    _show(trio.run(_fetch, host, port), json)
    return DONE


@app.command
def peers(
    *,
    peer: PeerOption = "",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """List the connections of a peer: direct, punched or relayed, with delay and rate; and how others reach it.

    Example: legion-ctl peers

    Parameters
    ----------
    peer
        HOST:PORT of its status, or PORT. Needed only where several peers run on this machine.
    json
        Print the list as JSON, on one line.
    """
    import trio

    host, port = chosen_peer(peer)
    status = trio.run(_fetch, host, port)
    if json:
        return print_json({"reach": status.reach, "connections": status.connections})
    from legion_p2p.dashboard import render_connections

    console = _console()
    console.print(render_connections(status, width=console.width, ascii_only=console.options.ascii_only), soft_wrap=True)
    return DONE


@app.command
def runs(
    addresses: Annotated[tuple[str, ...], Parameter(converter=addresses_of_peers, metavar="ADDR...")],
    /,
    *,
    network_key: NetworkKeyOption = "",
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """List the runs that peers behind an address are in: name, members, id.

    Example: legion-ctl runs /ip4/203.0.113.7/tcp/4710/p2p/12D3KooW...

    Parameters
    ----------
    addresses
        Addresses of peers or bootstrap nodes to ask through; @FILE reads them from a file.
    json
        Print the list as JSON, on one line.
    """
    import trio

    with visitor_by_options(network_key) as visitor:
        found = trio.run(_known_runs, addresses, visitor)
    if json:
        return print_json(found)
    if not found:
        raise NetworkError("no peer that can be reached there is in a run")
    for run in found:
        print(f"{run.name}  {run.n_members} member{'s' * (run.n_members != 1)}  {run.id}")
    return DONE


async def _known_runs(addresses: tuple[str, ...], visitor: "Visitor") -> "list[RunSummary]":
    import trio

    from legion_p2p.services.run.run_discovery import known_runs
    from legion_p2p.visit import visiting

    async with visiting(addresses, visitor) as network:
        found: dict[str, RunSummary] = {}
        with trio.move_on_after(RUNS_S):  # a bootstrap node is in no run, and introduces us to peers that are
            while not found:
                await trio.sleep(RUNS_EVERY_S)
                found = await known_runs(network.messenger)
        return list(found.values())


async def _fetch(host: str, port: int) -> "Status":
    from legion_p2p.net.status_http import fetch_status

    return await fetch_status(host, port)


def _show(status: "Status", as_json: bool) -> None:
    if as_json:
        import msgspec

        print(msgspec.json.encode(status).decode(), flush=True)
        return
    from legion_p2p.dashboard import render_status

    console = _console()
    report = render_status(status, width=console.width, ascii_only=console.options.ascii_only, now=time.time())
    console.print(report, soft_wrap=True)


def _console() -> "Console":
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:  # a file has no width: let every column be there
        return Console(highlight=False, width=FILE_CHARS)
    return console


def _watch(host: str, port: int, as_json: bool) -> int:
    import trio
    from rich.console import Console

    from legion_p2p.dashboard import LiveView

    if as_json or not sys.stdout.isatty():
        while True:
            _show(trio.run(_fetch, host, port), as_json)
            time.sleep(WATCH_EVERY_S)
    with LiveView(Console(highlight=False)) as view:
        while True:
            view.update(trio.run(_fetch, host, port))
            time.sleep(WATCH_EVERY_S)


def main() -> None:
    """The console script."""
    run_and_exit(app)


if __name__ == "__main__":
    main()
