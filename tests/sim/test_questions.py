"""Members that share the questions of a test, over the simulated network."""

import trio

from legion_p2p.core.answers import Answer
from legion_p2p.core.question_ledger import QuestionLedger
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import Answers, GetAnswers
from legion_p2p.services.run.question_sharing import LOOK_EVERY_S
from legion_p2p.sim.swarm import SimPeer, Swarm

ROUND = RoundSpec(local_steps=5, push_codec="fp32", update_codec="fp32", aggregation="mean", shard_elements=256)
DIGEST = b"d" * 32
EVERY, N = 100, 60


def open_test(peer: SimPeer, digest: bytes = DIGEST) -> None:
    run = peer.engine
    run.questions.open(QuestionLedger(digest, [("task", N)], EVERY, run.me), 0)


def answer_round(peer: SimPeer, round: int, *, is_right: bool = True) -> tuple[int, ...]:
    """As the training thread does when the run has come to the step."""
    mine = peer.engine.questions.begin(round * EVERY)
    assert mine is not None
    peer.engine.questions.answered([Answer(i, is_right, is_right) for i in mine], round * EVERY)
    return mine


async def test_members_of_one_test_answer_each_question_once_and_all_learn_the_result(autojump_clock):
    async with Swarm(numel=1024, round=ROUND, step_s=0.5) as swarm:
        peers = [await swarm.add(name) for name in "abcd"]
        for peer in peers[:3]:
            open_test(peer)
        open_test(peers[3], b"e" * 32)  # takes another test
        await trio.sleep(10)

        shares = [answer_round(peer, 1, is_right=peer is not peers[1]) for peer in peers[:3]]
        alone = answer_round(peers[3], 1)
        await trio.sleep(15 + 2 * LOOK_EVERY_S)

        assert sorted(i for share in shares for i in share) == list(range(N)) == list(alone)
        scores = [peer.engine.questions.scores() for peer in peers[:3]]
        assert scores[0] == scores[1] == scores[2] and scores[0] is not None
        (task,) = scores[0].tasks
        assert (task.n_answered, task.acc) == (N, 1 - len(shares[1]) / N)
        told = peers[0].events_named("eval.task")
        assert [event.fields["n_answered"] for event in told] == [N]


async def test_what_a_dead_member_leaves_unanswered_is_said_and_the_next_round_is_whole(autojump_clock):
    async with Swarm(numel=1024, round=ROUND, step_s=0.5) as swarm:
        peers = [await swarm.add(name) for name in "abc"]
        for peer in peers:
            open_test(peer)
        await trio.sleep(10)

        share = peers[2].engine.questions.begin(EVERY)
        await swarm.kill("c")
        for peer in peers[:2]:
            answer_round(peer, 1)
        await trio.sleep(60)
        first = peers[0].engine.questions.scores()
        for peer in peers[:2]:
            answer_round(peer, 2)
        await trio.sleep(15 + 2 * LOOK_EVERY_S)

        assert share and first is not None and first.n_answered == N - len(share)
        second = peers[1].engine.questions.scores()
        assert second is not None and (second.round, second.n_answered) == (2, N)


async def test_answers_that_are_not_possible_are_reported_and_change_nothing(autojump_clock, monkeypatch):
    async with Swarm(numel=1024, round=ROUND, step_s=0.5) as swarm:
        a, b = [await swarm.add(name) for name in "ab"]
        open_test(a)
        open_test(b)
        await trio.sleep(10)
        reports = []
        monkeypatch.setattr(a.engine.ctx.messenger, "report", lambda peer, reason: reports.append((peer, reason)))

        async def lies(peer, message):
            return Answers(message.round, 1, b"\xff\xff")

        b.engine.lobby.dispatcher.on(GetAnswers, lies)
        mine = answer_round(a, 1)
        answer_round(b, 1)
        await trio.sleep(15 + 2 * LOOK_EVERY_S)

        assert reports and reports[0][0] == b.id and "the test has 60" in reports[0][1]
        scores = a.engine.questions.scores()
        assert scores is not None and scores.n_answered == len(mine)


async def test_a_member_without_a_test_has_no_answers(autojump_clock):
    async with Swarm(numel=1024, round=ROUND, step_s=0.5) as swarm:
        a, b = [await swarm.add(name) for name in "ab"]

        assert await a.engine.questions.on_get_answers(b.id, GetAnswers("run", DIGEST, 1)) == Answers(0, 0, b"")
        assert a.engine.questions.scores() is None
