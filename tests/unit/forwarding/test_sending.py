"""In which order updates are sent, where many wait."""

from legion_p2p.core.forwarding.sending import MIN_UNDER_WAY, SLOW_S, WINDOW_BYTES, SendQueue

BPS = 8e6  # a megabyte a second
LARGE = 1_000_000


def started(queue: SendQueue[str], now: float = 0.0) -> dict[str, int]:
    """What may be sent now, with the numbers."""
    made = {}
    while (following := queue.poll(now, BPS)) is not None:
        made[following[1]] = following[0]
    return made


def queue_of(*names: str, n_bytes: int = LARGE) -> SendQueue[str]:
    queue: SendQueue[str] = SendQueue()
    for name in names:
        queue.put(name, 1, n_bytes)
    return queue


def test_a_few_large_updates_are_sent_at_a_time_in_order() -> None:
    queue = queue_of("a", "b", "c", "d")

    first = started(queue)
    assert list(first) == ["a", "b"] and len(first) == MIN_UNDER_WAY
    queue.done(first["b"])

    assert list(started(queue)) == ["c"]


def test_small_updates_all_go_at_once() -> None:
    queue = queue_of(*"abcdefgh", n_bytes=WINDOW_BYTES // 10)

    assert len(started(queue)) == 8


def test_those_that_others_wait_for_go_first() -> None:
    queue = queue_of("leaf", "leaf 2")
    queue.put("newcomer", 2, LARGE)
    queue.put("inner", 0, LARGE)

    assert list(started(queue)) == ["inner", "leaf"]


def test_a_receiver_that_does_not_answer_holds_nobody_up_for_long() -> None:
    queue = queue_of(*"abcd")
    first = started(queue)

    deadline = queue.next_deadline()
    assert deadline is not None and deadline > 1.0 + SLOW_S
    assert not started(queue, deadline - 0.01)
    assert list(started(queue, deadline)) == ["c"]

    queue.done(first["a"])  # it answers after all
    assert list(started(queue, 1000.0)) == ["d"] and queue.next_deadline() is None


def test_an_empty_queue_wants_nothing() -> None:
    queue = queue_of()

    assert queue.poll(0.0, BPS) is None and queue.next_deadline() is None
