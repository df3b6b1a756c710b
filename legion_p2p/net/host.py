"""The network of one peer: opening it, joining through known addresses, leaving.

Everything runs in one nursery that `open_network` owns. Leaving closes all sockets first and sends nothing: it takes
milliseconds, however unresponsive the others are.
"""

import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import msgspec
import trio
from libp2p import generate_peer_id_from, new_host
from libp2p.abc import IMuxedConn, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from legion_p2p.core.addresses import parse_peer_address, split_address
from legion_p2p.core.connectivity import Sight
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.errors import NetworkError, UsageError
from legion_p2p.net.accepting import Scarcity, Warn, descriptor_limit
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.bitswap import Bitswap, BlockSource
from legion_p2p.net.bulk_lanes import LaneParts
from legion_p2p.net.changes import NetworkChanges, running_clock
from legion_p2p.net.contacts import Contacts
from legion_p2p.net.dht import Dht
from legion_p2p.net.dialer import Dialer
from legion_p2p.net.discovery import Libp2pDiscovery
from legion_p2p.net.gossip import Libp2pGossip, make_pubsub
from legion_p2p.net.lan import Lan
from legion_p2p.net.limits import HANDSHAKE_TIMEOUT_S, MAX_CONNECTIONS, MAX_INBOUND_STREAMS, MAX_KNOWN_PEERS, NetConfig
from legion_p2p.net.listening import Listening
from legion_p2p.net.liveness import Liveness
from legion_p2p.net.messenger import Messenger
from legion_p2p.net.names import SystemNames
from legion_p2p.net.netem import UNTHROTTLED, Shaper, Throttling
from legion_p2p.net.patches import SturdyManager, replace_attributes
from legion_p2p.net.peer_score import REFUSED, Refusals
from legion_p2p.net.port_mapping import PortMapping
from legion_p2p.net.reachability import Libp2pReachability
from legion_p2p.net.reaching import Reaching
from legion_p2p.net.recall import Recall
from legion_p2p.net.relay import Relay
from legion_p2p.net.tally import Tally
from legion_p2p.net.transport import Listener, Sockets, Transport
from legion_p2p.observe.events import Events
from legion_p2p.observe.status import ServiceStatus

DEFAULTS = NetConfig()
LISTEN_ANYWHERE = ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")
NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)  # of a machine without IPv6, or without IPv4
NEGOTIATION_TIMEOUT_S = 15.0  # for a stream's protocol: giving up early on a busy machine only adds to its work
PEERSTORE_SWEEP_S = 300

logger = logging.getLogger("legion_p2p.net")


class Libp2pNetwork:
    """A peer's messenger, discovery and gossip. Made by `open_network`."""

    def __init__(self, identity: Identity, host: BasicHost, contacts: Contacts, listening: Listening) -> None:
        self.identity = identity
        self.messenger: Messenger
        self.reachability: Libp2pReachability
        self.discovery: Libp2pDiscovery
        self.gossip: Libp2pGossip
        self.bitswap: Bitswap | None = None
        """Serves blocks to any IPFS client; None where there is no store."""
        self.recall: Recall
        self.tally: Tally
        self._host = host
        self._contacts = contacts
        self._listening = listening
        self.reaching: Reaching
        self.port_mapping: PortMapping | None = None
        """Has the router forward a port; None where it was not asked to."""
        self.lan: Lan | None = None
        """Meets the peers of the LAN; None where it was not asked to."""
        self.relay: Relay | None = None
        """Relays for others; None where it was not asked to."""

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def dial_reports(self) -> Mapping[str, str | None]:
        """Of each initial peer: why the last attempt failed, or None while it is connected."""
        return self._contacts.reports

    def service(self) -> ServiceStatus:
        """What this node does for others."""
        tally, dht = self.tally, self.discovery.dht
        service = ServiceStatus(
            n_connections=tally.n_connections, n_refused=tally.n_refused, n_questions=tally.n_questions,
            n_records=dht.providers.n_records, n_known=len(self.recall),
        )  # fmt: skip
        if self.relay is None:
            return service
        ledger = self.relay.ledger
        return msgspec.structs.replace(
            service, n_reservations=ledger.n_reservations, n_circuits=ledger.n_circuits, n_relay_refusals=ledger.n_refused,
            relayed_bytes=ledger.relayed_bytes,
        )  # fmt: skip

    def addresses(self) -> tuple[str, ...]:
        """Where others may reach this peer, ending in /p2p/<id>; the most useful first, loopback last."""
        return tuple(f"{where}/p2p/{self.peer_id}" for where in self._listening.addresses())

    async def join(self) -> None:
        """Connect to the initial peers. Returns when one answers; failed and lost ones are retried in the background.

        Raises: NoContactError, if all of them failed at the first attempt. They are retried all the same until closing.
        """
        await self._contacts.join()

    def keep_contacts(self) -> None:
        """Connect to the initial peers in the background, again and again: for a node that is useful without them."""
        self._contacts.keep()


