"""In a run of many shards members announce digests, and ask each other which versions differ."""

import trio

from legion_p2p.core.announcement import MAX_MARKS_SHOWN
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import GetMarks, Update, UpdatesMade
from legion_p2p.errors import NetworkError
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer

N_SHARDS = MAX_MARKS_SHOWN + 8
ROUNDS = RoundSpec(local_steps=10, push_codec="fp32", update_codec="fp32", aggregation="mean", shard_elements=16)


def swarm_of_many_shards() -> Swarm:
    return Swarm(round=ROUNDS, numel=16 * N_SHARDS, step_s=0.3)


def goes_deaf(peer: SimPeer) -> None:
    """No update reaches it from now on, nor the word that one was made."""

    async def refuse(sender: object, message: object) -> None:
        raise NetworkError("deaf")

    dispatcher = peer.engine.lobby.dispatcher
    dispatcher.on(Update, refuse)
    dispatcher.on(UpdatesMade, refuse)


def asked(peer: SimPeer) -> list[GetMarks]:
    """The questions about marks that it is asked from now on."""
    questions: list[GetMarks] = []
    answer = peer.engine.shards.mark_exchange.on_get_marks

    async def note(sender: object, message: GetMarks) -> object:
        questions.append(message)
        return await answer(sender, message)

    peer.engine.lobby.dispatcher.on(GetMarks, note)
    return questions


async def test_a_member_that_gets_no_updates_learns_from_digests_that_it_lacks_them(autojump_clock):
    async with swarm_of_many_shards() as swarm:
        deaf, other = await swarm.add("a"), await swarm.add("b")
        await swarm.until(lambda: min(deaf.versions()) >= 1, 60, "a round")
        questions = asked(other)

        goes_deaf(deaf)
        before = deaf.versions()
        await trio.sleep(30)

        fetched = [shard for shard in range(N_SHARDS) if shard not in deaf.engine.shards.owned()]
        assert fetched and all(deaf.versions()[shard] > before[shard] + 3 for shard in fetched)
        assert questions


async def test_members_agree_by_their_digests_and_then_ask_nothing(autojump_clock):
    async with swarm_of_many_shards() as swarm:
        peers = [await swarm.add(name) for name in "abc"]
        await swarm.until(lambda: min(min(peer.versions()) for peer in peers) >= 1, 60, "a round")

        await swarm.settle(60)
        questions = [asked(peer) for peer in peers]
        await trio.sleep(20)

        assert questions == [[], [], []]
        said = [peer.engine.members.own.now() for peer in peers]
        assert len({a.state for a in said}) == 1
        assert all(not a.marks and len(a.marks_digest) == 16 and a.version >= 1 for a in said)
