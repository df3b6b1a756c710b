"""What a stranger who owns the shards of a region of its own can do to another region: little. Over the real engine."""

import pytest
import torch
import trio

from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import SyncReply, SyncRequest, encode
from legion_p2p.errors import RefusedError
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from legion_p2p.tensor import codec

ROUND = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", shard_elements=64, sync_every=2)


async def honest_and_liar(swarm: Swarm) -> tuple[SimPeer, SimPeer]:
    """Each is alone in its region; the honest one has trained for a while."""
    honest = await swarm.add("honest", region="east")
    liar = await swarm.add("liar", region="west")
    await trio.sleep(30)
    return honest, liar


def whole(liar: SimPeer, value: torch.Tensor, *, number: int, name: str = "bf16") -> bytes:
    payload = codec.get(name).encode(value)
    return encode(SyncRequest(liar.engine.id, 0, "west", number, b"", 0.5, None, False, name, payload))


async def test_an_absurd_copy_is_refused_and_whoever_sent_it_is_reported_until_it_is_kept_out(autojump_clock):
    async with Swarm(round=ROUND, step_s=0.2) as swarm:
        honest, liar = await honest_and_liar(swarm)
        liar.engine.region_sync.schedule.due = lambda replica: None
        before = honest.engine.common_parameters()
        with pytest.raises(RefusedError, match="a copy of norm") as refused:
            await liar.engine.messenger.request(honest.id, whole(liar, 1e6 * torch.ones(64), number=1))

        assert refused.value.kind == "DecodeError"
        assert honest.events_named("request.refused")
        for number in range(2, 40):
            if honest.network.messenger.refusals.is_refused(liar.id):
                break
            with pytest.raises(RefusedError):
                await liar.engine.messenger.request(honest.id, whole(liar, 1e30 * torch.ones(64), number=number))
        assert honest.network.messenger.refusals.is_refused(liar.id)
        assert torch.dist(honest.engine.common_parameters(), before) < 0.1 * before.norm()


async def test_a_codec_that_the_run_does_not_allow_is_refused_before_it_is_read(autojump_clock):
    async with Swarm(round=ROUND, step_s=0.2) as swarm:
        honest, liar = await honest_and_liar(swarm)
        with pytest.raises(RefusedError, match="codec 'fp32', this run allows bf16"):
            await liar.engine.messenger.request(honest.id, whole(liar, torch.ones(64), number=1, name="fp32"))


async def test_a_copy_far_from_ours_moves_us_no_further_than_our_own_training_did(autojump_clock):
    async with Swarm(round=ROUND, step_s=0.2) as swarm:
        honest, liar = await honest_and_liar(swarm)
        for peer in (honest, liar):
            peer.engine.region_sync.schedule.due = lambda replica: None
        await trio.sleep(5)
        for number in range(12):
            far = 5 * honest.engine.common_parameters().norm() * torch.ones(64) / 8
            await liar.engine.messenger.request(honest.id, whole(liar, far, number=number))
            await trio.sleep(5)

        assert len(honest.events_named("sync.slowed")) == 12
        assert torch.dist(honest.engine.common_parameters(), honest.target) < honest.target.norm()  # as at the start
        await trio.sleep(30)
        assert torch.dist(honest.engine.common_parameters(), honest.target) < 0.4 * honest.target.norm()  # training wins


async def test_an_answer_that_moves_us_further_than_we_agreed_to_is_not_followed(autojump_clock):
    async with Swarm(round=ROUND, step_s=0.2) as swarm:
        honest, liar = await honest_and_liar(swarm)

        async def lie(peer: str, message: SyncRequest) -> SyncReply:
            own = honest.engine.common_parameters()
            return SyncReply(codec.get(message.codec).encode(4 * own.norm() * torch.ones(64) / 8))

        liar.engine.lobby.dispatcher.on(SyncRequest, lie)
        liar.engine.region_sync.schedule.due = lambda replica: None
        await trio.sleep(60)

        failed = honest.events_named("sync.failed")
        assert any("was agreed to" in str(event.fields["text"]) for event in failed)
        assert torch.dist(honest.engine.common_parameters(), honest.target) < 0.5 * honest.target.norm()
