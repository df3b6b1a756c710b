"""Finding the running peer of this machine that a command is meant for."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from legion_p2p.config import STATUS_PORTS
from legion_p2p.errors import NetworkError, UsageError

if TYPE_CHECKING:
    from legion_p2p.net.status_http import FoundPeer

PeerOption = Annotated[str, Parameter(metavar="HOST:PORT")]


def chosen_peer(peer: str) -> tuple[str, int]:
    """Host and port of the status of the peer that `--peer` names; without it, of the only one that runs here.

    Raises: UsageError, if it names none, or several run; NetworkError, if none does.
    """
    import trio

    return parse_status_address(peer) if peer else trio.run(_only_peer)


def parse_status_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `PORT`, the host being this machine where it is left out. Raises: UsageError."""
    host, colon, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536) or (colon and not host):
        raise UsageError(f"--peer {text!r}: the form is HOST:PORT, as in 127.0.0.1:{STATUS_PORTS[0]}")
    return (host.strip("[]") if host else "127.0.0.1"), int(port)


async def _only_peer() -> tuple[str, int]:
    from legion_p2p.net.status_http import find_peers

    probes = await find_peers()
    running = [probe for probe in probes if probe.status is not None]
    silent = [probe for probe in probes if probe.status is None]
    if len(running) == 1:
        return parse_status_address(running[0].address)
    if running:
        listed = "\n".join(_in_a_line(probe) for probe in running)
        raise UsageError(f"{len(running)} peers run on this machine, choose one with --peer HOST:PORT:\n{listed}")
    also = "".join(f"; {probe.problem}" for probe in silent)
    raise NetworkError(
        f"no peer runs on this machine (none serves its status on 127.0.0.1:{STATUS_PORTS[0]} to {STATUS_PORTS[-1]}{also}); "
        f"start one: legion-peer --run NAME --initial-peers ADDR"
    )


def _in_a_line(probe: "FoundPeer") -> str:
    from legion_p2p.observe.human import clean, whole_text

    status = probe.status
    assert status is not None
    run = f"run {clean(status.run.name)}" if status.run else "no run yet"
    return f"  {probe.address}  {clean(status.peer_id)}  {run}  step {whole_text(status.step)}"