@dataclass(frozen=True)
class Tell:
    """What a person is told of the network, each in a line."""

    contact: Callable[[str], None] = lambda line: None
    """A contact was made or lost."""
    warning: Warn = logger.warning
    """What to change on this machine."""
    events: Events = field(default_factory=Events)
    """Takes the events `network.*`: the network changed, or went away."""


QUIET = Tell()


@asynccontextmanager
async def open_network(
    identity: Identity,
    *,
    listen: Sequence[str] = LISTEN_ANYWHERE,
    initial_peers: Sequence[str] = (),
    announce: Sequence[str] = (),
    config: NetConfig = DEFAULTS,
    throttling: Throttling = UNTHROTTLED,
    blocks: BlockSource | None = None,
    tell: Tell = QUIET,
) -> AsyncIterator[Libp2pNetwork]:
    """Listen, and yield the `Libp2pNetwork`. Nobody is contacted before `join()` or the first request.

    `listen`: multiaddrs without /p2p/; an empty sequence listens nowhere. `announce`: addresses to tell others instead of those
    found out here (a public address that is forwarded to this machine). `throttling`: limits on all traffic, and a link to
    emulate. `blocks`: served to any IPFS client that asks for them by their CIDs. Of several addresses to listen on, those of a
    family that this machine lacks are left out.

    Raises: UsageError, if an address cannot be one; NetworkError, if it cannot be listened on.
    """
    where_to = [_listen_address(address) for address in listen]
    announced = [_announced_address(address, identity.peer_id) for address in announce]
    initial = list(dict.fromkeys(parse_peer_address(address) for address in initial_peers))
    failure: BaseException | None = None
    shaper = Shaper(throttling.link, throttling.caps) if throttling != UNTHROTTLED else None
    try:
        async with trio.open_nursery() as nursery:
            if shaper is not None:
                shaper.start(nursery)
            parts = _Parts(identity, announced, config, nursery, shaper, tell)
            try:
                await parts.start(where_to)
                yield parts.network(identity, initial, blocks)
            except BaseException as error:
                # carried out of the nursery by hand: it would come out wrapped in an ExceptionGroup
                failure = error
            nursery.cancel_scope.cancel()
            parts.close_now()
    except Exception as group:
        if failure is None and parts.is_open:
            raise NetworkError(f"the network of this peer broke down: {group!r}") from group
        logger.debug("while leaving: %r", group)
    if failure is not None:
        raise failure


