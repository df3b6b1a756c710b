"""Going on after all were killed: alone, in several regions, and with what the owners' compression had left over."""

import os
import shutil
from pathlib import Path

import pytest
import trio

from legion_p2p.config import PeerConfig
from legion_p2p.core.keeping import CheckpointConfig
from legion_p2p.core.run import RoundSpec
from legion_p2p.services import checkpoints
from legion_p2p.sim.swarm import SimPeer, Swarm

ROUND = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", norm_cap=0.0, shard_elements=16)


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
    peers = [swarm.start(name, founds=False, **more) for name in names]
    for peer in peers:
        await peer.joined.wait()
    return peers


async def test_one_that_trained_alone_loses_no_more_than_the_last_moment(tmp_path: Path, autojump_clock):
    """No update led to what it has, and there is but one manifest: of the very beginning."""
    async with swarm_in(tmp_path, every_s=1e6) as swarm:
        peer = await swarm.add("a")
        await trio.sleep(40)
        stored = states(peer)
        await trio.sleep(checkpoints.WHOLE_EVERY_S)
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
        await trio.sleep(checkpoints.WHOLE_EVERY_S)
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
