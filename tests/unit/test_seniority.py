"""Which members may own, and by what the shards are dealt out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.announcement import Announcement
from legion_p2p.core.chain import Chain
from legion_p2p.core.eligible import eligible
from legion_p2p.core.identity import PeerId
from legion_p2p.core.placement import Placement
from legion_p2p.core.rendezvous import ownership
from legion_p2p.core.seniority import SALT_BYTES, is_senior, needed, salt_after
from legion_p2p.core.wire import Inclusion, Update, UpdateHeader

A, B, C = (PeerId(name) for name in "abc")
ROUNDS = 16


@given(st.integers(0, 10**6), st.integers(1, 1000))
def test_what_is_asked_grows_with_the_run_and_ends_somewhere(version: int, owner_rounds: int) -> None:
    assert needed(owner_rounds, version) <= min(owner_rounds, version)
    assert needed(owner_rounds, version) <= needed(owner_rounds, version + 1)
    assert needed(owner_rounds, 2 * owner_rounds) == owner_rounds


def test_half_of_the_shards_have_to_have_seen_it() -> None:
    """The owner of one shard may name whom it likes."""
    assert is_senior([(16, 1000), (16, 1000), (0, 1000), (0, 1000)], ROUNDS)
    assert not is_senior([(1000, 1000), (15, 1000), (0, 1000), (0, 1000)], ROUNDS)
    assert is_senior([(0, 1)], ROUNDS), "at first all may own"


def test_the_salt_is_another_one_after_so_many_versions() -> None:
    assert salt_after(14, b"x" * 32, b"old", ROUNDS) == b"old"
    assert salt_after(15, b"x" * 32, b"old", ROUNDS) == b"x" * SALT_BYTES
    assert salt_after(15, b"x" * 32, b"", 0) == b""


def header(version: int, salt: bytes = b"", **rounds: int) -> UpdateHeader:
    included = tuple(Inclusion(peer, version, rounds=n) for peer, n in rounds.items())
    base, digest = (bytes([v]) * 32 for v in (version - 1, version))
    return UpdateHeader("run", 0, version, base, digest, "owner", "int8", included, (), 2, 1, salt=salt)


def chain(version: int, *included: Inclusion, salt: bytes = b"") -> Chain:
    return Chain(version, bytes([version]) * 32, 1 << 20, included, salt=salt)


def test_rounds_are_counted_one_by_one_and_travel_with_the_whole_shard() -> None:
    ours = chain(2, Inclusion("a", 1, rounds=2))
    ours.applied(header(3, a=3, b=1), Update(b"", b"", b""))

    assert ours.rounds(A) == 3 and ours.rounds(B) == 1 and ours.rounds(C) == 0
    assert {(i.peer, i.rounds) for i in ours.included()} == {("a", 3), ("b", 1)}
    ours.replaced(9, b"\9" * 32, A, (Inclusion("c", 1, rounds=5),), salt=b"salt")
    assert ours.rounds(A) == 0 and ours.rounds(C) == 5 and ours.salt == b"salt"


@pytest.mark.parametrize(
    "wrong", [header(3, a=1000), header(3, a=2), header(3, b=2), header(3, b"salt", a=3)], ids=["more", "less", "new", "salt"]
)
def test_an_update_that_says_something_else_does_not_follow(wrong: UpdateHeader) -> None:
    ours = chain(2, Inclusion("a", 1, rounds=2))

    assert ours.counts_right(header(3, a=3, b=1), ROUNDS)
    assert not ours.counts_right(wrong, ROUNDS)
    assert not ours.counts_right(header(3, a=3), 0), "where a run does not count"


def test_the_salt_has_to_be_that_of_the_version_before() -> None:
    ours = chain(15, salt=b"old")

    assert ours.counts_right(header(16, bytes([15]) * SALT_BYTES), ROUNDS)
    assert not ours.counts_right(header(16, b"old"), ROUNDS)


def members(*names: str, weight: float = 1.0) -> list[Announcement]:
    return [Announcement(name, "run", ready=True, weight=weight) for name in names]


def test_juniors_own_nothing_however_many_and_heavy_they_are() -> None:
    juniors = [f"junior{i}" for i in range(100)]
    crowd = members("a", "b") + members(*juniors, weight=10.0)

    found = eligible("run", "", crowd, frozenset(map(PeerId, juniors)))

    assert found.weights == {A: 1.0, B: 1.0} and not found.reserve


def test_one_stands_by_where_one_senior_owns_everything_and_all_own_where_nobody_is_one() -> None:
    alone = eligible("run", "", members("a", "b"), frozenset({B}))
    nobody = eligible("run", "", members("a", "b"), frozenset({A, B}))

    assert alone.weights == {A: 1.0} and alone.reserve == {B: 1.0}
    assert nobody.weights == {A: 1.0, B: 1.0}


def test_another_salt_deals_one_shard_out_again_and_no_other() -> None:
    weights = {PeerId(f"p{i}"): 1.0 for i in range(20)}
    placement = Placement("run", 8, "rendezvous")
    plain = placement.owners("", weights)
    assert plain == tuple(ownership("run", "", shard, weights) for shard in range(8))

    moved = 0
    for n in range(20):
        salted = placement.owners("", weights, {}, (b"", b"", bytes([n + 1]) * 8, b"", b"", b"", b"", b""))
        assert salted[:2] + salted[3:] == plain[:2] + plain[3:]
        moved += salted[2] != plain[2]

    assert moved > 15
