"""Versions that only their owner has computed: until when they may be taken back, by what, and what is left then."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.announcement import mark_of
from legion_p2p.core.chain import Chain, Step
from legion_p2p.core.identity import PeerId
from legion_p2p.core.shard.provisional import MAX_REFUSED, WINDOW, Provisional
from legion_p2p.core.wire import Inclusion, UpdateHeader
from tests.unit.shard.chains import OWNER, chain_at, digest_of, next_after, update_of

NEXT, THIRD = PeerId("next"), PeerId("third")


class Shard:
    """A shard at one member: what it holds, and which owner it knows."""

    def __init__(self, version: int = 3) -> None:
        self.chain: Chain = chain_at(version)
        self.provisional = Provisional(self.chain)
        self.owner = OWNER

    def apply(self, header: UpdateHeader, *, can_be_signed: bool = True) -> None:
        self.chain.applied(header, update_of(header), is_provisional=can_be_signed)
        self.provisional.applied(header)

    def make(self, n: int = 1, branch: str = "", owner: PeerId = OWNER, **how: bool) -> list[UpdateHeader]:
        made = []
        for _ in range(n):
            made.append(next_after(self.chain, branch, owner))
            self.apply(made[-1], **how)
        return made

    def hear(self, header: UpdateHeader) -> Step:
        """What services do with an update that arrives."""
        step = self.provisional.judge(header, is_owners=header.owner == self.owner)
        if step is Step.REPLACES:
            self.provisional.take_back(header.version - 1)
        if step in (Step.APPLY, Step.REPLACES):
            self.apply(header)
        return step

    def convict(self, header: UpdateHeader) -> None:
        """It has been computed again, and is wrong."""
        self.provisional.refuse(header.version, header.digest, proven=True)
        if self.chain.passed(header.version, header.digest) and self.provisional.can_return_to(header.version - 1):
            self.provisional.take_back(header.version - 1)


def test_a_version_is_final_once_it_and_all_before_it_are_signed() -> None:
    shard = Shard()
    shard.make(3)
    assert (shard.provisional.n, shard.provisional.maker) == (3, OWNER)

    shard.provisional.sign(5)
    assert shard.provisional.final == 3
    shard.provisional.sign(4)

    assert shard.provisional.final == 5 and shard.provisional.can_return_to(5)
    assert not shard.provisional.can_return_to(4) and not shard.provisional.can_return_to(6)
    shard.provisional.sign(99)
    assert shard.provisional.final == 5


def test_where_nobody_may_sign_every_version_is_final() -> None:
    shard = Shard()
    shard.make(2 * WINDOW, can_be_signed=False)

    assert shard.provisional.n == 0 and shard.provisional.maker is None
    assert shard.provisional.lacks(OWNER) is None


def test_what_another_owner_goes_on_from_is_final() -> None:
    shard = Shard()
    shard.make(2)
    shard.make(1, owner=NEXT)

    assert (shard.provisional.final, shard.provisional.maker) == (5, NEXT)


def test_an_owner_makes_no_further_version_while_the_window_is_full() -> None:
    shard = Shard()
    shard.make(WINDOW - 1)
    assert shard.provisional.lacks(OWNER) is None
    shard.make(1)

    assert shard.provisional.lacks(OWNER) == 4
    assert shard.provisional.lacks(OWNER, signed=[5]) == 4, "the first of them counts"
    assert shard.provisional.lacks(OWNER, signed=[4]) is None
    assert shard.provisional.lacks(NEXT) is None, "another one owes nothing for it"
    shard.provisional.sign(4)
    assert shard.provisional.lacks(OWNER) is None


def test_what_is_followed_all_the_same_bounds_what_may_be_taken_back() -> None:
    shard = Shard()
    shard.make(2 * WINDOW)

    assert shard.provisional.n == WINDOW and shard.provisional.final == 3 + WINDOW
    assert shard.provisional.lacks(OWNER) is not None


def test_to_go_back_restores_all_that_the_chain_says() -> None:
    shard = Shard()
    a, b = "a", "b"
    first = next_after(shard.chain, included=(Inclusion(a, 5, 300, 2), Inclusion(b, 1)), salt=b"salt")
    shard.apply(first)
    before = shard.chain.included(), shard.chain.salt, shard.chain.owner, shard.chain.digest, shard.chain.since(3, digest_of(3))
    second = next_after(shard.chain, included=(Inclusion(a, 6, 100, 3), Inclusion("c", 0, 500, 1)), salt=b"other")
    shard.apply(second)
    assert shard.chain.included() != before[0]

    shard.provisional.take_back(4)

    now = shard.chain.included(), shard.chain.salt, shard.chain.owner, shard.chain.digest, shard.chain.since(3, digest_of(3))
    assert now == before and shard.chain.version == 4
    assert shard.chain.digest_of(5) is None and shard.chain.holds(mark_of(5, second.digest)) is None
    assert shard.chain.newest(PeerId("c")) == -1 and shard.chain.standing(PeerId(a)) == 300
    assert shard.hear(second) is Step.APPLY, "it was not said to be wrong"


def test_headers_of_provisional_versions_are_kept_though_the_log_is_short() -> None:
    shard = Shard()
    shard.chain = Chain(3, digest_of(3), 1)
    shard.provisional = Provisional(shard.chain)
    made = shard.make(3)
    assert shard.chain.entry(6) is None

    shown = shard.provisional.headers_after(4)

    assert [one.header for one in shown] == [update_of(header).header for header in made[1:]]
    shard.provisional.take_back(3)
    assert shard.chain.version == 3 and shard.provisional.headers_after(3) == []


def test_the_next_owner_replaces_what_nobody_signed_and_no_more() -> None:
    shard = Shard()
    shard.make(2)
    shard.provisional.sign(4)
    early, right = Shard(), Shard()
    right.make(1)
    from_final, too_early = next_after(right.chain, "next", NEXT), next_after(early.chain, "next", NEXT)

    assert shard.hear(from_final) is Step.FORKED, "it does not own the shard"
    shard.owner = NEXT
    assert shard.hear(too_early) is Step.FORKED, "version 4 is signed"
    assert shard.hear(from_final) is Step.REPLACES

    assert shard.chain.digest == digest_of(5, "next") and shard.provisional.maker == NEXT


def test_nobody_replaces_its_own_versions() -> None:
    shard, other = Shard(), Shard()
    shard.make(2)

    assert shard.hear(next_after(other.chain, "again", OWNER)) is Step.FORKED


def test_what_is_proven_to_be_wrong_is_never_applied_again() -> None:
    shard = Shard()
    wrong, after = shard.make(2)

    shard.convict(wrong)

    assert shard.chain.version == 3
    assert shard.hear(wrong) is Step.REFUSED and shard.hear(after) is Step.BEHIND
    assert shard.provisional.refuses(wrong.digest) and shard.provisional.refuses_mark(mark_of(4, wrong.digest))
    shard.provisional.allow()
    assert shard.hear(wrong) is Step.REFUSED


def test_what_was_only_never_signed_may_come_again_when_nobody_has_followed() -> None:
    shard = Shard()
    (made,) = shard.make(1)
    shard.provisional.refuse(made.version, made.digest, proven=False)
    shard.provisional.take_back(3)
    assert shard.hear(made) is Step.REFUSED

    shard.provisional.allow()

    assert shard.hear(made) is Step.APPLY


def test_what_is_refused_is_bounded() -> None:
    shard = Shard()
    for version in range(MAX_REFUSED + 1):
        shard.provisional.refuse(version, digest_of(version, "wrong"), proven=True)

    assert not shard.provisional.refuses(digest_of(0, "wrong"))
    assert shard.provisional.refuses(digest_of(MAX_REFUSED, "wrong"))


@pytest.mark.parametrize(
    ("n", "maker", "was_held_up", "returns"),
    [(WINDOW, OWNER, True, True), (WINDOW - 1, OWNER, True, False), (WINDOW, OWNER, False, False), (WINDOW, NEXT, True, False)],
    ids=["nobody signed for it", "it was early", "it died", "it made none of them"],
)
def test_the_next_owner_goes_back_where_the_one_before_got_no_signatures(
    n: int, maker: PeerId, was_held_up: bool, returns: bool
) -> None:
    shard = Shard()
    shard.make(n, owner=maker)

    assert shard.provisional.successor_returns(OWNER, was_held_up=was_held_up) is returns


def test_a_shard_that_was_replaced_has_nothing_to_go_back_to() -> None:
    shard = Shard(version=9)
    shard.make(2)

    shard.chain.replaced(5, digest_of(5, "other"), NEXT)

    assert (shard.provisional.final, shard.provisional.n) == (5, 0)
    shard.make(1, "other", NEXT)
    assert shard.provisional.n == 1


@st.composite
def stories(draw: st.DrawFn) -> tuple[list[UpdateHeader], list[UpdateHeader], list[list[str]]]:
    """An owner's right versions, then wrong ones; what the next owner makes from the first wrong one on; and what members hear
    of it: each in an order of its own, with losses and repetitions."""
    n_right, n_wrong = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    liar = Shard()
    right = liar.make(n_right)
    lies = liar.make(n_wrong, "wrong")
    heir = Shard()
    for header in right:
        heir.apply(header)
    heir.owner = NEXT
    after = heir.make(draw(st.integers(1, 3)), "next", NEXT)
    news = [f"old {i}" for i in range(n_right + n_wrong)] + [f"new {i}" for i in range(len(after))] + ["proof", "owner"]
    orders = [draw(st.lists(st.sampled_from(news), max_size=14)) for _ in range(3)]
    return [*right, *lies], after, orders


@given(stories())
def test_in_any_order_of_news_all_members_end_on_the_chain_of_the_next_owner(
    story: tuple[list[UpdateHeader], list[UpdateHeader], list[list[str]]],
) -> None:
    old, new, orders = story
    first_wrong = next(header for header in old if header.digest == digest_of(header.version, "wrong"))
    for order in orders:
        member = Shard()
        for news in order:
            kind, _, i = news.partition(" ")
            if kind == "old":
                member.hear(old[int(i)])
            elif kind == "new":
                member.hear(new[int(i)])
            elif kind == "proof":
                member.convict(first_wrong)
            else:
                member.owner = NEXT
            assert member.provisional.n <= WINDOW and member.chain.passed(3, digest_of(3))

        member.owner = NEXT
        last_common = [header for header in old if header.version < first_wrong.version]
        for header in [*last_common, *new]:  # as the owner answers the question what comes after the last final version
            member.hear(header)

        assert member.chain.digest == new[-1].digest
        assert not any(member.chain.passed(header.version, header.digest) for header in old if header not in last_common)
