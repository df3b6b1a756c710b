"""Letting the router forward a port to this peer, where it does that for whoever asks.

A forwarded port is no more than a candidate: it counts for others only when peers of other networks have dialed it. Where a
router forwards nothing, nothing is said; most do not, and there are other ways.
"""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from ipaddress import ip_address

import msgspec
import trio

from legion_p2p.core.connectivity import AddressesChanged, Change
from legion_p2p.core.observers import Observers
from legion_p2p.core.port_lease import PortLease
from legion_p2p.errors import DecodeError, NetworkError
from legion_p2p.net.changes import NetworkChanges
from legion_p2p.net.listening import Listening
from legion_p2p.net.networks import gateways, is_elsewhere, own_networks
from legion_p2p.net.routers import Gateway, Router, find_upnp
from legion_p2p.observe.events import Events

END_S = 1.0  # for taking the port back when this peer leaves

Routers = Callable[[str], AsyncGenerator[Router, None]]

log = logging.getLogger("legion_p2p.net")


class MappingOutcome(msgspec.Struct, frozen=True):
    """What came of asking routers for a port."""

    port: int | None
    """That is forwarded; None: none is."""
    by: str = ""
    """The protocol by which a router does it."""
    is_needed: bool = True
    """False: this machine listens at no private IPv4 address, so there is nothing to forward."""


class PortMapping:
    """The port that a router forwards to one peer."""

    def __init__(self, listening: Listening, changes: NetworkChanges, events: Events, routers: Routers | None = None) -> None:
        """`routers`: those that may forward a port to an address of this machine, the likeliest first."""
        self.opened: Observers[int] = Observers()
        """Told of each other port that the router forwards."""
        self._listening = listening
        self._events = events
        self._routers = routers or routers_of
        self._router: Router | None = None
        self._lease = PortLease(trio.current_time())
        self._moved = trio.Event()
        self._outcome: MappingOutcome | None = None
        self._asked = trio.Event()
        listening.mapped = self.ports
        changes.changed.add(self._note)

    def ports(self) -> tuple[int, ...]:
        """Those of the router that lead to this peer, as it says."""
        self._lease.expire(trio.current_time())
        return () if self._lease.held is None else (self._lease.held.port,)

    async def outcome(self) -> MappingOutcome:
        """What came of asking all routers, as soon as that is over for the first time."""
        await self._asked.wait()
        assert self._outcome is not None
        return self._outcome

    def _came_of_it(self, outcome: MappingOutcome) -> None:
        self._outcome = outcome
        self._asked.set()

    async def run_forever(self) -> None:
        while True:
            self._moved = trio.Event()
            inside = self._inside()
            if inside is None:
                self._came_of_it(MappingOutcome(None, is_needed=False))
                await self._moved.wait()
                continue
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._keep, *inside)
                    await self._moved.wait()
                    nursery.cancel_scope.cancel()
            finally:
                await self._end(*inside)
            self._lease.moved(trio.current_time())

    def _inside(self) -> tuple[str, int] | None:
        """The private IPv4 address and the port at which this peer listens; None where no router could lead there."""
        if not self._listening.is_announced:
            for host, port in self._listening.near():
                if ":" not in host and not ip_address(host).is_global:
                    return host, port
        return None

    async def _keep(self, client: str, port: int) -> None:
        while True:
            await trio.sleep_until(self._lease.next_deadline())
            await self._ask(client, port)

    async def _ask(self, client: str, port: int) -> None:
        wished = port if self._lease.held is None else self._lease.held.port
        known = [] if self._router is None else [self._router]
        for router in known:
            if await self._grants(router, client, port, wished):
                return
        async with aclosing(self._routers(client)) as others:
            async for router in others:
                if await self._grants(router, client, port, wished):
                    return
        self._router = None
        self._lease.refused(trio.current_time())
        self._came_of_it(MappingOutcome(None))

    async def _grants(self, router: Router, client: str, port: int, wished: int) -> bool:
        try:
            forwarding = await router.forward(client, port, wished)
        except (NetworkError, DecodeError) as refused:
            log.debug("no port is forwarded to %s: %s", client, refused)
            return False
        self._router = router
        self._came_of_it(MappingOutcome(forwarding.port, router.speaks))
        if self._lease.granted(forwarding, trio.current_time()):
            self.opened.tell(forwarding.port)
            self._events.emit("network.forwarded", text=f"the router forwards TCP port {forwarding.port} to this peer")
        return True

    async def _end(self, client: str, port: int) -> None:
        router, held = self._router, self._lease.held
        self._router = None
        if router is None or held is None:
            return
        with trio.CancelScope(deadline=trio.current_time() + END_S, shield=True):
            try:
                await router.end(client, port, held.port)
            except (NetworkError, DecodeError, OSError) as failed:
                log.debug("port %d was not taken back: %s", held.port, failed)

    def _note(self, change: Change) -> None:
        if isinstance(change, AddressesChanged):
            self._moved.set()


async def routers_of(client: str) -> AsyncGenerator[Router, None]:
    """Those that may forward a port to `client`: the gateway first, because it takes one packet to ask it."""
    for host in gateways(client):
        yield Gateway(host)
    networks = own_networks()
    async with aclosing(find_upnp(client, lambda host: not is_elsewhere(host, networks))) as devices:
        async for router in devices:
            yield router
