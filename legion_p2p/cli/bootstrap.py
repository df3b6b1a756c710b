"""legion-bootstrap: introduce peers to each other.

A node that trains nothing and owns nothing: it answers in the DHT, so that a peer that knows its address finds all others.
Its only line on stdout is what to paste after a peer's command. Neither torch nor, before the options are read, libp2p is
imported.
"""

import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from legion_p2p.cli.bootstrap_page import host_node_page
from legion_p2p.cli.common import SOURCES_HELP, addresses_of_peers, listen_addresses, make_app
from legion_p2p.cli.node_log import ContactLines, DailyLine, Notes, peers_text, reach_lines
from legion_p2p.cli.running import run_and_exit
from legion_p2p.config import DEFAULT_BOOTSTRAP_PORT, Peer
from legion_p2p.config.fields import field_value
from legion_p2p.config.forms import NONE
from legion_p2p.core.addresses import parse_endpoint
from legion_p2p.core.relay_ledger import DEFAULT_RELAY, parse_relay
from legion_p2p.core.speed_tests import PER_HOUR_OF_NODE
from legion_p2p.errors import NetworkError, UsageError
from legion_p2p.files.paths import user_data_folder
from legion_p2p.observe.books import books_of
from legion_p2p.observe.status import ContactStatus, Status
from legion_p2p.web.node_page import NodeRecord

if TYPE_CHECKING:
    from legion_p2p.core.identity import Identity
    from legion_p2p.net.network import Libp2pNetwork

LOOK_EVERY_S = 2.0  # whether there is something to say
STATE = "bootstrap node"

HELP = """Introduce peers to each other: start this on a machine with a public address, and give peers the line that it prints.

  legion-bootstrap
  legion-bootstrap --port 4711 --announce /dns4/node.example.org/tcp/4711
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
    """Addresses that others should dial: a name, as /dns4/HOST/tcp/PORT, or where a router forwards a port to this machine."""
    also: Annotated[
        tuple[str, ...], _MANY, Parameter(alias="--initial-peers", converter=addresses_of_peers, metavar="ADDR...")
    ] = ()
    """Other bootstrap nodes to form one network with. Those that are down are retried forever. @FILE reads them from a file."""
    relay: Annotated[str, Parameter(metavar="RATE")] = DEFAULT_RELAY
    """Relay the traffic of peers that nobody can dial, at most at this rate in total; further limits as in
    10mbit,peers=256,circuits=512,hourly=8gb (of one peer). no: relay nothing."""
    speed_tests: Annotated[int, Parameter(metavar="N")] = PER_HOUR_OF_NODE
    """Tests of bandwidth that peers may make against this node in an hour (legion-ctl doctor), each at most 4 MiB both ways. 0:
    none."""
    metrics: Annotated[str, Parameter(metavar="[HOST:]PORT")] = ""
    """Serve metrics for Prometheus at this address, under /metrics; without a host, on this machine only. [default: not
    served]"""
    dashboard: Annotated[str, Parameter(metavar="YES|NO|PORT")] = "yes"
    """Serve a page for a browser on this machine: yes, no, or the port. Opening it takes the token in its address."""
    identity: Annotated[str, Parameter(metavar="FILE")] = ""
    """Key file with this node's identity, made on first use; the peers that it knows are stored beside it. [default:
    bootstrap.key in the user's data folder]"""
    network_key: Annotated[str, Parameter(metavar="FILE")] = ""
    """File with a key that all peers of a network share; peers without it get no answer at all. [default: none]"""
    config: Annotated[str, Parameter(metavar="FILE")] = ""
    """TOML file with further options."""


@app.default
def bootstrap(options: Options = Options()) -> int:
    """Run until Ctrl+C or SIGTERM."""
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port {options.port}, must be 0 to 65535")
    if options.identity == NONE:
        raise UsageError(
            "--identity none: others find this node by its id, so it needs a key file; without --identity it has one"
        )
    if options.speed_tests < 0:
        raise UsageError(f"--speed-tests {options.speed_tests}, must be 0 or more")
    parse_relay(options.relay)
    dashboard = dashboard_choice(options.dashboard)
    if options.metrics:
        try:
            parse_endpoint(options.metrics)
        except UsageError as bad:
            raise UsageError(f"--metrics {bad}") from bad
    # from here on libp2p is needed
    import trio

    from legion_p2p.store.identity import load_or_create_identity

    stored = load_or_create_identity(options.identity or default_identity_path())
    options = replace(options, dashboard=dashboard)
    listen = options.listen or (f"/ip4/0.0.0.0/tcp/{options.port}", f"/ip6/::/tcp/{options.port}")
    return trio.run(_serve, stored.identity, listen, options)


