"""What happens to a peer in a run: it is suspended, it comes back from an absence, it moves to another region."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.contact import Bandwidth
from legion_p2p.core.presence import Stage
from legion_p2p.observe.events import Event, Events
from legion_p2p.services.run.gate import OwnershipGate
from legion_p2p.services.run.moving import MoveService
from legion_p2p.services.run.returning import RETURN_S, ReturnService
from legion_p2p.services.run.weight import OwnWeight


class Members:
    """Of whom `n_ready` others are ready."""

    def __init__(self, done: list[str]) -> None:
        self.done = done
        self.absence = SimpleNamespace(was_away=False, noticed=Notify())
        self.n_ready = 1
        self.announcer = self.roster = self
        self.table = SimpleNamespace(incarnation=5)

    def announce_soon(self) -> None:
        self.done.append("announce")

    async def enter(self) -> None:
        self.done.append("ask who is there")

    def in_region(self) -> list[Any]:
        return [SimpleNamespace(announcement=SimpleNamespace(ready=i < self.n_ready)) for i in range(3)]

    def go_away(self) -> None:
        self.absence.was_away = True
        self.absence.noticed.notify()


class Shards:
    """Notes what it is told to do; closing all rounds takes a second."""

    region = "here"

    def __init__(self, done: list[str]) -> None:
        self.done = done
        self.while_syncing: Callable[[], None] = lambda: None

    def on_members_changed(self) -> None:
        self.done.append("look")

    async def own_nothing(self) -> None:
        await trio.sleep(1.0)
        self.done.append("own nothing")

    async def sync_all(self) -> None:
        self.while_syncing()
        self.done.append("catch up")

    def move(self, label: str) -> None:
        self.done.append(f"be in {label}")
        self.region = label

    async def adopt_region(self) -> None:
        self.done.append("adopt")


class Peer:
    """The services under test, over fakes that share one list of what was done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.events = Events()
        self.log: list[Event] = []
        self.events.add_sink(self.log.append)
        self.members: Any = Members(self.done)
        self.shards: Any = Shards(self.done)
        self.gate = OwnershipGate(self.members, self.shards)
        self.gate.presence.joined()
        self.ctx: Any = SimpleNamespace(run="run", events=self.events)

    def names(self) -> list[str]:
        return [event.name for event in self.log]


async def test_a_suspended_peer_owns_nothing_within_the_block_and_owns_again_after_it(autojump_clock: object) -> None:
    peer = Peer()

    async with peer.gate.suspended():
        assert peer.gate.presence.stage is Stage.SUSPENDED
        assert peer.done == ["announce", "look", "own nothing"]
    assert peer.gate.presence.ready
    assert peer.done[3:] == ["announce", "look"]


async def test_a_peer_that_leaves_while_it_is_suspended_does_not_own_again(autojump_clock: object) -> None:
    peer = Peer()

    async with peer.gate.suspended():
        peer.gate.presence.leave()
    assert not peer.gate.presence.ready


async def test_two_that_suspend_a_peer_take_turns(autojump_clock: object) -> None:
    peer, inside, most = Peer(), 0, 0

    async def suspend() -> None:
        nonlocal inside, most
        async with peer.gate.suspended():
            inside += 1
            most = max(most, inside)
            await trio.sleep(1)
            inside -= 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(suspend)
        nursery.start_soon(suspend)
    assert most == 1 and peer.gate.presence.ready


async def test_a_peer_that_was_away_catches_up_before_it_owns_again(autojump_clock: object) -> None:
    peer = Peer()
    service = ReturnService(peer.ctx, peer.members, peer.shards, peer.gate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run_forever)
        await trio.sleep(1)
        began = trio.current_time()
        peer.members.go_away()
        await trio.testing.wait_all_tasks_blocked()

        assert not peer.gate.presence.ready
        while not peer.gate.presence.ready:  # noqa: ASYNC110
            await trio.sleep(0.1)
        assert trio.current_time() - began == pytest.approx(1.0 + RETURN_S, abs=0.2)
        nursery.cancel_scope.cancel()

    assert peer.done == ["announce", "look", "own nothing", "catch up", "announce", "look"]
    assert peer.members.table.incarnation == 6  # the others believe it again
    assert peer.names() == ["run.rejoining", "run.rejoined"]


