"""How far pushes agree, and the length that is given back to their mean."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from legion_p2p.tensor.aggregate import WeightedPush
from legion_p2p.tensor.flatten import digest
from legion_p2p.tensor.mean_length import BLOCK, CHUNK, Term, given_back, squares_of
from legion_p2p.tensor.robust.rules import Rule, aggregate, names

N = 4 * BLOCK


def axis(i: int, length: float = 1.0) -> Tensor:
    """Of one block a direction."""
    x = torch.zeros(BLOCK)
    x[i] = length
    return x


def given_back_of(pushes: list[Tensor], part: float = 1.0, weights: list[float] | None = None) -> tuple[Tensor, float | None]:
    weights = weights or [1.0] * len(pushes)
    mean = sum(w * push for w, push in zip(weights, pushes, strict=True)) / sum(weights)
    return given_back(mean, [Term(push, w, 1.0) for push, w in zip(pushes, weights, strict=True)], part)


def test_what_all_push_alike_is_left_as_it_is() -> None:
    push = torch.arange(1.0, N + 1)

    made, agreement = given_back_of([push, push, push])

    torch.testing.assert_close(made, push)
    assert agreement == pytest.approx(1.0)


def test_the_mean_of_orthogonal_pushes_becomes_as_long_as_they_are() -> None:
    made, agreement = given_back_of([axis(i, 2.0) for i in range(4)])

    assert float(made.norm()) == pytest.approx(2.0)
    assert torch.allclose(made[:4], torch.ones(4)) and agreement == pytest.approx(0.0)


def test_half_of_it_is_given_back_where_the_run_says_so() -> None:
    made, _ = given_back_of([axis(0), axis(1), axis(2), axis(3)], part=0.5)

    assert float(made.norm()) == pytest.approx(0.5 + 0.5 * 1 / math.sqrt(4))


def test_pushes_against_each_other_give_back_no_more_than_orthogonal_ones() -> None:
    """What is left of them may be noise of any direction."""
    made, agreement = given_back_of([axis(0), axis(0, -0.9)])

    assert agreement == 0.0
    assert float(made.norm()) < 0.05 * math.sqrt(2) * 1.05


def test_each_block_is_given_back_what_it_lost() -> None:
    alike, apart = axis(0), [axis(1), axis(2)]
    made, agreement = given_back_of([torch.cat([alike, apart[0]]), torch.cat([alike, apart[1]])])

    torch.testing.assert_close(made[:BLOCK], alike)
    assert float(made[BLOCK:].norm()) == pytest.approx(1.0)
    assert agreement == pytest.approx(0.5)


def test_one_push_alone_or_none_that_moved_is_nothing_to_compare() -> None:
    assert given_back_of([axis(0)]) == (pytest.approx(axis(0)), None)
    still, agreement = given_back_of([torch.zeros(N), torch.zeros(N)])
    assert agreement is None and not still.any()


def test_a_push_without_weight_counts_for_nothing() -> None:
    with_it = given_back_of([axis(0), axis(1), 1000 * axis(2)], weights=[1.0, 1.0, 0.0])
    without = given_back_of([axis(0), axis(1)])

    assert torch.equal(with_it[0], without[0]) and with_it[1] == without[1]


def test_every_element_of_every_chunk_counts() -> None:
    numel = CHUNK + BLOCK + 3
    pushes = [torch.ones(numel), torch.ones(numel)]
    pushes[0][-1], pushes[1][-1] = 3.0, -1.0

    made, agreement = given_back_of(pushes)

    assert len(made) == numel and agreement is not None and agreement < 1.0
    assert torch.equal(made[:CHUNK], torch.ones(CHUNK)) and made[-1] > 1.0
    assert squares_of(torch.ones(BLOCK + 3), 2.0).tolist() == [4.0 * BLOCK, 12.0]


def test_the_bits_are_those_that_every_machine_gets() -> None:
    g = torch.Generator().manual_seed(3)
    pushes = [torch.randn(1000, generator=g) for _ in range(3)]

    made, agreement = given_back_of(pushes, weights=[1.0, 2.0, 0.5])

    assert digest(made).hex()[:16] == "10ac2ca98ddbce70"
    assert agreement == 0.0


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 6),
    common=st.floats(0, 3),
    part=st.floats(0.01, 1),
    exponent=st.integers(-30, 30),
)
def test_no_block_becomes_shorter_nor_longer_than_the_pushes_are(
    seed: int, n: int, common: float, part: float, exponent: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    direction = common * torch.randn(N, generator=g)
    pushes = [(direction + torch.randn(N, generator=g)) * 2.0**exponent for _ in range(n)]
    mean = sum(pushes) / n

    made, agreement = given_back(mean, [Term(push, 1.0, 1.0) for push in pushes], part)

    lengths = torch.stack([push.view(-1, BLOCK).norm(dim=1) for push in pushes]).square().mean(dim=0).sqrt()
    before, after = mean.view(-1, BLOCK).norm(dim=1), made.view(-1, BLOCK).norm(dim=1)
    assert (after >= before * (1 - 1e-5)).all() and (after <= torch.maximum(lengths, before) * (1 + 1e-5)).all()
    assert agreement is not None and 0 <= agreement <= 1


@pytest.mark.parametrize("name", names())
def test_every_rule_gives_back_length_and_tells_how_far_the_pushes_agree(name: str) -> None:
    g = torch.Generator().manual_seed(0)
    direction = torch.randn(N, generator=g)
    pushes = [WeightedPush(f"p{i}", 1.0, direction + 2 * torch.randn(N, generator=g)) for i in range(7)]

    plain = aggregate(pushes, Rule(name))
    restored = aggregate(pushes, Rule(name), restore=1.0)

    assert plain.agreement is None
    assert (restored.agreement is None) == (name == "krum")  # which chooses one push
    assert float(restored.mean.norm()) >= float(plain.mean.norm())
    cosine = torch.nn.functional.cosine_similarity(restored.mean, plain.mean, dim=0)
    assert float(cosine) > 0.9  # each block keeps its direction
