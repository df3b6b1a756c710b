"""Whole peers that find their regions by latency, in virtual time, over the real engine."""

from collections import defaultdict

import msgspec
import pytest
import trio

from legion_p2p.config import AUTO_REGION, PeerConfig
from legion_p2p.core import regions as core_regions
from legion_p2p.core.coordinates import Coordinate
from legion_p2p.core.identity import PeerId
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import Push, SyncRequest, Update, decode_request
from legion_p2p.errors import DecodeError
from legion_p2p.services.membership.location import RegionService
from legion_p2p.sim.network import World
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer

TOGETHER_S = 60.0
LOSSY = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", aggregation="mean", shard_elements=32, sync_every=2)
INSIDE_S, ACROSS_S = 0.0025, 0.06  # one way


@pytest.fixture
def distances_alone(monkeypatch):
    """Regions form by round trips, however long rounds are. Rounds here take two seconds, so that time passes quickly; beside
    them all places would be near."""
    monkeypatch.setattr(core_regions, "NEAR_SHARE", 0.0)


class Places:
    """Peers named after places, such as "east-1": near each other at one place, and far from all others."""

    def __init__(self, seed: int = 1) -> None:
        self.late_until = 0.0
        """Until then most trips take longer: the machines are busy."""
        self.at: dict[PeerId, str] = {}
        self.sent: dict[tuple[str, bool], int] = defaultdict(int)
        world = World(seed, delay_s=self.delay_s)
        self.swarm = Swarm(round=LOSSY, step_s=0.2, config=PeerConfig(region=AUTO_REGION), world=world)
        self.swarm.world.corrupt = self.watch

    def delay_s(self, a: PeerId, b: PeerId) -> float:
        late_s = 0.0
        if trio.current_time() < self.late_until and self.swarm.world.random.random() < 0.8:
            late_s = self.swarm.world.random.expovariate(1 / 0.08)
        return late_s + (INSIDE_S if self.at.get(a) == self.at.get(b) else ACROSS_S)

    def watch(self, source: PeerId, target: PeerId, data: bytes) -> bytes:
        """Count what kinds of requests pass within a place and between two."""
        try:
            message = decode_request(data)
        except DecodeError:  # a reply, or gossip
            return data
        if isinstance(message, Push | Update | SyncRequest):
            self.sent[type(message).__name__, self.at[source] != self.at[target]] += 1
        return data

    def start(self, name: str) -> SimPeer:
        self.at[self.swarm.identity(name).peer_id] = name.partition("-")[0]
        return self.swarm.start(name)

    async def add(self, name: str) -> None:
        await self.start(name).joined.wait()

    def found(self) -> dict[str, set[str]]:
        """The regions of the peers at each place."""
        regions: dict[str, set[str]] = defaultdict(set)
        for name, peer in self.swarm.peers.items():
            regions[self.at[self.swarm.identity(name).peer_id]].add(peer.engine.region)
        return regions

    def is_right(self) -> bool:
        """Everybody is with those of its place, and with nobody else."""
        found = list(self.found().values())
        return all(len(regions) == 1 for regions in found) and len(set.union(*found)) == len(found)


async def test_places_are_one_region_where_rounds_take_far_longer_than_the_way_between_them(autojump_clock):
    places = Places()
    async with places.swarm as swarm:
        for name in ("east-1", "west-1", "east-2", "west-2"):
            await places.add(name)

        await swarm.until(lambda: len(set.union(*places.found().values())) == 1, TOGETHER_S, "they are in one region")
        await trio.sleep(10)

        assert len(set.union(*places.found().values())) == 1
        assert places.sent["Push", True] > 0  # they train in it together


