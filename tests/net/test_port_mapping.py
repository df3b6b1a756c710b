"""Keeping a port forwarded while a peer lives: in virtual time, with routers that do as they are told or not."""

from collections.abc import AsyncGenerator

import pytest
import trio

from legion_p2p.core.connectivity import AddressesChanged
from legion_p2p.core.observers import Observers
from legion_p2p.core.port_lease import LIFETIME_S, Forwarding
from legion_p2p.errors import NetworkError
from legion_p2p.net import networks
from legion_p2p.net.networks import gateways
from legion_p2p.net.port_mapping import MappingOutcome, PortMapping
from legion_p2p.observe.events import Events

HERE = "192.168.1.5"


class Router:
    """Forwards ports, while it is there."""

    speaks = "PCP"

    def __init__(self, offset: int = 0) -> None:
        self.is_there = True
        self.asked: list[tuple[float, str, int, int]] = []
        self.ended: list[int] = []
        self._offset = offset

    async def forward(self, client: str, port: int, outside: int) -> Forwarding:
        await trio.sleep(0.1)
        self.asked.append((trio.current_time(), client, port, outside))
        if not self.is_there:
            raise NetworkError("no answer")
        return Forwarding(outside + self._offset, float(LIFETIME_S))

    async def end(self, client: str, port: int, outside: int) -> None:
        await trio.sleep(0.1)
        self.ended.append(outside)


class World:
    """A peer that listens, and the routers around it."""

    def __init__(self, *routers: Router, here: tuple[tuple[str, int], ...] = ((HERE, 4710),)) -> None:
        self.routers = routers
        self.here = (("2001:db8::5", 4710), *here)
        self.is_announced = False
        self.mapped = tuple
        self.changed: Observers = Observers()
        self.told: list[str] = []
        events = Events()
        events.add_sink(lambda event: self.told.append(event.fields["text"]))
        self.mapping = PortMapping(self, self, events, self.routers_of)

    def near(self) -> tuple[tuple[str, int], ...]:
        return self.here

    async def routers_of(self, client: str) -> AsyncGenerator[Router, None]:
        for router in self.routers:
            yield router


async def test_a_port_is_forwarded_by_the_router_that_does_it_renewed_and_taken_back(autojump_clock, nursery):
    mute, router = Router(), Router(offset=1)
    mute.is_there = False
    world = World(mute, router)
    scope = trio.CancelScope()
    nursery.start_soon(run_in, scope, world.mapping)
    assert await world.mapping.outcome() == MappingOutcome(4711, "PCP")
    await trio.sleep(5)
    assert world.mapping.ports() == world.mapped() == (4711,)

    await trio.sleep(4 * 3600)
    assert world.mapping.ports() == (router.asked[-1][3] + 1,)
    assert len(mute.asked) == 1
    assert len(router.asked) > 4 * 3600 / LIFETIME_S
    assert {asked[1:3] for asked in router.asked} == {(HERE, 4710)}

    scope.cancel()
    await trio.sleep(2)

    assert router.ended == [router.asked[-1][3] + 1]


async def run_in(scope: trio.CancelScope, mapping: PortMapping) -> None:
    with scope:
        await mapping.run_forever()


async def test_a_router_that_gives_the_same_port_again_is_told_of_once(autojump_clock, nursery):
    world = World(Router())
    nursery.start_soon(world.mapping.run_forever)
    await trio.sleep(24 * 3600)

    assert world.told == ["the router forwards TCP port 4710 to this peer"]


async def test_without_a_router_that_forwards_nothing_is_said_and_it_is_asked_ever_more_rarely(autojump_clock, nursery, capfd):
    router = Router()
    router.is_there = False
    world = World(router)
    nursery.start_soon(world.mapping.run_forever)
    await trio.sleep(24 * 3600)

    assert world.mapping.ports() == () and world.told == [] and router.ended == []
    assert 24 <= len(router.asked) <= 40
    assert capfd.readouterr() == ("", "")


async def test_a_router_that_goes_away_keeps_the_port_only_as_long_as_it_granted(autojump_clock, nursery):
    router = Router()
    world = World(router)
    nursery.start_soon(world.mapping.run_forever)
    await trio.sleep(5)
    router.is_there = False

    await trio.sleep(LIFETIME_S - 60)
    assert world.mapping.ports() == (4710,)
    await trio.sleep(120)
    assert world.mapping.ports() == ()

    router.is_there = True
    await trio.sleep(3600)
    assert world.mapping.ports() == (4710,)


async def test_in_another_network_the_new_router_is_asked_at_once(autojump_clock, nursery):
    router = Router()
    world = World(router)
    nursery.start_soon(world.mapping.run_forever)
    await trio.sleep(5)

    world.here = (("10.0.0.7", 4710),)
    world.changed.tell(AddressesChanged((HERE,), ("10.0.0.7",)))
    await trio.sleep(2)

    assert router.ended == [4710]
    assert router.asked[-1][1] == "10.0.0.7"
    assert world.mapping.ports() == (4710,)


@pytest.mark.parametrize(("here", "is_announced"), [((), False), ((("11.1.0.1", 4710),), False), (((HERE, 4710),), True)])
async def test_a_peer_that_no_router_stands_before_or_that_is_announced_by_hand_asks_none(
    autojump_clock, nursery, here, is_announced
):
    router = Router()
    world = World(router, here=here)
    world.is_announced = is_announced
    nursery.start_soon(world.mapping.run_forever)
    await trio.sleep(3600)

    assert router.asked == []


def test_the_gateway_is_the_default_route_that_is_near_or_else_the_first_address_of_the_network(tmp_path, monkeypatch):
    table = tmp_path / "route"
    table.write_text(
        "Iface\tDestination\tGateway \tFlags\n"
        "eth0\t00000000\tFE01A8C0\t0003\n"
        "tun0\t00000000\t0100000A\t0003\n"
        "eth0\t0001A8C0\t00000000\t0001\n"
    )
    monkeypatch.setattr(networks, "ROUTES", str(table))
    monkeypatch.setattr(networks, "own_networks", lambda: tuple(map(networks.ip_network, ("192.168.1.0/24", "10.8.0.2/32"))))

    assert gateways(HERE) == ("192.168.1.254",)
    assert gateways("10.8.0.2") == ()

    table.unlink()
    assert gateways(HERE) == ("192.168.1.1",)

    table.write_text("\xff garbage\n a b\n")
    assert gateways(HERE) in ((), ("192.168.1.1",))
