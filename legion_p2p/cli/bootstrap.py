"""legion-bootstrap: introduce peers to each other.

A node that trains nothing and owns nothing: it answers in the DHT, so that a peer that knows its address finds everybody else.
Its only line on stdout is what to paste after a peer's command. Neither torch nor, before the options are read, libp2p is
imported.
"""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from legion_p2p.cli.common import SOURCES_HELP, addresses_of_peers, listen_addresses, make_app
from legion_p2p.cli.running import run_app
from legion_p2p.config import DEFAULT_BOOTSTRAP_PORT
from legion_p2p.core.addresses import AddressScope, scope_of
from legion_p2p.core.relay_ledger import DEFAULT_RELAY, parse_relay
from legion_p2p.errors import NetworkError, UsageError
from legion_p2p.files.paths import user_data_folder
from legion_p2p.observe.status import ContactStatus, Status

if TYPE_CHECKING:
    from legion_p2p.core.identity import Identity
    from legion_p2p.net.host import Libp2pNetwork
    from legion_p2p.observe.events import Event

LOOK_EVERY_S = 2.0  # peers come in waves: one line per wave
FIRST_PAUSE_S, MAX_PAUSE_S = 2.0, 3600.0  # between two lines: the first ones soon, then at most one an hour
DAY_S = 86_400.0
STATE = "bootstrap node"

HELP = """Introduce peers to each other: start this on a machine with a public address, and give peers the line that it prints.

  legion-bootstrap
  legion-bootstrap --port 4711 --announce /ip4/203.0.113.7/tcp/4711
  legion-peer --run NAME --initial-peers ADDRESS_PRINTED_BY_BOOTSTRAP"""

app = make_app("legion-bootstrap", HELP, help_epilogue=SOURCES_HELP)

_MANY = Parameter(consume_multiple=True, negative=())


@Parameter(name="*", group=Group.create_ordered("Options"))
@dataclass(frozen=True, kw_only=True)
class Options:
    port: int = DEFAULT_BOOTSTRAP_PORT
    """TCP port to listen on, at all addresses of this machine; 0: any free one."""
    listen: Annotated[tuple[str, ...], _MANY, Parameter(converter=listen_addresses, metavar="ADDR...")] = ()
    """Addresses to listen on instead, as /ip4/HOST/tcp/PORT."""
    announce: Annotated[tuple[str, ...], _MANY, Parameter(converter=listen_addresses, metavar="ADDR...")] = ()
    """Addresses that others should dial, where a router forwards a port to this machine."""
    initial_peers: Annotated[tuple[str, ...], _MANY, Parameter(converter=addresses_of_peers, metavar="ADDR...")] = ()
    """Other bootstrap nodes, to be one network with; they may be down, and are tried for ever. @FILE reads them from a file."""
    relay: Annotated[str, Parameter(metavar="RATE")] = DEFAULT_RELAY
    """Carry the traffic of peers that nobody can dial, at most so much of it together; further limits as in
    10mbit,peers=256,circuits=512,hourly=8gb (of one peer). no: it does not."""
    identity: Annotated[str, Parameter(metavar="FILE")] = ""
    """Key file that says who this node is, made on first use. [default: bootstrap.key in the user's data folder]"""
    config: Annotated[str, Parameter(metavar="FILE")] = ""
    """TOML file with further options."""


@app.default
def bootstrap(options: Options = Options()) -> int:
    """Run until Ctrl+C or SIGTERM."""
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port {options.port}, must be 0 to 65535")
    parse_relay(options.relay)
    # from here on libp2p is needed
    import trio

    from legion_p2p.store.identity import load_or_create_identity

    stored = load_or_create_identity(options.identity or default_identity_path())
    listen = options.listen or (f"/ip4/0.0.0.0/tcp/{options.port}", f"/ip6/::/tcp/{options.port}")
    return trio.run(_serve, stored.identity, listen, options)


def default_identity_path() -> Path:
    return user_data_folder() / "bootstrap.key"


