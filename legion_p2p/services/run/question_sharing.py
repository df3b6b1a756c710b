"""Sharing the questions of a multiple-choice test: each member answers its own, and asks the others for their answers."""

import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.answers import Answer, RoundScores
from legion_p2p.core.identity import PeerId
from legion_p2p.core.question_ledger import QuestionLedger
from legion_p2p.core.wire import Answers, GetAnswers
from legion_p2p.errors import NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.rpc import Rpc, Scope

LOOK_EVERY_S = 3.0
MAX_ASKED = 32  # members in one look: 512 KiB of answers at most, and all of a crowd in a minute
ANSWER_S = 5.0


class QuestionService:
    """For one peer in one run; it takes part in a test once `open` has been called."""

    def __init__(self, ctx: PeerContext, members: MemberService) -> None:
        self.ledger: QuestionLedger | None = None
        self._run = ctx.run
        self._rng = ctx.rng
        self._events = ctx.events
        self._rpc = Rpc(ctx.messenger)
        self._members = members
        self._told_round = 0
        self._opened = Notify()

    def open(self, ledger: QuestionLedger, run_step: int) -> None:
        """Take part in this test, from the next round on."""
        ledger.come_late(run_step)
        self.ledger = ledger
        self._opened.notify()
        self._members.announcer.announce_soon()

    def begin(self, run_step: int) -> tuple[int, ...] | None:
        """The questions that this peer should answer now; None: no new round has begun."""
        assert self.ledger is not None
        before = self.ledger.scores()
        mine = self.ledger.begin(run_step, [peer_of(a) for a in self._others(self.ledger)])
        if mine is not None and before is not None:
            self._tell(before)
        return mine

    def answered(self, answers: list[Answer], step: int) -> None:
        """This peer's answers, to the questions of `begin`."""
        assert self.ledger is not None
        self.ledger.answered(answers, step)
        self._members.announcer.announce_soon()
        self._tell_if_complete(self.ledger)

    def answer(self, scope: Scope) -> None:
        """Answer members that ask."""
        scope.on(GetAnswers, self.on_get_answers)

    async def on_get_answers(self, peer: PeerId, message: GetAnswers) -> Answers:
        """Those of this peer."""
        found = None
        if self.ledger is not None and self.ledger.digest == message.test:
            found = self.ledger.answers_in(message.round)
        return Answers(0, 0, b"") if found is None else Answers(message.round, *found)

    def scores(self) -> RoundScores | None:
        """How well the common model does, by all answers that are here; None: nothing was answered yet."""
        return None if self.ledger is None else self.ledger.scores()

    async def run_forever(self) -> None:
        while self.ledger is None:
            await self._opened.wait()
        while True:
            await trio.sleep(LOOK_EVERY_S)
            await self.look_once(self.ledger)

    async def look_once(self, ledger: QuestionLedger) -> None:
        """Ask members of the test that have answered for their answers, and tell of a round once it is complete."""
        there = [peer_of(a) for a in self._others(ledger) if a.test_round >= ledger.round]
        missing = ledger.missing(there)
        asked = self._rng.sample(missing, min(MAX_ASKED, len(missing)))
        question = GetAnswers(self._run, ledger.digest, ledger.round)
        for peer, reply in (await self._rpc.ask_all(asked, question, within_s=ANSWER_S)).items():
            if reply.round:
                try:
                    with self._rpc.checking(peer, "answers to a test"):
                        ledger.heard(peer, reply.round, reply.step, reply.packed)
                except NetworkError:  # it is reported
                    continue
        self._tell_if_complete(ledger)

    def _others(self, ledger: QuestionLedger) -> list[Announcement]:
        return [a for a in self._members.roster.others() if a.test == ledger.mark]

    def _tell_if_complete(self, ledger: QuestionLedger) -> None:
        found = ledger.scores()
        if ledger.is_complete and found is not None:
            self._tell(found)

    def _tell(self, found: RoundScores) -> None:
        """Once of each round."""
        if found.round <= self._told_round:
            return
        self._told_round = found.round
        for task in found.tasks:
            if task.acc is not None and task.acc_norm is not None:
                self._events.emit(
                    "eval.task", task=task.task, step=found.last_step, acc=round(task.acc, 5), acc_norm=round(task.acc_norm, 5),
                    n_answered=task.n_answered, n_questions=task.n,
                )  # fmt: skip
