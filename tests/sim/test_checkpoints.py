"""Runs that outlive their peers: stores on disk, peers in virtual time, over the real engine."""

import shutil
from pathlib import Path

import msgspec
import pytest
import torch

from legion_p2p.config import PeerConfig
from legion_p2p.core.keeping import CheckpointConfig
from legion_p2p.core.run import RoundSpec
from legion_p2p.sim.swarm import Swarm

ROUND = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", norm_cap=0.0, shard_elements=16)
CONFIG = PeerConfig(checkpoints=CheckpointConfig(every_s=20, base_every=8, gather_s=5))


def swarm_in(folder: Path, **more) -> Swarm:
    return Swarm(round=ROUND, config=CONFIG, stores=folder, **more)


async def killed_after(folder: Path, names: str, train_s: float, seed: int = 0) -> dict[str, list[int]]:
    """What each of a swarm's peers held when all were killed at once."""
    import trio

    async with swarm_in(folder, seed=seed) as swarm:
        for name in names:
            await swarm.add(name)
        await trio.sleep(train_s)
        versions = {name: swarm.peers[name].versions() for name in names}
        for name in names:
            await swarm.kill(name)
    return versions


async def test_a_swarm_that_was_killed_at_once_goes_on_where_it_was(tmp_path: Path, autojump_clock):
    before = await killed_after(tmp_path, "abc", 65)

    async with swarm_in(tmp_path) as swarm:
        peers = [swarm.start(name, founds=False) for name in "abc"]
        for peer in peers:
            await peer.joined.wait()

        newest = [max(versions) for versions in zip(*before.values(), strict=True)]
        runs = {peer.engine.run for peer in peers}
        assert len(runs) == 1
        for peer in peers:
            assert all(now >= then for now, then in zip(peer.versions(), newest, strict=True))
        await swarm.until(lambda: all(min(p.versions()) > max(newest) for p in peers), 60, "versions go on")
        await swarm.settle()
        assert swarm.agree()
