"""Waiting for a slot: the smallest transfer first, peers one by one, and none waits for ever."""

import trio
import trio.testing

from legion_p2p.concurrency.semaphore import PeerSemaphore
from legion_p2p.core.identity import PeerId
from legion_p2p.core.slots import SlotLimits
from tests.waiting import PATIENCE_S

A, B = PeerId("a"), PeerId("b")


async def sent_in_order(semaphore: PeerSemaphore, sizes: list[int], log: list[int], n_cancelled: int = 0) -> None:
    async def send(size: int) -> None:
        async with semaphore.slot([A], size):
            log.append(size)
            await trio.sleep(size)

    async with trio.open_nursery() as nursery:
        for size in sizes:
            nursery.start_soon(send, size)
        if n_cancelled:
            await trio.sleep(n_cancelled)
            nursery.cancel_scope.cancel()


async def test_the_smallest_go_first_one_by_one_where_they_are_large(autojump_clock: trio.testing.MockClock) -> None:
    log: list[int] = []
    began = trio.current_time()

    await sent_in_order(PeerSemaphore(SlotLimits(max_bytes=10)), [40, 20, 30], log)

    assert log == [20, 30, 40] and trio.current_time() - began == 90


async def test_small_ones_go_together(autojump_clock: trio.testing.MockClock) -> None:
    log: list[int] = []
    began = trio.current_time()

    await sent_in_order(PeerSemaphore(SlotLimits(max_bytes=10)), [4, 5, 1, 0, 0], log)

    assert sorted(log) == [0, 0, 1, 4, 5] and trio.current_time() - began == 5


async def test_whoever_gives_up_holds_up_nobody(autojump_clock: trio.testing.MockClock) -> None:
    semaphore = PeerSemaphore(SlotLimits(max_bytes=10))
    log: list[int] = []

    await sent_in_order(semaphore, [20, 30, 40], log, n_cancelled=25)
    await sent_in_order(semaphore, [50], log)

    assert log == [20, 30, 50] and semaphore.is_unused


async def test_a_peer_that_rests_is_waited_for_and_another_is_taken_meanwhile(autojump_clock: trio.testing.MockClock) -> None:
    semaphore = PeerSemaphore(SlotLimits(max_per_peer=1))
    began = trio.current_time()
    semaphore.rest(A, began + 5)
    taken: list[tuple[PeerId, float]] = []

    async def take(*peers: PeerId) -> None:
        async with semaphore.slot(peers) as peer:
            taken.append((peer, trio.current_time() - began))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, A)
        nursery.start_soon(take, A, B)

    assert sorted(taken) == [(A, 5), (B, 0)]


async def test_a_task_that_waits_already_waits_until_the_peer_has_rested(autojump_clock: trio.testing.MockClock) -> None:
    semaphore = PeerSemaphore(SlotLimits(max_per_peer=1))
    began = trio.current_time()
    taken_at: list[float] = []

    async def take() -> None:
        async with semaphore.slot([A]):
            taken_at.append(trio.current_time() - began)
            await trio.sleep(1)
            if len(taken_at) == 1:
                semaphore.rest(A, began + 7)  # it was turned away, while the other task waits

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            nursery.start_soon(take)

    assert taken_at == [0, 7]