async def _serve(identity: "Identity", listen: tuple[str, ...], options: Options) -> int:
    import trio

    from legion_p2p.net.host import Tell, open_network
    from legion_p2p.net.limits import NetConfig
    from legion_p2p.net.status_http import serve_status
    from legion_p2p.observe.events import Events

    note = Notes()
    events = Events()
    events.add_sink(note.event)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_network(
            identity, listen=listen, initial_peers=options.initial_peers, announce=options.announce,
            config=NetConfig(relay=parse_relay(options.relay), relay_unproven=True), tell=Tell(note, note, events),
        ) as network:  # fmt: skip
            note(f"legion-bootstrap {identity.peer_id} listens on {', '.join(listen)}")
            for line in reach_lines(network.addresses(), options.port):
                note(line)
            print("--initial-peers", *network.addresses(), flush=True)
            network.keep_contacts()
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_tell, network, note)
                try:
                    await nursery.start(serve_status, partial(_status, network, began))
                except NetworkError as bad:
                    note(f"{bad}; legion-ctl cannot look at this node")
                caught = await anext(signals)
                nursery.cancel_scope.cancel()
            note("leaving")
            # a second signal finds nobody who listens, and ends the process
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return 128 + caught


async def _tell(network: "Libp2pNetwork", note: "Notes") -> None:
    """How many peers are connected: when that changes, ever more seldom, and once a day."""
    import trio

    counts = Counts()
    while True:
        line = counts.look(len(network.messenger.connected()), trio.current_time())
        if line:
            note(line)
        await trio.sleep(LOOK_EVERY_S)


class Counts:
    """Decides when the number of connected peers is worth a line: a log of a day stays below 40."""

    def __init__(self) -> None:
        self._told = -1
        self._told_at = -math.inf
        self._pause_s = FIRST_PAUSE_S

    def look(self, n_peers: int, now: float) -> str | None:
        """The line to write now; None: none."""
        since_s = now - self._told_at
        if since_s < DAY_S and (n_peers == self._told or since_s < self._pause_s):
            return None
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        self._told, self._told_at = n_peers, now
        return f"{n_peers} {'peer' if n_peers == 1 else 'peers'} connected"


def reach_lines(addresses: Sequence[str], port: int) -> list[str]:
    """Which addresses whom can dial, and what to do where nobody outside can."""
    by_scope: dict[AddressScope, list[str]] = {}
    for address in addresses:
        by_scope.setdefault(scope_of(address), []).append(address.partition("/p2p/")[0])
    lines = [f"{reach.value} can dial {', '.join(by_scope[reach])}" for reach in AddressScope if reach in by_scope]
    if AddressScope.ANYWHERE not in by_scope:
        lines.append(
            f"no address of this machine is public: to let others in from outside, forward TCP port {port or 'PORT'} to it, and "
            f"say so with --announce /ip4/PUBLIC_ADDRESS/tcp/{port or 'PORT'}"
        )
    return lines


def _status(network: "Libp2pNetwork", began: float) -> Status:
    """What legion-ctl shows of this node."""
    import trio

    traffic = network.messenger.traffic()
    return Status(
        peer_id=network.peer_id, addresses=network.addresses(), run=None, region="", state=STATE, step=0, members=(), shards=(),
        sent_bytes=traffic.sent_bytes, received_bytes=traffic.received_bytes, last_round=None, errors=(),
        uptime_s=trio.current_time() - began, n_connected=len(network.messenger.connected()),
        contacts=tuple(ContactStatus(address, problem or "") for address, problem in network.dial_reports.items()),
        pid=os.getpid(),
    )  # fmt: skip


class Notes:
    """Lines for people, on stderr, with the time."""

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._write = write or (lambda line: print(line, file=sys.stderr, flush=True))

    def __call__(self, text: str) -> None:
        self._write(f"{time.strftime('%H:%M:%S')} {text}")

    def event(self, event: "Event") -> None:
        """The network changed."""
        from legion_p2p.observe.metrics import describe

        self._write(describe(event))


def main() -> None:
    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
