"""A peer's messenger, discovery and gossip, and what it tells of them."""

from collections.abc import Mapping

import msgspec
from libp2p.host.basic_host import BasicHost

from legion_p2p.core.caps import Caps
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.traffic_ledger import NetworkTraffic
from legion_p2p.net.bitswap import Bitswap
from legion_p2p.net.contacts import Contacts
from legion_p2p.net.discovery import Libp2pDiscovery
from legion_p2p.net.gossip import Libp2pGossip
from legion_p2p.net.lan import Lan
from legion_p2p.net.listening import Listening
from legion_p2p.net.messenger import Libp2pMessenger
from legion_p2p.net.netem import Shaper
from legion_p2p.net.port_mapping import PortMapping
from legion_p2p.net.reachability import Libp2pReachability
from legion_p2p.net.reaching import Reaching
from legion_p2p.net.recall import Recall
from legion_p2p.net.relay import Relay
from legion_p2p.net.speed import MeasuredSpeed, measure_speed
from legion_p2p.net.tally import Tally
from legion_p2p.net.volume import SocketVolume
from legion_p2p.observe.status import ServiceStatus


class Libp2pNetwork:
    """A peer's messenger, discovery and gossip. Made by `open_network`."""

    def __init__(self, identity: Identity, host: BasicHost, contacts: Contacts, listening: Listening) -> None:
        self.identity = identity
        self.messenger: Libp2pMessenger
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
        self.shaper: Shaper
        """Limits all its traffic."""
        self.volume: SocketVolume
        """What its sockets have moved."""

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

    def network_traffic(self) -> NetworkTraffic:
        """What it has sent and received beside requests, and in all."""
        return NetworkTraffic(self.messenger.meters.ledger, self.volume.counted())

    def addresses(self) -> tuple[str, ...]:
        """Where others may reach this peer, ending in /p2p/<id>; the most useful first, loopback last."""
        return tuple(f"{where}/p2p/{self.peer_id}" for where in self._listening.addresses())

    async def join(self) -> None:
        """Connect to the initial peers. Returns when one answers; failed and lost ones are retried in the background.

        Raises: NoContactError, if all of them failed at the first attempt. They are retried all the same until closing.
        """
        await self._contacts.join()

    async def measure_speed(self, peer: PeerId) -> MeasuredSpeed:
        """How fast this machine sends to a peer that it is connected with, and receives from it. Raises: NetworkError."""
        return await measure_speed(self._host, peer, self.messenger.rtt_s(peer) or 0.0)

    def limit(self, caps: Caps) -> None:
        """These limits on all traffic hold from now on. Lanes for bulk that went past the link are made again."""
        was_shaping = self.shaper.is_shaping
        self.shaper.limit(caps)
        if self.shaper.is_shaping and not was_shaping:
            self.messenger.drop_all_lanes()

    def keep_contacts(self) -> None:
        """Connect to the initial peers in the background, again and again: for a node that is useful without them."""
        self._contacts.keep()
