"""Owners that live, answer every probe, and make nothing: they lose their shards, and get them back for another try."""

from typing import Any

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import GetUpdates, decode_request
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer

ROUNDS = RoundSpec(local_steps=10, push_codec="fp32", update_codec="fp32", aggregation="mean", shard_elements=8)


def make_nothing(peer: SimPeer) -> None:
    """From now on it acknowledges every push, and closes no round."""
    for replica in peer.engine.shards.replicas.values():
        replica.life.owner.handle_timeout = lambda now: None  # type: ignore[method-assign]
        replica.life.owner.next_deadline = lambda: None  # type: ignore[method-assign]


def work_again(peer: SimPeer) -> None:
    for replica in peer.engine.shards.replicas.values():
        del replica.life.owner.handle_timeout, replica.life.owner.next_deadline
        peer.engine.shards.states.wake(replica)


def ask_in_vain(asker: SimPeer, silent: SimPeer) -> None:
    """From now on `silent` leaves the asker's questions for updates open."""
    messenger = asker.network.messenger
    request = messenger.request

    async def asked(to: PeerId, body: bytes, *how: Any, **more: Any) -> bytes:
        if to == silent.id and isinstance(decode_request(body), GetUpdates):
            await trio.sleep_forever()
        return await request(to, body, *how, **more)

    messenger.request = asked  # type: ignore[method-assign, assignment]


def owned_of(peer: SimPeer, viewed_by: SimPeer) -> list[int]:
    return viewed_by.engine.shards.states.owned_by(peer.id)


async def test_an_owner_that_makes_nothing_loses_its_shards_within_three_typical_rounds(autojump_clock):
    async with Swarm(round=ROUNDS) as swarm:
        a, b, c, d = [await swarm.add(name, step_s=1.0) for name in "abcd"]
        await trio.sleep(100)
        stalled = max((a, b, c, d), key=lambda peer: len(owned_of(peer, a)))
        shards = owned_of(stalled, a)
        others = [peer for peer in (a, b, c, d) if peer is not stalled]
        period_s = others[0].engine.shards.replicas[shards[0]].life.owner.pace.period_s
        assert shards and 8.0 < period_s < 15.0

        make_nothing(stalled)
        before = [others[0].versions()[s] for s in shards]
        # at worst the last version came just now, and the first push waits from a round later on
        lost_after_s = await swarm.until(lambda: all(not owned_of(stalled, peer) for peer in others), 5 * period_s, "deposed")
        await swarm.until(
            lambda: all(others[0].versions()[s] > then for s, then in zip(shards, before, strict=True)), 15, "the standby goes on"
        )

        assert lost_after_s < 4 * period_s
        assert {e.fields["owner"] for peer in others for e in peer.events_named("owner.stalled")} == {stalled.id}
        for peer in others:
            assert peer.engine.members.table.get(stalled.id).counts, "it lives"


async def test_an_owner_that_was_only_slow_owns_again(autojump_clock):
    async with Swarm(round=ROUNDS) as swarm:
        peers = [await swarm.add(name, step_s=1.0) for name in "abcd"]
        await trio.sleep(100)
        slow = max(peers, key=lambda peer: len(owned_of(peer, peers[0])))
        other = next(peer for peer in peers if peer is not slow)
        shards = owned_of(slow, other)

        make_nothing(slow)
        await swarm.until(lambda: not owned_of(slow, other), 60, "deposed")
        work_again(slow)

        await swarm.until(lambda: owned_of(slow, other) == shards, 90, "it owns again")
        before = other.versions()
        await trio.sleep(60)
        assert owned_of(slow, other) == shards and all(other.versions()[s] > before[s] for s in shards)
        await swarm.settle()
        assert swarm.agree()


async def test_one_liar_deposes_nobody(autojump_clock):
    async with Swarm(round=ROUNDS) as swarm:
        peers = [await swarm.add(name, step_s=1.0) for name in "abcd"]
        await trio.sleep(30)
        before = [owned_of(peer, peers[0]) for peer in peers]
        for other in peers[1:]:
            peers[0].engine.shards.stalls.found(other.id, trio.current_time())

        await trio.sleep(60)

        assert [owned_of(peer, peers[1]) for peer in peers] == before


async def test_a_deposed_owner_cannot_hold_up_the_hand_over(autojump_clock):
    """It answers probes and nothing else: whoever asks it for a shard gets no reply."""
    async with Swarm(round=ROUNDS) as swarm:
        peers = [await swarm.add(name, step_s=1.0) for name in "abcd"]
        await trio.sleep(60)
        stalled = max(peers, key=lambda peer: len(owned_of(peer, peers[0])))
        others = [peer for peer in peers if peer is not stalled]
        shards = owned_of(stalled, others[0])

        make_nothing(stalled)
        for other in others:
            ask_in_vain(other, stalled)
        before = [others[0].versions()[s] for s in shards]

        await swarm.until(
            lambda: all(others[0].versions()[s] > then for s, then in zip(shards, before, strict=True)), 70, "the standby goes on"
        )