async def test_a_peer_that_was_away_where_nobody_else_is_ready_goes_on_as_it_is(autojump_clock: object) -> None:
    peer = Peer()
    peer.members.n_ready = 0
    service = ReturnService(peer.ctx, peer.members, peer.shards, peer.gate)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run_forever)
        await trio.sleep(1)
        peer.members.go_away()
        await trio.sleep(10)
        nursery.cancel_scope.cancel()

    assert peer.done == [] and not peer.members.absence.was_away and peer.gate.presence.ready


async def test_a_peer_that_is_away_again_while_it_returns_returns_once_more(autojump_clock: object) -> None:
    peer = Peer()
    service = ReturnService(peer.ctx, peer.members, peer.shards, peer.gate)

    def away_once_more() -> None:
        peer.shards.while_syncing = lambda: None
        peer.members.go_away()

    peer.shards.while_syncing = away_once_more
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run_forever)
        peer.members.go_away()
        await trio.sleep(20)
        nursery.cancel_scope.cancel()

    assert peer.names() == ["run.rejoining", "run.rejoined"] * 2
    assert peer.gate.presence.ready


class Places:
    """Looks at which the region is each of `labels`, the last one from then on."""

    def __init__(self, *labels: str) -> None:
        self.labels = list(labels)

    async def next_look(self) -> str:
        await trio.sleep(1)
        return self.labels.pop(0) if len(self.labels) > 1 else self.labels[0]


class Connection:
    """A messenger whose upload is known."""

    def __init__(self, upload_bps: float | None) -> None:
        self.upload_bps = upload_bps

    def bandwidth(self) -> Bandwidth:
        return Bandwidth(upload_bps=self.upload_bps)


async def moved(peer: Peer, *labels: str, weight: OwnWeight | None = None) -> None:
    forgetting: Any = SimpleNamespace(forget=lambda: peer.done.append("forget other regions"))
    regions: Any = Places(*labels)
    weight = weight or OwnWeight(1.0, Connection(None))  # type: ignore[arg-type]
    service = MoveService(peer.ctx, peer.members, peer.shards, regions, forgetting, peer.gate, weight)
    with trio.move_on_after(20):
        await service.run_forever()


async def test_a_peer_moves_with_nothing_owned_and_owns_again_when_it_holds_what_is_common_there(autojump_clock: object) -> None:
    peer = Peer()

    await moved(peer, "here", "there")

    assert peer.done == [
        "announce", "look", "own nothing", "be in there", "forget other regions", "ask who is there", "announce", "look", "adopt",
        "announce", "look",
    ]  # fmt: skip
    assert peer.names() == ["region.moved"]
    assert (peer.log[0].fields["before"], peer.log[0].fields["after"]) == ("here", "there")
    assert peer.gate.presence.ready


async def test_a_peer_whose_region_stays_the_same_does_nothing(autojump_clock: object) -> None:
    peer = Peer()

    await moved(peer, "here")

    assert peer.done == [] and peer.log == []


async def test_each_look_measures_the_weight_where_it_is_automatic(autojump_clock: object) -> None:
    measured = OwnWeight("auto", Connection(40e6))  # type: ignore[arg-type]
    assert measured.value == 1.0

    await moved(Peer(), "here", weight=measured)

    assert measured.value == 4.0


def test_a_weight_that_the_user_set_is_announced_whatever_is_measured() -> None:
    weight = OwnWeight(2.5, Connection(40e6))  # type: ignore[arg-type]
    weight.measure()

    assert weight.value == 2.5
    assert OwnWeight(0.0, Connection(40e6)).value == 0.0  # type: ignore[arg-type]


def test_while_nothing_is_measured_an_automatic_weight_is_one() -> None:
    weight = OwnWeight("auto", Connection(None))  # type: ignore[arg-type]
    weight.measure()

    assert weight.value == 1.0
