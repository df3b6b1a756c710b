"""What goes first: at one stream, and of all streams of a host."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.priority import CATCH_UP_WEIGHT, TRICKLE_S, Priority, PriorityGate, PriorityQueue

CONTROL, ROUND, CATCH_UP, DOWNLOAD = Priority
PRIORITIES = st.sampled_from(list(Priority))


def queue_of(*priorities: Priority) -> PriorityQueue[int]:
    """Numbers in the order in which they were put."""
    queue: PriorityQueue[int] = PriorityQueue()
    for number, priority in enumerate(priorities):
        queue.put(number, priority)
    return queue


def gate_with(*waiting: Priority) -> PriorityGate:
    gate = PriorityGate()
    for priority in waiting:
        gate.enter(priority)
    return gate


def test_control_goes_before_rounds_and_rounds_before_catching_up_and_that_before_downloads() -> None:
    assert CONTROL < ROUND < CATCH_UP < DOWNLOAD
    assert [priority.lane for priority in Priority] == ["control", "bulk", "bulk", "bulk"]


def test_what_is_urgent_overtakes_what_can_wait_but_not_what_has_begun() -> None:
    queue = queue_of(DOWNLOAD, DOWNLOAD)
    queue.begin()

    queue.put(2, ROUND)

    assert queue.urgency is ROUND  # what has begun is written as fast as that, so as not to hold it up
    assert [queue.pop() for _ in range(3)] == [0, 2, 1]
    assert queue.urgency is None and len(queue) == 0


@given(st.lists(PRIORITIES))
def test_a_queue_is_in_the_order_of_priority_and_then_of_arrival(priorities: list[Priority]) -> None:
    queue = queue_of(*priorities)

    taken = [queue.pop() for _ in priorities]

    assert taken == sorted(range(len(priorities)), key=lambda number: (priorities[number], number))


@given(st.lists(st.none() | PRIORITIES))
def test_nothing_is_lost_and_nothing_overtakes_what_has_begun(steps: list[Priority | None]) -> None:
    queue: PriorityQueue[int] = PriorityQueue()
    waiting: dict[int, Priority] = {}
    begun: int | None = None

    for number, priority in enumerate(steps):
        if priority is not None:
            queue.put(number, priority)
            waiting[number] = priority
        elif begun is not None:
            assert queue.pop() == begun
            del waiting[begun]
            begun = None
        elif waiting:
            begun = queue.first()
            queue.begin()
            assert waiting[begun] == min(waiting.values())
        assert len(queue) == len(waiting) and queue.urgency == min(waiting.values(), default=None)
        assert begun is None or queue.first() == begun


def test_the_gate_is_open_for_the_highest_priority_that_waits() -> None:
    gate = gate_with(ROUND, DOWNLOAD)

    assert gate.is_open(ROUND) and not gate.is_open(CATCH_UP) and not gate.is_open(DOWNLOAD)

    gate.leave(ROUND)

    assert gate.is_open(DOWNLOAD) and gate.is_open(CATCH_UP)


def test_rounds_are_held_up_by_nothing_however_much_waits() -> None:
    assert gate_with(*[DOWNLOAD] * 100, *[CATCH_UP] * 100).is_open(ROUND)


def test_a_download_gets_its_share_of_what_catching_up_takes() -> None:
    gate = gate_with(CATCH_UP, DOWNLOAD)
    pieces: list[Priority] = []

    for _ in range(2 * (CATCH_UP_WEIGHT + 1)):
        assert gate.is_open(CATCH_UP)  # a download that is stuck holds nobody up
        pieces.append(gate.choose([CATCH_UP, DOWNLOAD]))
        assert gate.is_open(pieces[-1])
        gate.passed(pieces[-1])

    assert pieces == 2 * [*[CATCH_UP] * CATCH_UP_WEIGHT, DOWNLOAD]


def test_credit_of_downloads_does_not_pile_up() -> None:
    gate = gate_with(CATCH_UP)
    for _ in range(100):
        gate.passed(CATCH_UP)
    gate.enter(DOWNLOAD)

    assert gate.is_open(DOWNLOAD)
    gate.passed(DOWNLOAD)
    assert not gate.is_open(DOWNLOAD)


def test_what_is_held_up_trickles_and_shares_one_trickle() -> None:
    gate = gate_with(ROUND)

    assert [gate.reserve_trickle(10.0) for _ in range(3)] == [10 + n * TRICKLE_S for n in (1, 2, 3)]
    assert gate.reserve_trickle(100.0) == 100 + TRICKLE_S


@given(st.lists(PRIORITIES, min_size=1), st.integers(0, 20))
def test_the_next_piece_is_of_the_highest_priority_or_its_credit(waiting: list[Priority], n_caught_up: int) -> None:
    gate = gate_with(*waiting)
    for _ in range(n_caught_up):
        gate.passed(CATCH_UP)

    chosen = gate.choose(waiting)

    assert gate.is_open(chosen) and gate.is_open(min(waiting))
    assert chosen is min(waiting) or (chosen, min(waiting)) == (DOWNLOAD, CATCH_UP)
