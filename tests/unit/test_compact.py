"""What is held between rounds in a byte an element: nearly the same, and the same bits each time."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from legion_p2p.tensor import compact, local
from legion_p2p.tensor.compact import Compact, Less, Shelved, compacted, expanded, in_memory, shelved, value_of
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.local import LocalCopy

N = 600


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "SMALLEST", 16)
    monkeypatch.setattr(local, "SMALLEST", 16)


def random(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(N, generator=torch.Generator().manual_seed(seed))


def copy_at(reference: Tensor) -> tuple[Tensor, LocalCopy]:
    weights = torch.zeros(N)
    made = LocalCopy(FlatView([("w", weights)]), [(0, N)], exact=True)
    made.take(0, 0, reference)
    return weights, made


@given(st.integers(0, 1000), st.sampled_from([1e-6, 1.0, 1e6]))
def test_a_value_is_off_by_at_most_one_in_254_of_the_largest_of_its_block(seed: int, scale: float) -> None:
    x = random(seed, scale)

    held = compacted(x)

    assert isinstance(held, Compact) and len(held.data) < 1.1 * N
    off = (expanded(held) - x).abs()
    for start in range(0, N, 256):
        assert off[start : start + 256].max() <= x[start : start + 256].abs().max() / 254 * 1.01


def test_what_is_short_or_not_finite_stays_as_it_is() -> None:
    short, bad = torch.rand(15), random(1)
    bad[3] = float("nan")

    assert compacted(short) is short and compacted(bad) is bad and compacted(None) is None
    assert expanded(short) is short and expanded(None) is None


def test_what_is_held_elsewhere_is_the_same_bits_and_a_copy_each_time() -> None:
    kept: list[bytes | memoryview] = []

    def keep(data: bytes | memoryview) -> bytes | memoryview:
        kept.append(bytes(data))
        return kept[-1]

    held = shelved(random(1), keep)
    value_of(held).zero_()

    assert isinstance(held, Shelved) and torch.equal(value_of(held), random(1)) and len(kept) == 1
    assert shelved(short := torch.rand(15), keep) is short


def test_a_reference_that_is_held_elsewhere_is_trained_on_like_any_other() -> None:
    results = []
    for keep in (in_memory, bytes):
        weights, copy = copy_at(random(0))
        copy.take(0, 1, shelved(random(1), keep))
        weights -= random(3, 0.01)
        base, after = copy.hand_in([0], compactly=True)[0]
        weights -= random(4, 0.01)
        copy.take(0, 2, shelved(random(2), keep))
        results.append((weights.clone(), value_of(base) - value_of(after)))

    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_a_base_that_is_held_compactly_is_the_same_bits_each_time() -> None:
    held = Less(random(1), Compact.of(random(2)))

    assert torch.equal(value_of(held), value_of(held))


@given(st.lists(st.sampled_from(["train", "hand in", "hand in exactly", "update"]), min_size=1, max_size=12))
def test_nothing_that_was_trained_is_lost_or_handed_in_twice(steps: list[str]) -> None:
    """All that was handed in, and what is still to be, is all that was trained."""
    weights, copy = copy_at(random(0))
    trained = torch.zeros(N, dtype=torch.float64)
    handed = torch.zeros(N, dtype=torch.float64)
    moved = torch.zeros(N, dtype=torch.float64)
    start = weights.double().clone()
    for i, step in enumerate(steps):
        if step == "train":
            change = random(i + 1, 0.01)
            weights += change
            trained -= change.double()
        elif step == "update":
            weights += random(99, 1e-3)  # so that the last rounding is not given up
            trained -= random(99, 1e-3).double()
            before = weights.double().clone()
            copy.take(0, i + 1, random(i + 500))
            moved += weights.double() - before
        else:
            base, after = copy.hand_in([0], compactly=step == "hand in")[0]
            handed += value_of(base).double() - value_of(after).double()
    base, after = copy.hand_in([0])[0]
    handed += value_of(base).double() - value_of(after).double()

    assert torch.allclose(handed, trained, atol=1e-5)
    assert torch.allclose(weights.double() - start, moved - trained, atol=1e-5)


def test_what_rounding_left_out_is_handed_in_the_next_time() -> None:
    weights, copy = copy_at(torch.zeros(N))
    weights -= random(3, 0.01)

    base, after = copy.hand_in([0], compactly=True)[0]
    first = value_of(base) - value_of(after)
    weights -= random(4, 0.01)
    base, after = copy.hand_in([0])[0]

    assert not torch.equal(first, random(3, 0.01))
    torch.testing.assert_close(first + value_of(base) - value_of(after), random(3, 0.01) + random(4, 0.01), atol=1e-7, rtol=1e-4)


def test_a_peer_that_has_not_trained_since_a_compact_push_ends_with_exactly_the_reference() -> None:
    weights, copy = copy_at(random(0))
    weights -= random(3, 0.01)
    copy.hand_in([0], compactly=True)

    assert not copy.differs(0)
    copy.take(0, 1, random(7))

    assert torch.equal(weights, random(7)) and not copy.differs(0)


def test_training_since_a_compact_push_is_noticed() -> None:
    weights, copy = copy_at(random(0))
    copy.hand_in([0], compactly=True)

    weights[5] += 1e-6

    assert copy.differs(0)


def test_a_change_that_is_not_finite_is_handed_in_as_it_is() -> None:
    weights, copy = copy_at(random(0))
    weights[2] = float("inf")

    base, after = copy.hand_in([0], compactly=True)[0]

    assert not bool(torch.isfinite(value_of(base) - value_of(after)).all())
