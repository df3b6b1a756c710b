"""What services do about versions that are taken back, and about co-signatures that they look for or do not believe."""

import msgspec
import pytest
import torch

from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import GetShard, ShardState
from legion_p2p.errors import NotCosignedError
from legion_p2p.services.shards.replica import MAX_ACCOUNTED, N_ACCOUNTED
from legion_p2p.services.shards.taking_back import WRONG
from tests.unit.shard.test_services import ONE, RAMP, Peer, a_round, peers_of, until

LATE = msgspec.structs.replace(ONE, outer="average", update_codec="fp32", verify="late")
STRICT = msgspec.structs.replace(LATE, verify="strict")


async def take_back(peer: Peer, version: int) -> None:
    async with peer.replica.lock:
        await peer.shards.taking_back.return_to(peer.replica, version, WRONG)


async def test_what_a_member_pushed_into_a_version_that_is_taken_back_goes_with_its_next_push(autojump_clock: object) -> None:
    async with peers_of(3, LATE) as peers:
        member, before = peers[1], peers[1].replica.reference
        counted = member.shards.states.round_log.counted_tokens
        await a_round(peers)
        assert member.replica.provisional.n == 1 and not torch.equal(member.replica.reference, before)
        member.run.mailbox.drain()

        await take_back(member, 0)
        member.offer(RAMP)
        await until(lambda: member.replica.life.push.packed is not None)

        assert torch.equal(member.run.mailbox.drain()[0][0].reference, before)
        assert member.shards.states.round_log.counted_tokens == counted, "what it contained comes again"
        packed = member.replica.life.push.packed
        assert packed is not None and packed.tokens == 20 and packed.version == 0
        assert torch.allclose(packed.body.value(), 2 * RAMP + RAMP)
        (event,) = [event for event in member.log if event.name == "shard.taken_back"]
        assert (event.fields["n_versions"], event.fields["n_own"], event.fields["owner"]) == (1, 1, peers[0].me)


async def test_a_version_that_was_taken_back_for_nothing_is_applied_again_and_counts_once(autojump_clock: object) -> None:
    async with peers_of(3, LATE) as peers:
        member = peers[1]
        await a_round(peers)
        digest = member.replica.chain.digest

        await take_back(member, 0)
        assert torch.allclose(member.replica.residual, 2 * RAMP) and member.replica.life.push.extra_tokens > 0
        await until(lambda: member.replica.chain.digest == digest)

        assert torch.allclose(member.replica.residual, torch.zeros(len(RAMP)), atol=1e-5)
        assert member.replica.life.push.extra_tokens == 0


async def test_an_owner_whose_versions_are_taken_back_has_made_nothing_that_is_to_be_merged(autojump_clock: object) -> None:
    async with peers_of(3, LATE) as peers:
        owner = peers[0]
        await a_round(peers)
        assert owner.replica.life.owner.made_tokens > 0

        await take_back(owner, 0)

        assert owner.replica.life.owner.made_tokens == 0


async def test_what_is_kept_of_earlier_versions_goes_when_they_are_final(autojump_clock: object) -> None:
    async with peers_of(3, LATE) as peers:
        for _ in range(4):
            await a_round(peers)

        for peer in peers:
            replica = peer.replica
            assert replica.provisional.final >= 2, "rounds follow each other at once here"
            assert len(replica.earlier) == len(replica.own_pushes) == replica.provisional.n <= 2
        kept = [inputs.header.version for inputs in peers[0].replica.inputs.values()]
        assert N_ACCOUNTED <= len(kept) < MAX_ACCOUNTED and min(kept) == peers[0].replica.provisional.final


async def test_a_signature_that_is_not_believed_is_checked_by_computing_again(autojump_clock: object) -> None:
    async with peers_of(3, LATE) as peers:
        member = peers[2]
        member.shards.cosignatures._cosigners.believed = lambda *_: (PeerId("another"),)
        for _ in range(3):
            await a_round(peers)

        await until(lambda: member.replica.provisional.final >= 1)

        assert "update.not_cosigned" not in member.names()


async def test_a_whole_shard_is_believed_by_the_co_signature_on_its_last_update(autojump_clock: object) -> None:
    async with peers_of(3, STRICT) as peers:
        owner, member, _ = peers
        await a_round(peers)
        state = await member.ask(owner, GetShard(owner.run.id, 0))
        assert isinstance(state, ShardState) and state.made_by is not None
        member.shards.news.have_reached = lambda *_: False  # others announce it later
        look = member.shards.cosignatures.must_be_shown_of

        await look(member.replica, state)

        forged = msgspec.structs.replace(state.made_by, cosignature=b"s" * 64)
        own = msgspec.structs.replace(state.made_by, cosigner=owner.me)
        for wrong in (
            msgspec.structs.replace(state, made_by=None),
            msgspec.structs.replace(state, digest=b"d" * 32),
            msgspec.structs.replace(state, made_by=forged),
            msgspec.structs.replace(state, made_by=own),
        ):
            with pytest.raises(NotCosignedError):
                await look(member.replica, wrong)
