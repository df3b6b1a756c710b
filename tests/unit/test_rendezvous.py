"""Who owns which shard: everybody computes the same, and little moves."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core import rendezvous
from legion_p2p.core.identity import PeerId
from legion_p2p.core.rendezvous import Ownership, owned_by, ownership, ranking, score, shard_key, unit_hash

names = st.text(min_size=1, max_size=8).map(PeerId)
weights_of = st.dictionaries(names, st.floats(1e-6, 1e9), min_size=1, max_size=12)


def owners(weights: dict[PeerId, float], n_shards: int = 24) -> list[PeerId | None]:
    return [ownership("run", "home", shard, weights).owner for shard in range(n_shards)]


def test_the_assignment_stays_what_it_is() -> None:
    weights = {PeerId(name): 1.0 for name in "ABCD"}

    assert "".join(owners(weights)) == "BDCADADAABBADABCDCBCADCC"


def test_shares_follow_the_weights() -> None:
    weights = {PeerId("A"): 1.0, PeerId("B"): 1.0, PeerId("C"): 2.0, PeerId("D"): 4.0}

    n_owned = Counter(owners(weights, 8000))

    for peer, weight in weights.items():
        expected = 8000 * weight / 8
        assert abs(n_owned[peer] - expected) < 5 * (expected * (1 - weight / 8)) ** 0.5  # five standard deviations


@given(weights_of)
def test_the_order_of_the_list_does_not_matter(weights: dict[PeerId, float]) -> None:
    backwards = dict(reversed(weights.items()))

    assert owners(weights) == owners(backwards)


@given(weights_of, names, st.floats(1e-6, 1e9))
def test_who_joins_takes_shards_for_itself_and_moves_no_other(weights: dict[PeerId, float], new: PeerId, weight: float) -> None:
    weights.pop(new, None)
    before = owners(weights)

    after = owners({**weights, new: weight})

    assert all(now in (then, new) for then, now in zip(before, after, strict=True))


@given(weights_of.filter(lambda w: len(w) > 1), st.data())
def test_when_one_leaves_its_standbys_take_over_and_nothing_else_moves(weights: dict[PeerId, float], data: st.DataObject) -> None:
    leaver = data.draw(st.sampled_from(sorted(weights)))
    before = [ownership("run", "home", shard, weights) for shard in range(24)]

    after = owners({peer: w for peer, w in weights.items() if peer != leaver})

    for then, now in zip(before, after, strict=True):
        assert now == (then.standby if then.owner == leaver else then.owner)


@given(weights_of, st.floats(1.0, 100.0), st.data())
def test_who_gains_weight_loses_no_shard(weights: dict[PeerId, float], factor: float, data: st.DataObject) -> None:
    gainer = data.draw(st.sampled_from(sorted(weights)))
    before = owners(weights)

    after = owners({**weights, gainer: weights[gainer] * factor})

    assert all(now in (then, gainer) for then, now in zip(before, after, strict=True))


@given(weights_of, names)
def test_zero_weight_never_owns_nor_stands_by(weights: dict[PeerId, float], idle: PeerId) -> None:
    weights[idle] = 0.0

    found = [ownership("run", "home", shard, weights) for shard in range(24)]

    assert all(idle not in (o.owner, o.standby) for o in found)


def test_owner_and_standby_are_the_first_two_of_the_ranking() -> None:
    weights = {PeerId(name): 1.0 for name in "ABCD"}

    ranked = ranking(shard_key("run", "home", 3), weights)

    assert sorted(ranked) == list("ABCD")
    assert ownership("run", "home", 3, weights) == Ownership(ranked[0], ranked[1])


def test_without_members_nobody_owns_and_a_lone_one_has_no_standby() -> None:
    assert ownership("run", "home", 0, {}) == Ownership(None, None)
    assert ownership("run", "home", 0, {PeerId("A"): 1.0}) == Ownership("A", None)
    assert owned_by(PeerId("A"), "run", "home", range(3), {PeerId("A"): 1.0}) == [0, 1, 2]


def test_run_region_and_shard_each_change_who_owns() -> None:
    weights = {PeerId(f"peer {i}"): 1.0 for i in range(20)}

    lists = [
        [ownership(run, region, shard, weights).owner for shard in range(first, first + 20)]
        for run, region, first in [("run", "home", 0), ("other run", "home", 0), ("run", "away", 0), ("run", "home", 20)]
    ]

    assert len({tuple(owners_) for owners_ in lists}) == 4


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_the_smallest_and_the_largest_hash_lie_strictly_between_0_and_1(byte: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1 the score would divide by zero, and whoever finds such a name would stop everybody."""

    class Extreme:
        def __init__(self, data: bytes) -> None: ...

        def digest(self) -> bytes:
            return byte * 32

    monkeypatch.setattr(rendezvous.hashlib, "sha256", Extreme)

    assert 0 < unit_hash("x") < 1
    assert score("key", "peer", 1.0) > 0
