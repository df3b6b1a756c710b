"""What members ask each other of their shards where announcements carry digests: a few peers over the network in memory."""

import msgspec
import pytest
import trio

from legion_p2p.core.announcement import Mark, mark_of, unpack_marks
from legion_p2p.core.identity import PeerId
from legion_p2p.core.marks import pack_shards
from legion_p2p.core.wire import GetMarks, Marks
from legion_p2p.services.shards.mark_exchange import ASK_S, MarkExchange
from tests.unit.shard.test_services import ONE, Peer, peers_of

MANY = msgspec.structs.replace(ONE, shard_elements=1)
"""A shard for each of 64 parameters."""


def exchange_of(peer: Peer) -> MarkExchange:
    exchange: MarkExchange = peer.shards.mark_exchange
    return exchange


def goes_on(peer: Peer, shard: int) -> Mark:
    """Lets a peer be in another state of a shard than the others. Returns its mark."""
    states = peer.shards.states
    chain = states.replicas[shard].chain
    chain.replaced(chain.version + 1, b"x" * 32, peer.me)
    states._note_mark(states.replicas[shard])
    return mark_of(chain.version, b"x" * 32)


async def announces(peer: Peer, *others: Peer) -> None:
    await peer.run.members.announcer.announce_now()
    for other in others:
        await other.run.members.exchange_with(peer.me)


async def test_what_differs_is_learned_from_the_one_that_announced_it(autojump_clock: object) -> None:
    async with peers_of(2, MANY) as (a, b):
        mark = goes_on(b, 3)
        await announces(b, a)

        await exchange_of(a).hear([b.me], [3, 4])

        assert exchange_of(a).mark(b.me, 3) == mark
        assert exchange_of(a).mark(b.me, 4) == unpack_marks(a.shards.marks())[4]


async def test_questions_of_one_moment_are_one(autojump_clock: object) -> None:
    async with peers_of(2, MANY) as (a, b):
        goes_on(b, 3)
        await announces(b, a)
        await trio.sleep(1)  # what its announcement led to is over
        exchange_of(a)._books.take(b.me, None, b"")  # and forgotten
        asked: list[GetMarks] = []
        answer = exchange_of(b).on_get_marks

        async def note(peer: PeerId, message: GetMarks) -> Marks:
            asked.append(message)
            return await answer(peer, message)

        b.run.lobby.dispatcher.on(GetMarks, note)
        async with trio.open_nursery() as nursery:
            for shard in (3, 4, 5):
                nursery.start_soon(exchange_of(a).hear, [b.me], [shard])

        assert [message.shards for message in asked] == [pack_shards([3, 4, 5], 64)]


async def test_all_marks_of_a_member_are_had_from_its_announcement_or_from_itself(autojump_clock: object) -> None:
    async with peers_of(2, MANY) as (a, b):
        same = await exchange_of(a).all_of(b.run.members.own.renew(), b.me)
        goes_on(b, 3)
        other = await exchange_of(a).all_of(b.run.members.own.renew(), b.me)

        assert list(same.values()) == list(unpack_marks(a.shards.marks()))
        assert list(other.values()) == list(unpack_marks(b.shards.marks())) != list(same.values())


async def test_a_member_that_is_silent_costs_two_seconds_and_says_nothing(autojump_clock: object) -> None:
    async with peers_of(2, MANY) as (a, b):

        async def never(peer: PeerId, message: GetMarks) -> Marks:
            await trio.sleep_forever()
            raise AssertionError

        b.run.lobby.dispatcher.on(GetMarks, never)
        goes_on(b, 3)
        await announces(b, a)
        began = trio.current_time()

        await exchange_of(a).hear([b.me], [3])

        assert trio.current_time() - began == pytest.approx(ASK_S, abs=0.1)
        assert exchange_of(a).mark(b.me, 3) is None
        assert await exchange_of(a).all_of(b.run.members.own.now(), b.me) == {}


async def test_one_that_answers_something_else_is_reported(autojump_clock: object) -> None:
    async with peers_of(2, MANY) as (a, b):

        async def other(peer: PeerId, message: GetMarks) -> Marks:
            return Marks(b"odd")

        b.run.lobby.dispatcher.on(GetMarks, other)
        goes_on(b, 3)
        await announces(b, a)

        await exchange_of(a).hear([b.me], [3])

        assert exchange_of(a).mark(b.me, 3) is None
        assert a.run.lobby.parts.network.messenger.refusals.score(b.me) > 0


async def test_a_question_that_cannot_be_is_refused(autojump_clock: object) -> None:
    async with peers_of(2, MANY) as (a, b):
        assert await a.refused(b, GetMarks(a.run.id, pack_shards([64], 72), b"", 0)) == "DecodeError"
        assert await a.refused(b, GetMarks(a.run.id, pack_shards([1], 64), b"three", 0)) == "DecodeError"

        del b.shards.states.replicas[5]

        assert await a.refused(b, GetMarks(a.run.id, pack_shards([1], 64), b"", 0)) == "NetworkError"


@pytest.mark.parametrize("went_on", [False, True])
async def test_an_owner_whose_version_comes_while_others_are_asked_has_not_stalled(
    went_on: bool, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with peers_of(2, MANY) as (a, b):

        async def hear(*args: object) -> None:
            if went_on:
                goes_on(a, 3)

        monkeypatch.setattr(a.shards.news, "hear", hear)

        await a.shards._note_stalled(a.shards.replicas[3], b.me)

        assert a.shards.stalls.named(trio.current_time()) == (() if went_on else (b.me,))


async def test_of_few_shards_nobody_is_asked(autojump_clock: object) -> None:
    async with peers_of(2) as (a, b):
        goes_on(b, 0)

        await exchange_of(a).hear([b.me], [0])

        assert not exchange_of(a).by_digest
        assert len(await exchange_of(a).all_of(b.run.members.own.renew(), b.me)) == 1
