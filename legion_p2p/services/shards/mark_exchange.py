"""What members hold of the shards, where their announcements do not say it: asking them, and answering. See core/marks.py."""

import random
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import trio

from legion_p2p.core.announcement import MAX_MARKS_SHOWN, Announcement, Mark, mark_at
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.marks import (
    MAX_BOOKS,
    MarkBooks,
    differences,
    pack_checks,
    pack_shards,
    state_of,
    unpack_rows,
    unpack_shards,
)
from legion_p2p.core.wire import GetMarks, Marks
from legion_p2p.errors import NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.states import ShardStates

ASK_S = 2.0  # for an answer of a few kilobytes at most
MAX_ASKED_AT_A_TIME = 16  # members: a claim of many shards asks all of a region


@dataclass(eq=False)
class _MarkQuestion:
    """About to be sent to one member: whatever else is to be asked in the same moment goes along."""

    shards: set[int]
    answered: trio.Event = field(default_factory=trio.Event)


class MarkExchange:
    """Knows the marks of members as far as they are announced, and asks for the others."""

    def __init__(self, ctx: PeerContext, states: ShardStates) -> None:
        self._rng: random.Random = ctx.rng
        self._announce_s = ctx.config.membership.announce_s
        self._states = states
        self._books = MarkBooks(states.plan.n_shards)
        self._questions: dict[PeerId, _MarkQuestion] = {}
        self._asked_at: BoundedMap[PeerId, float] = BoundedMap(MAX_BOOKS)
        self._asking = trio.CapacityLimiter(MAX_ASKED_AT_A_TIME)
        self.by_digest = states.plan.n_shards > MAX_MARKS_SHOWN
        """Whether members of this run announce digests instead of marks."""

    # what is known

    def take(self, peer: PeerId) -> bool:
        """Take in what a member of this region announces; False where its marks are to be asked for."""
        member = self._states.members.table.get(peer)
        counts = member is not None and member.counts and member.announcement.region == self._states.region
        return self._books.take(peer, member.announcement if member is not None and counts else None, self._states.marks())

    def mark(self, peer: PeerId, shard: int) -> Mark | None:
        """What a member of this region says of a shard, or said when it was asked; None: nothing."""
        self.take(peer)
        return self._books.mark(peer, shard)

    def known(self, peer: PeerId) -> list[int]:
        """The shards of which `mark` is known."""
        return self._books.known(peer)

    def is_as_here(self, peer: PeerId) -> bool:
        """It announces what this peer holds."""
        return bool(ours := self._states.marks()) and self._books.whole(peer) == ours

    # asking

    def may_ask(self, peer: PeerId) -> bool:
        """Whether its announcement is a reason to ask it now; if so, that is noted. Some come in haste, one after the other."""
        now = trio.current_time()
        if now - self._asked_at.get(peer, -self._announce_s) < self._announce_s:
            return False
        self._asked_at[peer] = now
        return True

    async def hear(self, peers: Iterable[PeerId], shards: Collection[int]) -> None:
        """Ask members what they hold of shards, where that is not known; returns when all have answered, or after ASK_S."""
        if not self.by_digest:
            return
        before = trio.current_time() - self._announce_s
        unknown = {p: self._books.unknown(p, shards, before) for p in peers if p != self._states.me and not self.take(p)}
        with trio.move_on_after(ASK_S):
            async with trio.open_nursery() as nursery:
                for peer, asked in unknown.items():
                    if asked:
                        nursery.start_soon(self._hear_of, peer, asked)

    async def _hear_of(self, peer: PeerId, shards: Collection[int]) -> None:
        question = self._questions.get(peer)
        if question is not None:
            question.shards.update(shards)
            await question.answered.wait()
            return
        question = self._questions[peer] = _MarkQuestion(set(shards))
        try:
            async with self._asking:
                await trio.lowlevel.checkpoint()  # shards that change hands together are asked about together
                del self._questions[peer]
                await self._ask(peer, sorted(question.shards))
        finally:
            if self._questions.get(peer) is question:
                del self._questions[peer]
            question.answered.set()

    async def _ask(self, peer: PeerId, shards: list[int]) -> None:
        answer = await self._answer_of(peer, shards)
        if answer is not None:
            self._books.answered(peer, answer, trio.current_time())

    async def _answer_of(self, peer: PeerId, shards: list[int]) -> dict[int, Mark] | None:
        """What it holds of each; None where it does not answer."""
        states, ours, salt = self._states, self._states.marks(), self._rng.getrandbits(62)
        checks = pack_checks(ours, shards, salt) if ours else b""
        try:
            request = GetMarks(states.run, pack_shards(shards, states.plan.n_shards), checks, salt)
            reply = await states.rpc.ask(peer, request, within_s=ASK_S)
            with states.rpc.checking(peer, "bad marks"):
                differing = unpack_rows(reply.rows, shards)
        except NetworkError:
            return None
        same = {shard: mark for shard in shards if (mark := mark_at(ours, shard)) is not None}
        return {**same, **differing}

    async def all_of(self, announcement: Announcement, peer: PeerId) -> dict[int, Mark]:
        """The marks of all shards of a member, wherever it is and whatever its word counts; empty where it does not say."""
        shards, ours = list(range(self._states.plan.n_shards)), self._states.marks()
        if announcement.marks_digest and announcement.state != state_of(ours):
            answer = await self._answer_of(peer, shards)
            return answer if answer is not None and len(answer) == len(shards) else {}
        packed = ours if announcement.marks_digest else announcement.marks
        marks = {shard: mark for shard in shards if (mark := mark_at(packed, shard)) is not None}
        return marks if len(marks) == len(shards) else {}

    # answering

    async def on_get_marks(self, peer: PeerId, message: GetMarks) -> Marks:
        """What is held here of some shards, where the asker holds something else. Raises: LegionError, to be sent back."""
        shards, marks = unpack_shards(message.shards, self._states.plan.n_shards), self._states.marks()
        if not marks:
            raise NetworkError("this peer does not hold all shards yet")
        return Marks(differences(marks, shards, message.checks, message.salt))
