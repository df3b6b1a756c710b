"""Going on after all were killed: alone, in several regions, and with what the owners' compression had left over."""

import os
import shutil
from pathlib import Path

import msgspec
import pytest
import trio

from legion_p2p.config import PeerConfig
from legion_p2p.core.checkpoint_policy import CheckpointConfig
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.services.checkpoint import writer
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from legion_p2p.store.blocks import BlockStore
from legion_p2p.train.checkpoint import Checkpoint

ROUND = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", aggregation="mean", shard_elements=16)


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Processes are killed here, not machines: nothing needs to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def swarm_in(folder: Path, every_s: float = 8.0, **more) -> Swarm:
    config = PeerConfig(checkpoints=CheckpointConfig(every_s=every_s, base_every=8, gather_s=4))
    return Swarm(round=ROUND, config=config, stores=folder, **more)


def states(peer: SimPeer) -> list[tuple[int, bytes]]:
    return list(zip(peer.versions(), peer.digests(), strict=True))


async def started(swarm: Swarm, names: str, **more) -> list[SimPeer]:
    peers = [swarm.start(name, creates=False, **more) for name in names]
    for peer in peers:
        await peer.joined.wait()
    return peers


async def test_one_that_trained_alone_loses_no_more_than_the_last_moment(tmp_path: Path, autojump_clock):
    """No update led to what it has, and there is but one manifest: of the very beginning."""
    async with swarm_in(tmp_path, every_s=1e6) as swarm:
        peer = await swarm.add("a")
        await trio.sleep(40)
        stored = states(peer)
        await trio.sleep(writer.WHOLE_EVERY_S)
        await swarm.kill("a")
    assert min(version for version, _ in stored) > 30

    async with swarm_in(tmp_path) as swarm:
        (peer,) = await started(swarm, "a", training=False)

        chains = [replica.chain for replica in peer.engine.shards.replicas.values()]
        assert all(chain.version >= version for chain, (version, _) in zip(chains, stored, strict=True))
        assert peer.engine.run_step() > 300


async def test_others_join_one_that_was_alone_and_all_of_it_is_found_again(tmp_path: Path, autojump_clock):
    """Its own versions, whole, and the updates that followed on them, of which no manifest tells."""
    async with swarm_in(tmp_path, every_s=1e6) as swarm:
        alone = await swarm.add("a")
        await trio.sleep(20)
        await swarm.add("b")
        await trio.sleep(20)
        stored = states(alone)
        await trio.sleep(writer.WHOLE_EVERY_S)
        for name in "ab":
            await swarm.kill(name)
    shutil.rmtree(tmp_path / "b")

    async with swarm_in(tmp_path) as swarm:
        (peer,) = await started(swarm, "a", training=False)

        assert all(
            peer.engine.shards.replicas[shard].chain.passed(*state) or peer.versions()[shard] > state[0]
            for shard, state in enumerate(stored)
        )
        assert min(peer.versions()) >= min(version for version, _ in stored)


async def test_each_region_goes_on_with_its_own_chains(tmp_path: Path, autojump_clock):
    async with swarm_in(tmp_path) as swarm:
        for name, region in zip("abcd", "xxyy", strict=True):
            await swarm.add(name, region=region)
        await trio.sleep(25)
        held = {region: [states(peer) for peer in swarm.living() if peer.engine.region == region] for region in "xy"}
        for name in "abcd":
            await swarm.kill(name)
    stored = {region: [min(pair) for pair in zip(*both, strict=True)] for region, both in held.items()}
    assert stored["x"] != stored["y"]

    async with swarm_in(tmp_path) as swarm:
        peers = [swarm.start(name, creates=False, region=region) for name, region in zip("abcd", "xxyy", strict=True)]
        for peer in peers:
            await peer.joined.wait()

        for peer in peers:
            chains = [replica.chain for replica in peer.engine.shards.replicas.values()]
            assert all(chain.passed(*state) for chain, state in zip(chains, stored[peer.engine.region], strict=True))
            other = stored["y" if peer.engine.region == "x" else "x"]
            assert not any(chain.passed(*state) for chain, state in zip(chains, other, strict=True))
        before = [min(peer.versions()) for peer in peers]
        await swarm.until(lambda: all(min(p.versions()) > v + 3 for p, v in zip(peers, before, strict=True)), 60, "both go on")
        await swarm.settle(90)
        assert [len({tuple(p.digests()) for p in peers if p.engine.region == region}) for region in "xy"] == [1, 1]


@pytest.mark.parametrize("shard_elements", [5, 24, 64], ids=["thirteen", "three", "one"])
async def test_what_four_members_stored_begins_a_run_of_any_number_of_shards(tmp_path: Path, autojump_clock, shard_elements: int):
    async with swarm_in(tmp_path) as swarm:
        for name in "abcd":
            await swarm.add(name)
        await trio.sleep(15)
        await swarm.settle()
        common = swarm.peers["a"].engine.common_parameters()
        await swarm.until(lambda: swarm.peers["a"].engine.checkpoints.stored_marks == swarm.peers["a"].engine.shards.marks(), 60)
        root = swarm.peers["a"].engine.checkpoints.newest

    with BlockStore(tmp_path / "a", read_only=True) as store:
        ((_, stored),) = Checkpoint(store, root).parameters()
    rounds = msgspec.structs.replace(ROUND, shard_elements=shard_elements)
    async with Swarm(round=rounds, start=stored) as swarm:
        peers = [await swarm.add(name, training=False) for name in "uvw"]

        assert all(len(peer.versions()) == -(-64 // shard_elements) for peer in peers)
        assert all(peer.engine.common_parameters().equal(common) for peer in peers)
