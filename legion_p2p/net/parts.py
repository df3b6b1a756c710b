"""The parts of a peer's network, put together: libp2p's objects, and what listens, dials and looks after them."""

import errno
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.stream_muxer.yamux.yamux import Yamux
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.connectivity import Sight
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.errors import NetworkError
from legion_p2p.net.accepting import Scarcity, Warn, descriptor_limit
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.bitswap import Bitswap, BlockSource
from legion_p2p.net.bulk_lanes import LaneParts
from legion_p2p.net.changes import NetworkChanges
from legion_p2p.net.contacts import Contacts
from legion_p2p.net.dht import Dht
from legion_p2p.net.dialer import Dialer
from legion_p2p.net.discovery import Libp2pDiscovery
from legion_p2p.net.gossip import Libp2pGossip, make_pubsub
from legion_p2p.net.guards import guard
from legion_p2p.net.lan import Lan
from legion_p2p.net.libp2p_host import make_host, swarm_of
from legion_p2p.net.limits import MAX_KNOWN_PEERS, NetConfig
from legion_p2p.net.listener import Listener
from legion_p2p.net.listening import Listening
from legion_p2p.net.liveness import ConnectionLiveness
from legion_p2p.net.messenger import Libp2pMessenger
from legion_p2p.net.names import SystemNames
from legion_p2p.net.netem import Shaper
from legion_p2p.net.network import Libp2pNetwork
from legion_p2p.net.patches import SturdyManager
from legion_p2p.net.path_probe import PathProbe
from legion_p2p.net.peer_score import Refusals
from legion_p2p.net.port_mapping import PortMapping
from legion_p2p.net.reaching import Reaching
from legion_p2p.net.recall import Recall
from legion_p2p.net.sockets import Sockets
from legion_p2p.net.speed import SpeedService
from legion_p2p.net.tally import Tally
from legion_p2p.net.transport import Transport
from legion_p2p.observe.clocks import running_clock
from legion_p2p.observe.events import Events

NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)  # of a machine without IPv6, or without IPv4
PEERSTORE_SWEEP_S = 300
MAX_OTHER_VERSIONS = 64  # peers of another version that are told of once; more come with a new release, and repeat themselves

logger = logging.getLogger("legion_p2p.net")


@dataclass(frozen=True)
class Tell:
    """Messages about the network for a person, one line each."""

    contact: Callable[[str], None] = lambda line: None
    """A contact was made or lost."""
    warning: Warn = logger.warning
    """What to change on this machine."""
    events: Events = field(default_factory=Events)
    """Takes the events `network.*`: the network changed, or went away."""


QUIET = Tell()


class NetworkParts:
    """libp2p's objects, put together."""

    def __init__(
        self, identity: Identity, announced: Sequence[str], config: NetConfig, nursery: trio.Nursery, shaper: Shaper,
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
        self.host = make_host(identity, self.transport, self.listening, self.peerstore, config.network_key)
        self.swarm = swarm_of(self.host)
        self.liveness = ConnectionLiveness(self.swarm, nursery)
        guard(self.swarm, self.refusals, self.liveness, self.tally)
        self.dialer = Dialer(self.swarm, nursery, self.book, self.refusals)
        self.messenger = Libp2pMessenger(
            self.host, nursery, self.dialer, self.book, self.refusals, self.listening.addresses, shaper,
            LaneParts(identity, self.sockets, self.scarcity.max_sockets) if config.bulk_lanes else None,
        )  # fmt: skip
        self._other_versions: BoundedMap[PeerId, None] = BoundedMap(MAX_OTHER_VERSIONS)
        self.messenger.other_version.add(self._note_version)
        self.dht = Dht(self.host, config, self.book, self.tally)
        self.pubsub, self.router = make_pubsub(self.host, config)

    def _note_version(self, noticed: tuple[PeerId, str]) -> None:
        """Tell the user, once for each peer; the other side tells its own."""
        peer, text = noticed
        if peer not in self._other_versions:
            self._other_versions[peer] = None
            self.tell.events.error("network.other_version", f"{peer} cannot be talked to: {text}", peer=peer)

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
        network.shaper = self.shaper
        network.volume = self.sockets.volume
        reaching = self.reaching = Reaching(self, network.messenger)
        network.reaching, network.reachability, network.relay = reaching, reaching.reachability, reaching.relay
        network.discovery = Libp2pDiscovery(network.messenger, self.dht, self.book, self.config, self.listening.addresses)
        reaching.use(network.discovery)
        network.gossip = Libp2pGossip(self.pubsub, self.nursery, network.messenger.report)
        network.tally = self.tally
        network.recall = Recall(self.dht, self.book, self.peerstore, network.messenger.connected)
        probe = PathProbe(network.messenger)
        contacts.connected.add(lambda peer: self.nursery.start_soon(probe.probe, peer))
        SpeedService(self.host, self.config.speed_tests, network.messenger.is_busy, network.messenger.report)
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
            except Exception:  # a fault in one task must not end the others, nor this one for good
                if self.is_open:
                    logger.exception("%s failed, and begins again", task.__qualname__)
            await trio.sleep(1.0)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(PEERSTORE_SWEEP_S)
            self.peerstore._cleanup_expired_records()


def _lacks_family(failed: NetworkError) -> bool:
    """Whether an address could not be listened on because this machine has no such addresses."""
    cause = failed.__cause__
    return cause is not None and isinstance(cause.__cause__, OSError) and cause.__cause__.errno in NO_SUCH_FAMILY
