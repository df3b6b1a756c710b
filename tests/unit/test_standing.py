"""What a member's pushes weigh by how they went with the others' in earlier rounds."""

import random

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.chain import Chain
from legion_p2p.core.identity import PeerId
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import Inclusion, Update, UpdateAccount, UpdateHeader
from legion_p2p.errors import UsageError
from legion_p2p.services.shards.replica import ShownPush, averaged
from legion_p2p.tensor.robust.geometry import Group, squared_distances
from legion_p2p.tensor.robust.standing import FULL, NEWCOMER, NONE, SCALE, alignments, next_standings, weight_of

N = 512
TREND = RoundSpec(push_codec="int8", update_codec="int8", screening="trend")
ALIGNED = st.one_of(st.none(), st.floats(-1, 1))


def test_what_a_standing_weighs() -> None:
    assert weight_of(NONE) == weight_of(-SCALE) == 0
    assert weight_of(FULL) == weight_of(SCALE) == 1
    assert weight_of(NEWCOMER) == pytest.approx(1 / 3)


@given(st.lists(st.tuples(st.integers(-SCALE, SCALE), ALIGNED), min_size=1, max_size=30))
def test_standings_stay_in_their_bounds_and_do_not_depend_on_the_order(members: list[tuple[int, float | None]]) -> None:
    before, aligned = zip(*members, strict=True)

    after = next_standings(before, aligned)
    backwards = next_standings(before[::-1], aligned[::-1])

    assert all(-SCALE <= standing <= SCALE for standing in after) and backwards[::-1] == after
    assert all(now == then for now, then, a in zip(after, before, aligned, strict=True) if a is None)


def test_one_that_goes_against_the_others_weighs_nothing_after_a_few_rounds_and_may_come_back() -> None:
    standings: tuple[int, ...] = (NEWCOMER,) * 5
    for _ in range(4):
        standings = next_standings(standings, (0.5, 0.45, 0.55, 0.4, -0.4))
    assert standings[-1] <= NONE and min(standings[:-1]) >= FULL

    for _ in range(6):
        standings = next_standings(standings, (0.5, 0.45, 0.55, 0.4, 0.4))
    assert weight_of(standings[-1]) > 0.9


def test_one_of_unusual_data_weighs_less_but_something() -> None:
    standings: tuple[int, ...] = (FULL,) * 5
    for _ in range(100):
        standings = next_standings(standings, (0.5, 0.45, 0.55, 0.4, -0.02))

    assert 0.5 < weight_of(standings[-1]) < 1


@pytest.mark.parametrize("n", [4, 8, 25])
def test_noise_makes_liars_of_fewer_than_one_honest_member_in_a_thousand(n: int) -> None:
    """The worst case: near the end of training pushes have hardly anything in common."""
    rng, standings, n_accused, n_rounds = random.Random(n), (NEWCOMER,) * n, 0, 2000
    for _ in range(n_rounds):
        standings = next_standings(standings, [rng.gauss(0.01, 0.05) for _ in range(n)])
        n_accused += sum(standing <= NONE for standing in standings)

    assert n_accused < n_rounds * n / 1000


def test_where_most_go_against_each_other_nobody_is_judged() -> None:
    before = (0, 100, -200, 50)

    assert next_standings(before, (-0.2, -0.1, -0.3, 0.4)) == before
    assert next_standings((0, 100), (0.5, -0.5)) == (0, 100), "of two nobody knows which one is wrong"


def test_an_alignment_is_the_cosine_with_the_rest() -> None:
    pushes = [torch.randn(N, generator=torch.Generator().manual_seed(i), dtype=torch.float32) for i in range(4)]
    shares = [0.4, 0.3, 0.2, 0.0]
    apart = squared_distances(pushes, [Group((i,), (1.0,), 1.0) for i in range(4)])

    found = alignments(apart, shares)

    for i, push in enumerate(pushes):
        rest = sum(share * other for j, (share, other) in enumerate(zip(shares, pushes, strict=True)) if j != i)
        assert found[i] == pytest.approx(float(torch.nn.functional.cosine_similarity(push, rest, dim=0)), abs=1e-4)


