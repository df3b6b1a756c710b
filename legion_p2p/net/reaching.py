"""All that makes a peer reachable, put together: relays, dials back, punched holes."""

from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Protocol

import trio
from libp2p.host.basic_host import BasicHost
from libp2p.network.swarm import Swarm

from legion_p2p.core.identity import PeerId
from legion_p2p.core.reach import Reach
from legion_p2p.core.reach_finder import ReachVerdict
from legion_p2p.core.relay_ledger import RelayLedger
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.changes import NetworkChanges
from legion_p2p.net.circuits import RELAY_KEY, Circuits
from legion_p2p.net.dht import Dht
from legion_p2p.net.dialer import Dialer
from legion_p2p.net.discovery import Libp2pDiscovery
from legion_p2p.net.ends import End
from legion_p2p.net.limits import NetConfig
from legion_p2p.net.listening import Listening
from legion_p2p.net.messenger import Libp2pMessenger
from legion_p2p.net.peer_score import Refusals
from legion_p2p.net.punching import Punching
from legion_p2p.net.reach_service import Doors, OwnReachService
from legion_p2p.net.reachability import ConnectionMeter, Libp2pReachability
from legion_p2p.net.relay import Relay
from legion_p2p.net.transport import Transport

OFFER_S = 5.0  # how soon a peer that has become a relay is found as one


class HostParts(Protocol):
    """What of a host this needs: net/parts.py has it."""

    config: NetConfig
    nursery: trio.Nursery
    host: BasicHost
    swarm: Swarm
    transport: Transport
    dialer: Dialer
    dht: Dht
    book: AddressBook
    refusals: Refusals
    listening: Listening
    changes: NetworkChanges


class Reaching:
    """Of one host."""

    def __init__(self, parts: HostParts, messenger: Libp2pMessenger) -> None:
        config = parts.config
        self._listening = parts.listening
        self._config = config
        self._dht = parts.dht
        self._discovery: Libp2pDiscovery | None = None
        self._circuits = Circuits(parts.host, parts.swarm, parts.dialer, parts.book, parts.refusals)
        self._listening.circuits = self._circuits.addresses
        self.relay: Relay | None = None
        if config.relay is not None:
            self.relay = Relay(parts.host, RelayLedger(config.relay), parts.dialer.direct, unproven=config.relay_unproven)
        measured = ConnectionMeter(messenger.rtt_s, messenger.rate_bps)
        self.reachability = Libp2pReachability(parts.dialer, parts.changes, measured, self._circuits, self.relay)
        doors = Doors(self._listening.ports, self._listening.forwarded)
        self.own_reach = OwnReachService(parts.swarm, parts.transport, parts.dialer, messenger, doors)
        self.own_reach.changed.add(self._conclude)
        self._punching = Punching(
            parts.swarm, parts.dialer, messenger, self.own_reach, self._listening.near, self._listening.source, parts.nursery
        )
        parts.dialer.source = self._source

    def use(self, discovery: Libp2pDiscovery) -> None:
        """Be found, and find others, through this."""
        self._discovery = discovery
        self._circuits.find = lambda: discovery.find(RELAY_KEY)

    def first_speaker(self, host: str) -> PeerId | None:
        """See net/punching.py."""
        return self._punching.first_speaker(host)

    def tasks(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """What has to run until the end."""
        tasks: list[Callable[[], Awaitable[None]]] = [self.own_reach.keep, self._punching.keep]
        if not self._config.relay_unproven:  # nodes that relay from the start can be dialed, or are of no use
            tasks.append(self._circuits.keep)
        if self.relay is not None:
            tasks += [self.relay.forget_gone, self._offer]
        return tuple(tasks)

    async def _offer(self) -> None:
        """Be found as a relay while this is one."""
        is_offered = False
        while True:
            if self._discovery is not None and self.relay is not None and self.relay.enabled is not is_offered:
                is_offered = self.relay.enabled
                await (self._discovery.provide(RELAY_KEY) if is_offered else self._discovery.withdraw(RELAY_KEY))
            await trio.sleep(OFFER_S)

    def _conclude(self, verdict: ReachVerdict) -> None:
        self._listening.proven = tuple(a for a in verdict.proven if a not in self._listening.bound)
        self.reachability.concluded(verdict)
        # a node that relays from the start is there to be asked
        if self._config.dht_server and not self._config.relay_unproven and verdict.reach is not Reach.UNKNOWN:
            self._dht.serve(verdict.reach is Reach.PUBLIC)

    def _source(self, address: str) -> End | None:
        """Peers that cannot be dialed, as far as they know, dial others from the port that they listen on: where that is seen
        outside is what holes are punched to. It keeps the router's mapping of that port alive, too. Peers that may be behind an
        address-restricted NAT do not: whoever they dial so can tell them nothing about it.
        """
        if self.reachability.own().reach is Reach.PUBLIC or self.own_reach.finder.is_in_doubt(trio.current_time()):
            return None
        family, host = address.split("/")[1:3]
        if family.startswith("dns"):
            return {"dns4": self._listening.source("0.0.0.0"), "dns6": self._listening.source("::")}.get(family)
        return self._listening.source(host) if ip_address(host).is_global else None