def default_identity_path() -> str:
    return str(user_data_folder() / "bootstrap.key")


async def _serve(identity: "Identity", listen: tuple[str, ...], options: Options) -> int:
    import trio

    from legion_p2p.net.host import open_network
    from legion_p2p.net.limits import NetConfig
    from legion_p2p.net.parts import Tell
    from legion_p2p.observe.events import Events
    from legion_p2p.store.known_peers_file import KnownPeersFile
    from legion_p2p.store.network_key_file import load_network_key

    note = Notes()
    events = Events()
    events.add_sink(note.event)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_network(
            identity, listen=listen, initial_peers=options.also, announce=options.announce,
            config=NetConfig(
                relay=parse_relay(options.relay), relay_unproven=True, network_key=load_network_key(options.network_key),
                speed_tests=options.speed_tests,
            ),
            tell=Tell(ContactLines(note, trio.current_time), note, events),
        ) as network:  # fmt: skip
            note(f"legion-bootstrap {identity.peer_id} listens on {', '.join(listen)}")
            for line in reach_lines(network.addresses(), options.port):
                note(line)
            print("--initial-peers", *network.addresses(), flush=True)
            network.keep_contacts()
            file = KnownPeersFile.beside(options.identity or default_identity_path())
            async with network.recall.kept(file, note, introduce=True):
                if len(network.recall):
                    note(f"known from last time: {peers_text(len(network.recall))}")
                caught = await _until_told(network, options, note, signals)
            # a second signal finds no handler, and ends the process
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return 128 + caught


async def _until_told(network: "Libp2pNetwork", options: Options, note: Notes, signals: AsyncIterator[int]) -> int:
    """Show progress until a signal comes; the signal's number. Raises: NetworkError, if the metrics cannot be served."""
    import trio

    from legion_p2p.concurrency.nurseries import open_flat_nursery
    from legion_p2p.net.status_http import serve_status

    status = partial(_status, network, trio.current_time())
    record = NodeRecord()
    async with open_flat_nursery() as nursery:
        nursery.start_soon(_watch, status, record, note)
        await host_node_page(
            network, options.dashboard, options.identity or default_identity_path(), status, record, note, nursery
        )
        try:
            await nursery.start(serve_status, status)
        except NetworkError as bad:
            note(f"{bad}; legion-ctl cannot look at this node")
        if options.metrics:
            from legion_p2p.net.metrics_http import serve_metrics

            note(f"metrics: http://{await nursery.start(serve_metrics, status, *parse_endpoint(options.metrics))}/metrics")
        caught = await anext(signals)
        note("leaving")
        nursery.cancel_scope.cancel()
    return caught


async def _watch(status: Callable[[], Status], record: NodeRecord, note: Notes) -> None:
    import trio

    daily = DailyLine(trio.current_time())
    while True:
        now = status()
        record.note(now, time.time())
        line = daily.look(now, trio.current_time())
        if line:
            note(line)
        await trio.sleep(LOOK_EVERY_S)


def dashboard_choice(text: str) -> str:
    """Raises: UsageError."""
    try:
        return str(field_value(Peer, "dashboard", text, is_text=True))
    except UsageError as bad:
        raise UsageError(f"--dashboard: {bad}") from bad


def _status(network: "Libp2pNetwork", began: float) -> Status:
    """What legion-ctl shows of this node."""
    import trio

    traffic = network.messenger.traffic()
    return Status(
        peer_id=network.peer_id, addresses=network.addresses(), run=None, region="", state=STATE, step=0, members=(), shards=(),
        sent_bytes=traffic.sent_bytes, received_bytes=traffic.received_bytes, last_round=None, errors=(),
        uptime_s=trio.current_time() - began, n_connected=len(network.messenger.connected()),
        contacts=tuple(ContactStatus(address, problem or "") for address, problem in network.dial_reports.items()),
        books=books_of((), network.network_traffic()), service=network.service(), pid=os.getpid(),
    )  # fmt: skip


def main() -> None:
    run_and_exit(app)


if __name__ == "__main__":
    main()
