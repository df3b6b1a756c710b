"""When a shard is handed in, by the training side's own books."""

import itertools

import torch

from legion_p2p.services.shards.local_trainer import MAX_WAIT_STEPS, LocalTrainer
from legion_p2p.services.shards.mailbox import NON_FINITE, Mailbox
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.local import LocalCopy

N_SHARDS = 4


def local_trainer(streaming: bool, *, came_late: bool = False) -> LocalTrainer:
    local = LocalCopy(FlatView([("w", torch.nn.Parameter(torch.zeros(8)))]), [(i, i + 2) for i in range(0, 8, 2)], exact=True)
    made = LocalTrainer(local, Mailbox(), streaming=streaming, came_late=came_late)
    for shard in range(N_SHARDS):
        made.mailbox.post(shard, 0, torch.zeros(2))
    made.take_in()
    return made


def run(one: LocalTrainer, n_steps: int, local_steps: int, answer_after: int = 0) -> dict[int, list[int]]:
    """Steps at which each shard was handed in, where each answer comes `answer_after` steps later."""
    pushes: dict[int, list[int]] = {shard: [] for shard in range(N_SHARDS)}
    answers: list[tuple[int, int]] = []
    for _ in range(n_steps):
        one.stepped(1)
        for _, shard in [a for a in answers if a[0] <= one.steps]:
            one.mailbox.settle(shard)
        answers = [a for a in answers if a[0] > one.steps]
        one.take_in()
        for change in one.hand_in(one.due(local_steps)):
            pushes[change.shard].append(one.steps)
            answers.append((one.steps + 1 + answer_after, change.shard))
    return pushes


def test_all_shards_are_pushed_at_once_where_there_is_no_streaming() -> None:
    assert run(local_trainer(streaming=False), 24, 8) == {shard: [8, 16, 24] for shard in range(N_SHARDS)}


def test_streaming_staggers_the_shards_over_the_steps_of_a_round() -> None:
    pushes = run(local_trainer(streaming=True), 32, 8)

    assert pushes == {0: [8, 16, 24, 32], 1: [10, 18, 26], 2: [12, 20, 28], 3: [14, 22, 30]}


def test_one_that_comes_late_hands_in_within_its_first_round() -> None:
    assert run(local_trainer(streaming=True, came_late=True), 16, 8) == {0: [1, 9], 1: [3, 11], 2: [5, 13], 3: [7, 15]}
    assert run(local_trainer(streaming=False, came_late=True), 16, 8) == {shard: [1, 9] for shard in range(N_SHARDS)}


def test_one_that_comes_late_is_in_step_with_the_others_after_its_first_push() -> None:
    """That lies seven steps at the owner, until the others' round ends."""
    pushes = run(local_trainer(streaming=False, came_late=True), 16, 8, answer_after=6)

    assert pushes[0] == [1, 8 + 8 - 2]


def test_it_stays_staggered_when_rounds_become_longer() -> None:
    one = local_trainer(streaming=True)
    run(one, 20, 1)
    pushes = run(one, 40, 8)

    turns = {steps[-1] % 8 for steps in pushes.values()}
    assert len(turns) == N_SHARDS


def test_a_member_that_waits_for_others_comes_to_push_when_they_do() -> None:
    """Its push lies six of eight steps at the owner, for the others began later. From then on its round begins with theirs."""
    one = local_trainer(streaming=False)
    first = run(one, 14, 8, answer_after=5)[0]
    later = run(one, 40, 8)[0]

    assert first == [8]
    assert later[0] == 14 + 8 - 2  # a quarter of a round sooner than a whole one after the version came
    assert [b - a for a, b in itertools.pairwise(later)] == [8] * (len(later) - 1)


def test_a_push_waits_two_thirds_of_the_steps_that_its_answer_took() -> None:
    """Else seven of its eight steps would be of before the answer. Taken in after 7 steps, it is pushed 11 after the last one."""
    pushes = run(local_trainer(streaming=False), 40, 1, answer_after=6)

    assert pushes[0] == [1, 12, 23, 34]


def test_an_answer_that_took_the_time_of_an_outage_says_nothing_of_the_next() -> None:
    pushes = run(local_trainer(streaming=False), 150, 2, answer_after=99)

    assert pushes[0] == [2, 2 + 100 + MAX_WAIT_STEPS]


def test_a_shard_on_its_way_is_not_handed_in_again_and_its_change_goes_on_growing() -> None:
    one = local_trainer(streaming=False)
    for _ in range(30):
        one.stepped(3)
        one.hand_in(one.due(8))
    assert one.busy and one.due(8) == []

    one.mailbox.settle(0)
    one.take_in()
    assert one.due(8) == []  # for it waited long
    for _ in range(20):
        one.stepped(3)
    (change,) = one.hand_in(one.due(8))

    assert (change.shard, change.steps, change.tokens) == (0, 42, 126)


def test_divergence_is_counted_until_it_has_gone_well_for_a_while() -> None:
    one = local_trainer(streaming=False)

    def settled(shard: int, *failures: str | None) -> int:
        for failure in failures:
            one.mailbox.settle(shard, failure)
        one.take_in()
        return one.refusals

    assert settled(0, NON_FINITE) == 1
    assert settled(1, NON_FINITE, "the owner found it unusable") == 1
    assert settled(0, None, NON_FINITE) == 2  # a push of nothing, right after the parameters were taken back, heals nothing
    assert settled(0, None, None) == 2
    assert settled(0, None) == 1
    assert settled(1, None, None, None) == 0


def test_what_moved_without_a_step_is_seen() -> None:
    one = local_trainer(streaming=False)
    p = one.local.view.parameters[0]
    assert not one.moved_unseen

    with torch.no_grad():
        p[5] = 1.0
    assert one.moved_unseen
    one.stepped(1)
    assert not one.moved_unseen  # it goes with that step
    one.hand_in()
    assert not one.moved_unseen


def test_taking_in_tells_whether_the_model_moved() -> None:
    one = local_trainer(streaming=False)

    assert not one.take_in()
    one.mailbox.settle(0)
    assert not one.take_in()
    one.mailbox.post(0, 1, None)
    assert not one.take_in()
    one.mailbox.post(0, 2, torch.ones(2))
    assert one.take_in()
