"""Who may have how much under way: never more than the limits, a turn for everyone that waits, and a time to come again."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.slots import MAX_REMEMBERED, MAX_RESTING, MAX_RETRY_S, MIN_RETRY_S, Slot, SlotLimits, Slots

MB = 1 << 20
LIMITS = SlotLimits(max_items=3, max_bytes=10 * MB, max_per_peer=2)
A, B, C, D = PEERS = [PeerId(name) for name in "abcd"]


def begun(slots: Slots, *asked: tuple[PeerId, int]) -> list[bool]:
    return [slots.begin(peer, n_bytes) is not None for peer, n_bytes in asked]


def served(slots: Slots, now: float = 0.0) -> list[Slot]:
    """All that find room now."""
    return list(iter(lambda: slots.poll(now), None))


def test_few_are_under_way_at_a_time_and_not_all_with_one_peer() -> None:
    slots = Slots(LIMITS)
    first = slots.begin(A, MB)

    assert begun(slots, (A, MB), (A, MB), (B, MB), (C, MB)) == [True, False, True, False]
    assert first is not None and slots.n_items == 3
    slots.end(first)
    assert begun(slots, (C, MB)) == [True]


def test_all_together_have_a_limit_that_one_alone_may_exceed() -> None:
    slots = Slots(LIMITS)
    large = slots.begin(A, 11 * MB)

    assert large is not None and begun(slots, (B, 1)) == [False]
    slots.end(large)
    assert begun(slots, (B, 6 * MB), (C, 5 * MB), (C, 4 * MB)) == [True, False, True]
    assert slots.n_bytes == 10 * MB


def test_the_smallest_goes_first_and_of_equal_ones_the_first() -> None:
    slots = Slots(SlotLimits(max_items=1))
    asked = [slots.ask([A], size) for size in (3, 1, 2, 1)]
    order = []

    while (slot := slots.poll(0.0)) is not None:
        assert slots.poll(0.0) is None
        order.append(asked.index(slot))
        slots.end(slot)

    assert order == [1, 3, 2, 0] and slots.is_unused


def test_what_waits_for_one_peer_does_not_hold_up_what_waits_for_another() -> None:
    slots = Slots(SlotLimits(max_per_peer=1))
    one, behind, other = slots.ask([A]), slots.ask([A]), slots.ask([B])

    assert served(slots) == [one, other] and behind.peer is None
    slots.end(one)
    assert served(slots) == [behind]


def test_what_is_small_does_not_overtake_for_ever_what_has_no_room_yet() -> None:
    slots = Slots(SlotLimits(max_bytes=10))
    first, large, later = slots.ask([A], 6), slots.ask([B], 8), slots.ask([C], 9)

    assert served(slots) == [first]
    slots.end(first)
    assert served(slots) == [large] and later.peer is None


def test_of_several_peers_the_one_with_least_under_way_is_taken() -> None:
    slots = Slots(SlotLimits(max_per_peer=2))
    chosen = []

    for _ in range(5):
        slots.ask([A, B])
        chosen += [slot.peer for slot in served(slots)]

    assert chosen == [A, B, A, B]


def test_nothing_begins_with_a_peer_that_rests() -> None:
    slots = Slots(SlotLimits())
    slots.rest(A, 5.0)
    waiting = slots.ask([A])

    assert slots.begin(A, 1, now=4.9) is None and slots.poll(4.9) is None
    assert slots.next_deadline(4.9) == 5.0
    assert slots.poll(5.0) is waiting and slots.next_deadline(5.0) is None


def test_a_deadline_is_in_the_future_and_of_somebody_that_is_waited_for() -> None:
    slots = Slots(SlotLimits(max_per_peer=1))
    slots.begin(A)
    slots.rest(A, 5.0)
    slots.rest(B, 7.0)
    slots.ask([A])

    assert slots.next_deadline(4.0) == 5.0
    assert slots.poll(6.0) is None and slots.next_deadline(6.0) is None  # it rests no longer, but is busy


def test_whoever_gives_up_waiting_holds_up_nobody() -> None:
    slots = Slots(SlotLimits(max_items=1))
    one, two, three = (slots.ask([A]) for _ in range(3))
    assert served(slots) == [one]

    slots.end(two)
    slots.end(one)

    assert served(slots) == [three]


def test_the_more_wait_the_later_to_come_again() -> None:
    slots = Slots(LIMITS)
    slots.begin(A, 10 * MB)
    rate_bps = 8e6

    first = slots.retry_s(B, rate_bps, 0.0)
    again = slots.retry_s(B, rate_bps, 1.0)
    crowd = slots.retry_s(D, rate_bps, 2.0)

    assert first == again == 10 * MB / 1e6
    assert crowd > first
    assert slots.retry_s(C, rate_bps, 1000.0) == first  # the others will not come back
    assert slots.retry_s(C, 1.0, 1000.0) == MAX_RETRY_S and Slots(LIMITS).retry_s(C, None, 0.0) == MIN_RETRY_S


def test_peers_that_are_turned_away_or_rest_take_no_memory_for_ever() -> None:
    slots = Slots(LIMITS)

    for i in range(2 * MAX_RESTING):
        slots.retry_s(PeerId(f"peer {i}"), None, i / 1000)
        slots.rest(PeerId(f"peer {i}"), 1e9)

    assert len(slots._turned_away) <= MAX_REMEMBERED and len(slots._rests_until) <= MAX_RESTING


STEPS = st.lists(
    st.tuples(
        st.sets(st.sampled_from(PEERS), min_size=1), st.integers(0, 12 * MB), st.sampled_from(["begin", "ask", "end", "rest"])
    )
)


@given(STEPS)
def test_never_more_is_under_way_than_allowed_and_every_asker_is_served(steps: list[tuple[set[PeerId], int, str]]) -> None:
    slots = Slots(LIMITS)
    under_way: list[Slot] = []
    asked: list[Slot] = []
    done: list[Slot] = []

    def check() -> None:
        assert slots.n_items == len(under_way) <= LIMITS.max_items
        assert slots.n_bytes == sum(slot.n_bytes for slot in under_way)
        assert slots.n_bytes <= LIMITS.max_bytes or len(under_way) == 1
        assert all(sum(slot.peer == peer for slot in under_way) <= LIMITS.max_per_peer for peer in PEERS)

    for now, (peers, n_bytes, what) in enumerate(steps):
        if what == "begin" and (slot := slots.begin(min(peers), n_bytes, now)) is not None:
            under_way.append(slot)
        elif what == "ask":
            asked.append(slots.ask(sorted(peers), n_bytes))
        elif what == "end" and under_way:
            done.append(under_way.pop(0))
            slots.end(done[-1])
        elif what == "rest":
            slots.rest(min(peers), now + 3)
        under_way += served(slots, now)
        check()

    end = len(steps) + 3
    under_way += served(slots, end)
    while under_way:
        check()
        done.append(under_way.pop(0))
        slots.end(done[-1])
        under_way += served(slots, end)
    assert slots.is_unused and all(slot in done for slot in asked)
