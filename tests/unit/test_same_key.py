"""Two peers with one key: found out at both, and the newer one ends."""

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.same_key import EARLIER_LIVES, WITHIN_S, Holder, SameKey


def test_an_earlier_life_is_outbid_without_a_word():
    key = SameKey()

    assert [key.contradicted(100 + n, 5, 1, float(n)) for n in range(EARLIER_LIVES)] == [None] * EARLIER_LIVES
    assert key.contradicted(100 + EARLIER_LIVES - 1, 5, 1, 3.0) is None  # passed on by somebody else


def test_what_is_outbid_seldom_is_no_second_peer():
    key = SameKey()

    assert all(key.contradicted(n, 5, 1, n * WITHIN_S) is None for n in range(20))


@given(st.integers(1, 1000), st.integers(1, 1000), st.floats(0.1, 5.0))
def test_of_two_that_outbid_each_other_the_one_that_announced_itself_less_often_is_the_newer(old_seq, new_seq, every_s):
    if old_seq == new_seq:
        return
    old_seq, new_seq = max(old_seq, new_seq), min(old_seq, new_seq)
    old, new = SameKey(), SameKey()
    told = []
    for n in range(EARLIER_LIVES + 1):
        at, incarnation = n * every_s, 10 + 2 * n
        told = [
            old.contradicted(incarnation, new_seq + n, old_seq + n, at),
            new.contradicted(incarnation + 1, old_seq + n, new_seq + n, at),
        ]

    assert told == [Holder.OLDER, Holder.NEWER]


def test_of_two_that_cannot_be_told_apart_both_end():
    key = SameKey()

    assert [key.contradicted(n, 7, 7, float(n)) for n in range(EARLIER_LIVES + 1)][-1] is Holder.NEWER
