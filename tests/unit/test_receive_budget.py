"""How much of what peers send is held before it is whole."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.receive_budget import SHARE, ReceiveBudget

ONE, OTHER = PeerId("one"), PeerId("other")


def test_one_peer_has_at_most_half_of_the_budget_and_others_still_get_in() -> None:
    budget = ReceiveBudget(800)
    while budget.take(ONE, 10):
        pass

    assert budget.n_bytes == 400
    assert budget.take(OTHER, 800 // SHARE) and not budget.take(OTHER, 1)


def test_what_is_given_back_can_be_taken_again() -> None:
    budget = ReceiveBudget(100)
    assert budget.take(ONE, 50) and not budget.take(ONE, 1)
    budget.give_back(ONE, 50)
    assert budget.n_bytes == 0 and budget.take(ONE, 50)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 300), st.booleans()), max_size=200))
def test_no_more_is_held_than_the_budget_and_nobody_is_refused_while_half_is_free(events: list[tuple[str, int, bool]]) -> None:
    budget, held = ReceiveBudget(1000), Counter[str]()
    for name, n_bytes, gives_back in events:
        if gives_back:
            budget.give_back(PeerId(name), held.pop(name, 0))
        elif budget.take(PeerId(name), n_bytes):
            held[name] += n_bytes
        else:
            assert held.total() + n_bytes > 500
        assert budget.n_bytes == held.total() <= 1000
        assert all(n <= max(500, 1000 // SHARE) for n in held.values())