class _Parts:
    """libp2p's objects, put together."""

    def __init__(
        self, identity: Identity, announced: Sequence[str], config: NetConfig, nursery: trio.Nursery, shaper: Shaper | None,
        tell: Tell,
    ) -> None:  # fmt: skip
        self.config = config
        self.nursery = nursery
        self.sockets = Sockets(shaper)
        self.is_open = True
        self.book = AddressBook()
        self.refusals = Refusals()
        self.tally = Tally()
        self.shaper = shaper
        self.listening = Listening(announced)
        self.reaching: Reaching | None = None
        self.peerstore = PeerStore(max_peers=MAX_KNOWN_PEERS, max_records=MAX_KNOWN_PEERS)
        self.tell = tell
        self.names = SystemNames()
        self.scarcity = scarcity = Scarcity(descriptor_limit(), tell.warning, self.tally)
        self.transport = Transport(nursery, self.sockets, scarcity, self.names)
        self.host = _make_host(identity, self.transport, self.listening, self.peerstore)
        self.swarm = _swarm_of(self.host)
        self.liveness = Liveness(self.swarm, nursery)
        _guard(self.swarm, self.refusals, self.liveness, self.tally)
        self.dialer = Dialer(self.swarm, nursery, self.book, self.refusals)
        self.messenger = Messenger(
            self.host, nursery, self.dialer, self.book, self.refusals, self.listening.addresses, shaper,
            LaneParts(identity, self.sockets, self.scarcity.max_sockets) if config.bulk_lanes else None,
        )  # fmt: skip
        self.dht = Dht(self.host, config, self.book, self.tally)
        self.pubsub, self.router = make_pubsub(self.host, config)

    async def start(self, where_to: Sequence[str]) -> None:
        for service in (self.swarm, self.pubsub, self.router):
            manager = SturdyManager(service)
            service._manager = manager
            self.nursery.start_soon(self._run_service, manager)
            await manager.wait_started()
        await self.swarm.event_background_nursery_created.wait()
        await self.pubsub.wait_until_ready()
        lacking: list[NetworkError] = []
        for where in where_to:
            try:
                await self._listen(where)
            except NetworkError as failed:
                if not _lacks_family(failed):
                    raise
                lacking.append(failed)
        if lacking and not self.swarm.listeners:
            raise lacking[0]

    def close_now(self) -> None:
        """Free everything that the operating system knows of; sends nothing."""
        self.is_open = False
        for listener in self.swarm.listeners.values():
            assert isinstance(listener, Listener)  # `_listen` makes all of them
            listener.close_now()
        for scope in tuple(self.host._identify_tasks):
            scope.cancel()
        self.pubsub.seen_messages.stop()  # or its thread lives as long as the process
        self.sockets.close_all()

    async def _run_service(self, manager: SturdyManager) -> None:
        try:
            await manager.run()
        except Exception as error:
            logger.error("a service of libp2p ended: %r", error)

    async def _listen(self, where: str) -> None:
        listener = Listener(
            lambda stream: self._accept(stream, Multiaddr(where)),
            self.nursery, self.sockets, self.scarcity, self.messenger.accept_tls,
        )  # fmt: skip
        try:
            await listener.listen(Multiaddr(where))
        except OpenConnectionError as failed:
            raise NetworkError(f"cannot listen on {where}: {failed}") from failed
        self.swarm.listeners[where] = listener
        self.listening.bound.extend(str(address) for address in listener.get_addrs())

    async def _accept(self, stream: ReadWriteCloser, where: Multiaddr) -> None:
        """Authenticate an inbound connection, and stay until it ends.

        libp2p's own waits until the host ends: each connection that ever came in keeps its place, and after 300 of them none gets
        in.
        """
        raw = RawConnection(stream, False)
        end = raw.get_remote_address()
        expected = None if end is None or self.reaching is None else self.reaching.first_speaker(end[0])
        if expected is None:
            muxed = await self.swarm.upgrade_inbound_raw_conn(raw, where)
        else:
            muxed = (await self.swarm.upgrade_outbound_raw_conn(raw, ID.from_base58(expected))).muxed_conn
        await cast(Yamux, muxed).event_closed.wait()

    def network(
        self,
        identity: Identity,
        initial: Sequence[tuple[str, PeerId]],
        blocks: BlockSource | None,
    ) -> Libp2pNetwork:
        changes = self.changes = NetworkChanges(self.dialer, self.liveness, self._look, self.tell.events)
        contacts = Contacts(
            self.dialer, self.refusals, self.nursery, initial, changes, self.config, self.names, self.tell.contact
        )
        network = Libp2pNetwork(identity, self.host, contacts, self.listening)
        network.messenger = self.messenger
        reaching = self.reaching = Reaching(self, network.messenger)
        network.reaching, network.reachability, network.relay = reaching, reaching.reachability, reaching.relay
        network.discovery = Libp2pDiscovery(network.messenger, self.dht, self.book, self.config, self.listening.addresses)
        reaching.use(network.discovery)
        network.gossip = Libp2pGossip(self.pubsub, self.nursery, network.messenger.report)
        network.tally = self.tally
        network.recall = Recall(self.dht, self.book, self.peerstore, network.messenger.connected)
        if blocks is not None:
            network.bitswap = Bitswap(self.host, self.nursery, blocks, network.messenger.report)
        for where, peer in initial:
            self.book.add(peer, (where,))
        self.liveness.closed.add(network.messenger.drop_lanes)
        changes.changed.add(lambda change: network.discovery.renew())
        changes.regained.add(lambda peer: network.gossip.greet_again())
        tasks = [
            *network.discovery.tasks(),
            *reaching.tasks(),
            network.gossip.keep_registered,
            self._sweep,
            self.sockets.watch_packets,
            changes.watch_forever,
        ]
        if self.config.port_mapping:
            network.port_mapping = PortMapping(self.listening, changes, self.tell.events)
            network.port_mapping.opened.add(lambda port: reaching.own_reach.finder.opened())
            tasks.append(network.port_mapping.run_forever)
        if self.config.lan:
            network.lan = Lan(self.dialer, self.book, self.listening, changes)
            tasks.append(network.lan.run_forever)
        for task in tasks:
            self.nursery.start_soon(self._run_for_ever, task)
        return network

    def _look(self) -> Sight:
        return Sight(
            now=trio.current_time(),
            running_on=running_clock(),
            hosts=frozenset(self.listening.look()),
            received_bytes=self.sockets.received_bytes(),
            n_connections=self.liveness.n_connections(),
        )

    async def _run_for_ever(self, task: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await task()
            except Exception:
                if self.is_open:
                    logger.exception("%s failed, and begins again", task.__qualname__)
            await trio.sleep(1.0)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(PEERSTORE_SWEEP_S)
            self.peerstore._cleanup_expired_records()


def _make_host(identity: Identity, transport: Transport, listening: Listening, peerstore: PeerStore) -> BasicHost:
    key_pair = create_new_key_pair(identity.seed)
    assert str(generate_peer_id_from(key_pair)) == identity.peer_id
    host = new_host(
        key_pair=key_pair,
        # Noise and yamux only: the default also offers plaintext
        sec_opt={NOISE: Noise(key_pair, noise_privkey=create_noise_key_pair().private_key)},
        muxer_opt={TProtocol(YAMUX): Yamux},
        peerstore_opt=peerstore,
        transports=[transport],
        disable_identify_address_discovery=True,
        connection_config=ConnectionConfig(
            max_connections=MAX_CONNECTIONS,
            high_watermark=MAX_CONNECTIONS,
            # no dialing unasked
            min_connections=0,
            low_watermark=0,
            inbound_upgrade_timeout=HANDSHAKE_TIMEOUT_S,
            outbound_upgrade_timeout=HANDSHAKE_TIMEOUT_S,
            outbound_stream_protocol_negotiation_timeout=NEGOTIATION_TIMEOUT_S,
            inbound_stream_protocol_negotiation_timeout=NEGOTIATION_TIMEOUT_S,
        ),
    )
    assert isinstance(host, BasicHost)
    replace_attributes(host, get_addrs=lambda: listening.multiaddrs(identity.peer_id))
    swarm = _swarm_of(host)
    swarm.retry_config = RetryConfig(max_retries=0)
    # limits per IP address and per minute that a fleet behind one NAT exceeds, and that leak; ours are in legion_p2p.net.limits
    swarm.set_resource_manager(None)
    return host


def _swarm_of(host: BasicHost) -> Swarm:
    swarm = host.get_network()
    assert isinstance(swarm, Swarm)  # what `new_host` makes where no QUIC is asked for
    return swarm


def _guard(swarm: Swarm, refusals: Refusals, liveness: Liveness, tally: Tally) -> None:
    """Put our own checks in front of the swarm's two entries: connections and streams."""
    # libp2p's auto-connector dials every peer that it has heard of, up to 256 connections, whatever its configuration says, and
    # never forgets one that has left
    replace_attributes(
        swarm.auto_connector, start=_nothing, stop=_nothing, maybe_connect=_nothing, run_background_task=_nothing,
        record_disconnect=lambda peer_id: None,
    )  # fmt: skip
    n_streams: dict[object, int] = {}
    handle = swarm.common_stream_handler
    add_conn = swarm.add_conn

    async def guarded_stream_handler(stream: INetStream) -> None:
        # an exception out of here would end the host (LIBP2P.md, 1), and a stranger may open streams without end
        peer = stream.muxed_conn.peer_id
        n_streams[peer] = n_streams.get(peer, 0) + 1
        try:
            if n_streams[peer] <= MAX_INBOUND_STREAMS:
                await handle(stream)
                return
            logger.debug("more than %d streams of %s", MAX_INBOUND_STREAMS, peer)
            await stream.reset()
        except Exception as error:
            logger.debug("a stream of %s: %r", peer, error)
            try:
                await stream.reset()
            except Exception as again:
                logger.debug("resetting it: %r", again)
        finally:
            n_streams[peer] -= 1
            if not n_streams[peer]:
                del n_streams[peer]

    async def guarded_add_conn(muxed_conn: IMuxedConn, direction: str = "unknown") -> SwarmConn:
        if refusals.is_refused(PeerId(str(muxed_conn.peer_id))):
            tally.n_refused += 1
            await cast(Yamux, muxed_conn).secured_conn.close()
            raise SwarmException(f"not accepted: {REFUSED}")
        tally.n_connections += 1
        added = await add_conn(muxed_conn, direction)
        liveness.check_older(muxed_conn)
        return added

    async def notify(method: str, *args: object) -> None:
        # nothing here listens for streams, and libp2p starts three tasks for each one that is opened or closed
        if method not in ("opened_stream", "closed_stream"):
            await notify_all(method, *args)

    notify_all = swarm._notify
    replace_attributes(swarm, _notify=notify, common_stream_handler=guarded_stream_handler, add_conn=guarded_add_conn)


def _lacks_family(failed: NetworkError) -> bool:
    """Whether an address could not be listened on because this machine has no such addresses."""
    cause = failed.__cause__
    return cause is not None and isinstance(cause.__cause__, OSError) and cause.__cause__.errno in NO_SUCH_FAMILY


async def _nothing(*_: object) -> None:
    """In place of what libp2p would do unasked."""


def _listen_address(address: str) -> str:
    where, peer = split_address(address)
    if peer is not None or where.split("/")[1].startswith("dns"):
        raise UsageError(f"{address!r} cannot be listened on; the form is /ip4/HOST/tcp/PORT")
    return where


def _announced_address(address: str, me: PeerId) -> str:
    where, peer = split_address(address)
    if peer not in (None, me):
        raise UsageError(f"{address!r} cannot be announced: this peer is {me}")
    if where.endswith("/tcp/0"):
        raise UsageError(f"{address!r} cannot be announced: port 0 cannot be dialed")
    return where