def test_who_pushed_nothing_is_compared_with_nobody() -> None:
    assert alignments(np.zeros((4, 4)), [0.5, 0.5, 0.0]) == [None] * 3


def shown(standings: dict[str, int | None]) -> list[ShownPush]:
    return [ShownPush(PeerId(name), 7, 100, 1, standing) for name, standing in standings.items()]


def pushed(names: str) -> dict[PeerId, torch.Tensor]:
    common = torch.randn(N, generator=torch.Generator().manual_seed(99), dtype=torch.float32)
    values = {}
    for i, name in enumerate(names):
        own = torch.randn(N, generator=torch.Generator().manual_seed(i), dtype=torch.float32)
        values[PeerId(name)] = common + own
    return values


def test_a_member_without_standing_moves_nothing_and_is_compared_all_the_same() -> None:
    values = pushed("abcde")
    known = dict.fromkeys("abcd", FULL) | {"e": NONE}

    with_e = averaged(shown(known), 7, values, TREND, N)
    values[PeerId("e")] = -values[PeerId("e")]
    with_another = averaged(shown(known), 7, values, TREND, N)

    assert torch.equal(with_e.mean, with_another.mean) and "e" in with_e.used
    assert with_e.standings[-1] > NONE > with_another.standings[-1]


def test_where_nobody_has_a_standing_left_all_count() -> None:
    values = pushed("abcd")

    nobody = averaged(shown(dict.fromkeys("abcd", NONE)), 7, values, TREND, N)
    everybody = averaged(shown(dict.fromkeys("abcd", FULL)), 7, values, TREND, N)

    assert torch.equal(nobody.mean, everybody.mean)


def test_without_screening_nobody_has_a_standing() -> None:
    spec = msgspec.structs.replace(TREND, screening="none")

    assert averaged(shown(dict.fromkeys("abcd", NONE)), 7, pushed("abcd"), spec, N).standings == ()


def test_screening_needs_a_rule_that_compares_pushes() -> None:
    with pytest.raises(UsageError, match="screening"):
        msgspec.structs.replace(TREND, aggregation="mean").check()


def header_of(version: int, standings: dict[str, int], before: tuple[int, ...]) -> UpdateHeader:
    included = tuple(Inclusion(name, version, standing) for name, standing in standings.items())
    account = UpdateAccount((), b"p" * 32, b"b" * 32, b"a" * 32, standings=before)
    digest = bytes([version]) * 32
    return UpdateHeader(
        "run", 0, version, bytes([version - 1]) * 32, digest, "owner", "int8", included, (), 2, 1, account
    )  # fmt: skip


def test_an_owner_is_held_to_the_standings_that_the_updates_before_ended_with() -> None:
    chain = Chain(1, b"\1" * 32, 1 << 20, (Inclusion("b", 1, 40),))
    first = header_of(2, {"a": 100}, (NEWCOMER,))
    assert chain.agrees_on_standings(first)
    chain.applied(first, Update(b"", b"", b""))
    assert chain.standing(PeerId("a")) == 100 and chain.standing(PeerId("b")) == 40 and chain.standing(PeerId("c")) is None

    assert chain.agrees_on_standings(header_of(3, {"a": 150, "b": 50}, (100, 30))), "of b nothing was seen here"
    assert not chain.agrees_on_standings(header_of(3, {"a": 150, "b": 50}, (90, 40)))
    assert not chain.agrees_on_standings(header_of(3, {"a": 150}, ()))


def test_what_is_known_of_members_goes_with_the_whole_shard() -> None:
    chain = Chain(1, b"\1" * 32, 1 << 20, (Inclusion("b", 1, 40),))
    chain.applied(header_of(2, {"a": 100}, (NEWCOMER,)), Update(b"", b"", b""))

    assert set(chain.included()) == {Inclusion("a", 2, 100), Inclusion("b", 1, 40)}
    chain.replaced(9, b"\9" * 32, PeerId("owner"), (Inclusion("c", 1, -10),))
    assert chain.standing(PeerId("a")) is None and chain.standing(PeerId("c")) == -10