async def test_peers_of_three_places_find_their_regions_and_train_there(autojump_clock, distances_alone):
    places = Places()
    async with places.swarm as swarm:
        for name in ("east-1", "west-1", "east-2", "south-1", "west-2", "south-2"):
            await places.add(name)
            assert places.is_right()  # a newcomer joins the nearest, or founds one
        await trio.sleep(20)
        places.sent.clear()

        await trio.sleep(40)

        assert places.is_right()
        assert places.sent["Push", False] > 50 and places.sent["Update", False] > 50
        assert places.sent["Push", True] == places.sent["Update", True] == 0
        assert places.sent["SyncRequest", True] > 10 and places.sent["SyncRequest", False] == 0
        truth = {peer.id: peer.engine.region for peer in swarm.peers.values()}
        for peer in swarm.peers.values():
            assert {member.peer_id: member.region for member in peer.status().members} == truth
            assert {truth[shard.owner] for shard in peer.status().shards} == {peer.engine.region}
        status = swarm.peers["east-1"].status()
        assert status.bytes_in_region > 0 < status.bytes_across


@pytest.mark.parametrize("seed", [4, 6])
async def test_who_come_at_once_on_busy_machines_find_each_other_all_the_same(autojump_clock, distances_alone, seed):
    places = Places(seed)
    places.late_until = trio.current_time() + 15
    async with places.swarm as swarm:
        await places.add("east-1")
        rest = [places.start(name) for name in ("west-1", "east-2", "west-2")]
        for peer in rest:
            await peer.joined.wait()

        await swarm.until(places.is_right, 10, "two regions of two")
        while trio.current_time() < places.late_until + 5:
            await trio.sleep(1.0)
            assert places.is_right()


async def test_who_is_elsewhere_from_now_on_moves_to_the_region_there(autojump_clock, distances_alone):
    places = Places()
    async with places.swarm as swarm:
        for name in ("east-1", "west-1", "east-2", "west-2", "east-3"):
            await places.add(name)
        await trio.sleep(20)
        moving = swarm.peers["east-3"]
        steps = moving.local_trainer.steps
        seqs = [replica.life.push.next_seq for replica in moving.engine.shards.replicas.values()]

        places.at[moving.id] = "west"
        await swarm.until(places.is_right, 240, "it is in the western region")
        await swarm.until(lambda: moving.digests() == swarm.peers["west-1"].digests(), 30, "it holds what is common there")
        took = moving.local_trainer.steps - steps
        versions = moving.versions()
        await trio.sleep(20)

        assert took > 0  # it trained all the while
        for shard, version in enumerate(versions):
            chain = swarm.peers["west-1"].engine.shards.replicas[shard].chain
            assert chain.version > version + 3
            assert chain.includes(moving.id, seqs[shard] + 2)  # its pushes are in the versions of its new region
        assert moving.events_named("region.moved")


async def test_who_lie_about_where_they_are_take_nobody_along_who_is_with_them(autojump_clock, distances_alone, monkeypatch):
    places = Places()
    places.swarm.step_s = 5.0
    liars: list[PeerId] = []
    honest = RegionService.coordinate

    def claimed(regions: RegionService) -> Coordinate | None:
        """Liars are always where the first peer of the east is, and have no doubt about it."""
        if regions._members.me not in liars:
            return honest.fget(regions)
        return msgspec.structs.replace(honest.fget(places.swarm.peers["east-1"].engine.regions), error=0.01)

    monkeypatch.setattr(RegionService, "coordinate", property(claimed))
    async with places.swarm as swarm:
        for name in ("east-1", "west-1", "east-2", "west-2", "east-3", "west-3", "east-4", "east-5"):
            await places.add(name)
        await trio.sleep(20)
        assert places.is_right()
        began = trio.current_time()

        liars += [swarm.peers[name].id for name in ("west-2", "west-3")]
        await trio.sleep(30)

        assert places.is_right()
        assert not any(event.at > began for peer in swarm.peers.values() for event in peer.events_named("region.moved"))
        assert {liar: swarm.peers["east-2"].engine.regions.is_doubted(liar) for liar in liars} == dict.fromkeys(liars, True)
