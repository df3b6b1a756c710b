"""How often and in which codec two regions meet, by what the link between them carries; over the real engine, in virtual time."""

import msgspec
import pytest
import torch
import trio

from legion_p2p.core.intervals import SHARE
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.sim.network import World
from legion_p2p.sim.swarm import Swarm

ROUND = RoundSpec(
    local_steps=5, push_codec="int8", update_codec="int8", aggregation="mean", shard_elements=1 << 14, sync_every=2,
    sync_codec="int8", sync_codecs=("int2",), dense_codec="",
)  # fmt: skip
VERSION_S = 0.25
SECONDS = 8


async def met_over(mbit: float) -> tuple[list[dict], int, float, float]:
    """The later meetings, versions made, share of the upload, and how far both regions are apart, of their targets."""
    async with Swarm(round=ROUND, numel=1 << 15, step_s=VERSION_S / 5, world=World(rate_bytes_s=mbit * 1e6 / 8)) as swarm:
        peers = [await swarm.add(name, region=region) for name, region in (("a", "east"), ("b", "west"))]
        await trio.sleep(SECONDS)
        from_s, from_versions = trio.current_time(), peers[0].versions()[0]
        await trio.sleep(SECONDS)

        asked = {e.fields["version"]: e for e in peers[0].events_named("sync.done") if e.at > from_s and e.fields["shard"] == 0}
        met = [e.fields for peer in peers for e in peer.events_named("sync.done") if e.at > from_s]
        uploaded = sum(fields["n_bytes"] for fields in met) / 4  # both directions, and each meeting is told of at both ends
        share = 8 * uploaded / SECONDS / (mbit * 1e6)
        apart = torch.dist(*(peer.engine.common_parameters() for peer in peers)) / torch.dist(*(peer.target for peer in peers))
        return [e.fields for e in asked.values()], peers[0].versions()[0] - from_versions, share, float(apart)


async def test_over_a_slow_link_regions_meet_more_rarely_and_in_a_sparser_codec(autojump_clock):
    fast, fast_versions, fast_share, fast_apart = await met_over(50)
    slow, slow_versions, slow_share, slow_apart = await met_over(0.5)

    def every(met: list[dict]) -> float:
        return (met[-1]["version"] - met[0]["version"]) / (len(met) - 1)

    assert {fields["codec"] for fields in fast} == {"int8"}
    assert {fields["codec"] for fields in slow} == {"int2"}
    assert every(fast) == pytest.approx(2, abs=0.3)
    assert every(slow) >= 4
    assert fast_share < SHARE and slow_share < SHARE
    assert slow_versions >= fast_versions - 1  # neither waits for the other region
    assert not any(fields["whole"] for fields in fast + slow)
    assert fast_apart < slow_apart < 0.6


async def test_regions_that_meet_first_after_a_cut_meet_as_often_as_their_link_carries(autojump_clock):
    """Neither the attempts while it is, nor the delay of an ocean, are taken for a narrow link."""
    rounds = msgspec.structs.replace(ROUND, sync_every=1, sync_codecs=(), shard_elements=1 << 12)
    world = World(delay_s=0.06, rate_bytes_s=20e6 / 8)
    async with Swarm(round=rounds, numel=1 << 14, step_s=0.05, world=world) as swarm:
        peers = []
        for name, region in (("a", "east"), ("b", "west")):
            peers.append(await swarm.add(name, region=region))
            peers[-1].hung = True
        swarm.world.partition({peers[0].id}, {peers[1].id})
        for peer in peers:
            peer.hung = False
        await trio.sleep(20)
        swarm.world.heal()
        await trio.sleep(10)
        from_s, from_versions = trio.current_time(), sum(peers[0].versions())

        await trio.sleep(10)

        n_versions = sum(peers[0].versions()) - from_versions
        n_met = sum(e.at > from_s for e in peers[0].events_named("sync.done"))
        assert n_met > 0.4 * n_versions  # an answer takes about a version
