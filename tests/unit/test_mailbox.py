"""What passes from the network's thread to the training thread."""

import threading
import time

import torch
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.services.shards.mailbox import Delivery, Mailbox, Settled

ONE, TWO = torch.ones(1), torch.full((1,), 2.0)


def test_it_is_empty_at_first() -> None:
    deliveries, settled = Mailbox().drain()

    assert not deliveries and not settled


def test_of_several_versions_of_a_shard_only_the_newest_is_seen() -> None:
    mailbox = Mailbox()

    mailbox.post(1, 1, ONE)
    mailbox.post(0, 1, ONE)
    mailbox.post(1, 2, TWO)
    deliveries, _ = mailbox.drain()

    assert [(d.shard, d.version) for d in deliveries] == [(0, 1), (1, 2)]
    assert list(deliveries)[1].reference is TWO


def test_what_is_drained_does_not_come_again() -> None:
    mailbox = Mailbox()
    mailbox.post(0, 1, ONE)
    mailbox.settle(0)

    mailbox.drain()
    deliveries, settled = mailbox.drain()

    assert not deliveries and not settled


def test_a_reference_that_was_not_drained_stays_under_the_newer_version() -> None:
    mailbox = Mailbox()

    mailbox.post(0, 1, ONE)
    mailbox.post(0, 2, None)

    assert mailbox.drain()[0] == [Delivery(0, 2, ONE)]


def test_once_drained_a_version_without_bytes_stays_without() -> None:
    mailbox = Mailbox()
    mailbox.post(0, 1, ONE)
    mailbox.drain()

    mailbox.post(0, 2, None)

    assert mailbox.drain()[0] == [Delivery(0, 2, None)]


def test_news_of_contributions_come_in_order_with_their_reasons() -> None:
    mailbox = Mailbox()

    mailbox.settle(3)
    mailbox.settle(1, "too late")

    assert mailbox.drain()[1] == [Settled(3), Settled(1, "too late")]


def test_it_keeps_the_reason_why_nothing_more_comes() -> None:
    mailbox = Mailbox()
    before = mailbox.closed

    mailbox.close("left")

    assert (before, mailbox.closed) == (None, "left")


def seconds_waited(mailbox: Mailbox, timeout_s: float) -> float:
    began = time.monotonic()
    mailbox.wait(timeout_s)
    return time.monotonic() - began


def test_waiting_ends_when_there_is_something_already() -> None:
    posted, settled, closed = Mailbox(), Mailbox(), Mailbox()
    posted.post(0, 1, ONE)
    settled.settle(0)
    closed.close("left")

    assert all(seconds_waited(mailbox, 30.0) < 15.0 for mailbox in (posted, settled, closed))


def test_waiting_ends_when_something_comes_and_when_the_time_is_over() -> None:
    for tell in (lambda m: m.post(0, 1, ONE), lambda m: m.settle(0), lambda m: m.close("left")):
        mailbox = Mailbox()
        timer = threading.Timer(0.02, tell, [mailbox])
        timer.start()

        assert seconds_waited(mailbox, 30.0) < 15.0
        timer.join()
    assert seconds_waited(Mailbox(), 0.01) >= 0.009


def test_nothing_is_lost_between_two_threads() -> None:
    mailbox, seen, n_settled = Mailbox(), {}, 0
    n_posts = 3000

    def network() -> None:
        for version in range(1, n_posts + 1):
            mailbox.post(version % 3, version, ONE)
            mailbox.settle(version % 3)
        mailbox.close("end")

    thread = threading.Thread(target=network)
    thread.start()
    while True:
        closed = mailbox.closed
        mailbox.wait(0.1)
        deliveries, settled = mailbox.drain()
        for delivery in deliveries:
            assert delivery.version > seen.get(delivery.shard, 0)
            seen[delivery.shard] = delivery.version
        n_settled += len(settled)
        if closed:
            break
    thread.join()

    assert n_settled == n_posts and sorted(seen.values()) == [n_posts - 2, n_posts - 1, n_posts]


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), max_size=30))
def test_the_training_side_always_ends_with_the_newest_version_and_the_newest_bytes(posts: list[tuple[int, bool, bool]]) -> None:
    mailbox = Mailbox()
    held: dict[int, list] = {}
    posted: dict[int, list] = {}

    def drain() -> None:
        for d in mailbox.drain()[0]:
            bytes_ = held.get(d.shard, [0, None])[1] if d.reference is None else int(d.reference)
            held[d.shard] = [d.version, bytes_]

    for version, (shard, has_bytes, drains) in enumerate(posts, start=1):
        mailbox.post(shard, version, torch.tensor(float(version)) if has_bytes else None)
        posted[shard] = [version, version if has_bytes else posted.get(shard, [0, None])[1]]
        if drains:
            drain()
    drain()

    assert held == posted


def test_the_first_failure_that_closes_it_stays_its_cause() -> None:
    mailbox, first = Mailbox(), ValueError("first")
    mailbox.close("failed", first)
    mailbox.close("this peer has left the run")
    mailbox.close("failed again", KeyError("second"))

    assert (mailbox.closed, mailbox.cause) == ("failed", first)


def test_who_leaves_because_it_was_asked_to_has_no_cause() -> None:
    mailbox = Mailbox()
    mailbox.close("this peer has left the run")

    assert (mailbox.closed, mailbox.cause) == ("this peer has left the run", None)
