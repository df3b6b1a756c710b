"""The history of a shard: what fits, what is known, what leads from one state to another."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core import chain as chain_module
from legion_p2p.core import inclusions
from legion_p2p.core.announcement import mark_of
from legion_p2p.core.chain import MAX_DIGESTS, MAX_LOG_ENTRIES, Chain, Step
from legion_p2p.core.identity import PeerId
from legion_p2p.core.inclusions import MAX_SEQ_JUMP
from legion_p2p.core.wire import Inclusion, Update, UpdateHeader, Updates, decode_header, encode
from tests.replies import decode_reply

OWNER, A, B, C = (PeerId(name) for name in ("owner", "A", "B", "C"))


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def header(
    version: int, base: bytes, digest: bytes, *, owner: PeerId = OWNER, included: tuple[Inclusion, ...] = ()
) -> UpdateHeader:
    return UpdateHeader("run", 0, version, base, digest, owner, "fp32", included, (), 1, 1)


def update_of(made: UpdateHeader, payload: bytes = b"x") -> Update:
    return Update(encode(made), b"s" * 64, payload)


def extend(chain: Chain, n: int, branch: str = "", payload: bytes = b"x", included: tuple[Inclusion, ...] = ()) -> None:
    for _ in range(n):
        version = chain.version + 1
        made = header(version, chain.digest, digest_of(f"{branch}{version}"), included=included)
        assert chain.judge(made) is Step.APPLY
        chain.applied(made, update_of(made, payload))


def new_chain(max_log_bytes: int = 1 << 20) -> Chain:
    return Chain(0, digest_of("0"), max_log_bytes)


@pytest.mark.parametrize(
    ("version", "base", "digest", "step"),
    [
        (6, "5", "6", Step.APPLY),
        (6, "other 5", "6", Step.FORKED),
        (5, "4", "5", Step.KNOWN),
        (5, "other 4", "5", Step.KNOWN),  # who holds the digest holds the bytes, whichever way they were made
        (3, "2", "3", Step.KNOWN),
        (5, "4", "other 5", Step.FORKED),
        (3, "2", "other 3", Step.FORKED),
        (7, "6", "7", Step.BEHIND),
        (7, "5", "7", Step.BEHIND),
        (0xFFFFFFFF, "5", "6", Step.BEHIND),
    ],
)
def test_it_judges_an_update_by_its_header(version: int, base: str, digest: str, step: Step) -> None:
    chain = new_chain()
    extend(chain, 5)

    assert chain.judge(header(version, digest_of(base), digest_of(digest))) is step


def test_it_advances_with_what_is_applied() -> None:
    chain = new_chain()

    extend(chain, 3, included=(Inclusion(A, 4),))

    assert (chain.version, chain.digest, chain.owner) == (3, digest_of("3"), OWNER)
    assert chain.mark == mark_of(3, digest_of("3"))
    assert chain.included() == (Inclusion(A, 4),)
    assert [chain.includes(A, seq) for seq in (3, 4, 5)] == [True, True, False]
    assert not chain.includes(B, 0)
    assert chain.last().header.version == 3


def test_it_knows_which_states_it_came_through() -> None:
    chain = new_chain()
    extend(chain, 3)

    assert chain.passed(0, digest_of("0")) and chain.passed(3, digest_of("3"))
    assert not chain.passed(2, digest_of("3")) and not chain.passed(4, digest_of("4"))


def test_a_mark_lies_on_it_or_not_or_cannot_be_told() -> None:
    chain = new_chain()
    extend(chain, 3)

    assert chain.holds(mark_of(2, digest_of("2"))) is True
    assert chain.holds(mark_of(2, digest_of("other 2"))) is False
    assert chain.holds(mark_of(9, digest_of("9"))) is None


def test_what_comes_after_a_state_leads_to_ours() -> None:
    chain = new_chain()
    extend(chain, 5)

    updates = chain.since(2, digest_of("2"))

    assert [decode_header(u.header).version for u in updates] == [3, 4, 5]
    assert chain.since(5, digest_of("5")) == ()


def test_it_does_not_lead_from_where_it_never_was() -> None:
    chain = new_chain()
    extend(chain, 5)

    assert chain.since(2, digest_of("other 2")) is None
    assert chain.since(5, digest_of("other 5")) is None
    assert chain.since(6, digest_of("6")) is None


def test_the_log_is_bounded_in_entries() -> None:
    chain = new_chain()

    extend(chain, MAX_LOG_ENTRIES + 3)

    assert chain.since(2, digest_of("2")) is None
    assert len(chain.since(3, digest_of("3"))) == MAX_LOG_ENTRIES


def test_the_log_is_bounded_in_bytes_headers_included() -> None:
    one = update_of(header(1, b"x" * 32, b"x" * 32), b"x" * 100)
    size = len(one.header) + len(one.payload)
    chain = new_chain(max_log_bytes=3 * size + size // 2)

    extend(chain, 10, payload=b"x" * 100)

    assert len(chain.since(7, digest_of("7"))) == 3
    assert chain.since(6, digest_of("6")) is None
    assert chain._log_bytes == 3 * size


@pytest.mark.parametrize(("n_together", "is_a_view"), [(1, True), (5, False)])
def test_an_update_in_the_log_does_not_keep_the_message_that_it_came_in(n_together: int, is_a_view: bool) -> None:
    chain = new_chain()
    made = header(1, chain.digest, digest_of("1"))
    one = update_of(made, bytes(1000))
    arrived = decode_reply(encode(Updates((one,) * n_together, 0)))
    assert isinstance(arrived, Updates)

    chain.applied(made, arrived.updates[0])

    (kept,) = chain.since(0, digest_of("0")) or ()
    assert kept.payload == one.payload
    assert isinstance(kept.payload, memoryview) is is_a_view


def test_an_update_larger_than_the_log_is_not_kept() -> None:
    chain = new_chain(max_log_bytes=10)

    extend(chain, 1, payload=b"x" * 100)

    assert chain.version == 1 and chain.last() is None and chain._log_bytes == 0
    assert chain.since(0, digest_of("0")) is None and chain.since(1, digest_of("1")) == ()


def test_a_rebased_chain_leads_from_nothing_before_it() -> None:
    chain = new_chain()
    extend(chain, 3)

    chain.rebased(digest_of("alone"), A, (Inclusion(A, 8),))

    assert (chain.version, chain.digest, chain.owner) == (4, digest_of("alone"), A)
    assert chain.since(3, digest_of("3")) is None
    assert chain.passed(3, digest_of("3")), "but it still knows where it came from"
    assert chain.includes(A, 8)
    extend(chain, 1, "after ")
    assert len(chain.since(4, digest_of("alone"))) == 1


def test_the_digests_that_are_remembered_are_bounded() -> None:
    chain = new_chain()

    extend(chain, MAX_DIGESTS + 5)

    assert len(chain._digests) == MAX_DIGESTS
    assert not chain.passed(5, digest_of("5")) and chain.passed(6, digest_of("6"))


def test_whose_contributions_are_told_apart_is_bounded_and_newcomers_find_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inclusions, "MAX_TRACKED", 2)
    chain = new_chain()

    for peer in (A, B, A, C):
        extend(chain, 1, included=(Inclusion(peer, 1),))

    assert [i.peer for i in chain.included()] == [A, C]


def test_it_continues_what_was_fetched() -> None:
    chain = Chain(41, digest_of("41"), 1 << 20, [Inclusion(A, 7)], OWNER)

    extend(chain, 1, included=(Inclusion(A, 5), Inclusion(B, 0)))

    assert chain.included() == (Inclusion(A, 7), Inclusion(B, 0)), "a contribution is never un-included"


def test_a_number_that_no_member_reaches_is_not_taken_for_included() -> None:
    """Or a liar could have all that the member ever sends taken for included."""
    chain = Chain(0, digest_of("0"), 1 << 20, [Inclusion(A, 1 << 62), Inclusion(B, 7)])

    extend(chain, 1, included=(Inclusion(A, 1 << 62), Inclusion(B, 8 + MAX_SEQ_JUMP)))

    assert (chain.newest(A), chain.newest(B), chain.newest(C)) == (-1, 7, -1)
    assert chain.is_plausible(B, 7 + MAX_SEQ_JUMP) and not chain.is_plausible(B, 8 + MAX_SEQ_JUMP)


def test_it_knows_who_made_its_versions() -> None:
    chain = new_chain()
    made = header(1, chain.digest, digest_of("1"), owner=A)
    chain.applied(made, update_of(made))
    extend(chain, 1)

    assert [chain.was_made_by(peer) for peer in (A, OWNER, B)] == [True, True, False]
    extend(chain, MAX_LOG_ENTRIES)
    assert not chain.was_made_by(A), "what is no longer in the log is long ago"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 300)), min_size=1, max_size=100), st.integers(0, 3000))
def test_replaying_what_follows_any_state_gives_the_same_state(steps: list[tuple[bool, int]], max_log_bytes: int) -> None:
    chain = new_chain(max_log_bytes)
    states = [(chain.version, chain.digest)]
    for rebases, size in steps:
        if rebases:
            chain.rebased(digest_of(f"alone {chain.version}"), A)
        else:
            extend(chain, 1, payload=b"x" * size)
        states.append((chain.version, chain.digest))

    n_reached = 0
    for version, digest in states:
        updates = chain.since(version, digest)
        if updates is None:
            assert n_reached == 0, "the log reaches back without gaps"
            continue
        n_reached += 1
        follower = Chain(version, digest, max_log_bytes)
        for update in updates:
            made = decode_header(update.header)
            assert follower.judge(made) is Step.APPLY
            follower.applied(made, update)
        assert (follower.version, follower.digest) == (chain.version, chain.digest)
    assert n_reached >= 1
    assert chain._log_bytes <= max_log_bytes


@given(st.lists(st.tuples(st.sampled_from(["extend", "rebase", "replace"]), st.integers(0, 300)), min_size=1, max_size=80))
def test_the_bytes_that_lead_from_a_state_are_those_of_the_updates_in_between(steps: list[tuple[str, int]]) -> None:
    chain = new_chain(2000)
    states = [(chain.version, chain.digest)]
    for number, (what, size) in enumerate(steps):
        if what == "extend":
            extend(chain, 1, f"{number}-", b"x" * size)
        elif what == "rebase":
            chain.rebased(digest_of(f"rebased {number}"), A)
        else:
            chain.replaced(chain.version + size, digest_of(f"replaced {number}"), B)
        states.append((chain.version, chain.digest))

    for state in [*states, (0, digest_of("another")), (10**6, chain.digest)]:
        updates = chain.since(*state)
        expected = None if updates is None else sum(len(u.header) + len(u.payload) for u in updates)
        assert chain.bytes_since(*state) == expected


def test_to_ask_about_thousands_of_states_costs_no_more_than_looking_them_up(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = new_chain()
    extend(chain, MAX_LOG_ENTRIES)
    sizes = []
    monkeypatch.setattr(chain_module, "_size", lambda update: sizes.append(update) or 1)

    for _ in range(1000):
        chain.bytes_since(1, digest_of("1"))

    assert len(sizes) <= 1000
