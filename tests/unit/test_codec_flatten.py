"""Parameters as one flat tensor."""

import hashlib
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.errors import UsageError
from legion_p2p.tensor.flatten import FlatView, assign_slice, digest, read_slice, snapshot


def odd_parameters() -> list[torch.Tensor]:
    """A matrix, a scalar, a transposed one, an empty one, half precision, the first again, a vector: 6+1+12+0+4+5 elements."""
    matrix = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    transposed = torch.arange(10.0, 22.0).view(4, 3).t()
    half = torch.arange(30, 34, dtype=torch.bfloat16)
    return [matrix, torch.tensor(7.0), transposed, torch.empty(0, 3), half, matrix, torch.arange(40.0, 45.0, dtype=torch.float64)]


def test_all_are_laid_out_in_order_and_a_tied_one_counts_once() -> None:
    view = FlatView(odd_parameters())

    assert view.numel == 28
    assert view.names == ("0", "1", "2", "3", "4", "6")
    assert view.shapes == ((2, 3), (), (3, 4), (0, 3), (4,), (5,))
    transposed = torch.arange(10.0, 22.0).view(4, 3).t().flatten().tolist()
    assert view.snapshot().tolist() == [0, 1, 2, 3, 4, 5, 7, *transposed, 30, 31, 32, 33, 40, 41, 42, 43, 44]


def test_names_come_from_pairs() -> None:
    model = torch.nn.Linear(2, 3)

    assert FlatView(model.named_parameters()).names == ("weight", "bias")


def test_a_snapshot_is_a_copy() -> None:
    parameters = [torch.zeros(3)]
    copy = snapshot(parameters)

    parameters[0].add_(1)

    assert copy.tolist() == [0.0, 0.0, 0.0]


@given(cuts=st.tuples(st.integers(0, 28), st.integers(0, 28)).map(sorted))
def test_writing_a_slice_changes_just_that_slice(cuts: list[int]) -> None:
    start, end = cuts
    parameters = odd_parameters()
    expected = snapshot(parameters)
    expected[start:end] = torch.arange(100.0, 100.0 + end - start)

    assign_slice(parameters, start, torch.arange(100.0, 100.0 + end - start))

    assert torch.equal(snapshot(parameters), expected)
    assert torch.equal(read_slice(parameters, start, end), expected[start:end])


def test_parameters_are_written_in_place_and_keep_type_and_gradient() -> None:
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float16))
    p.grad = torch.ones(4, dtype=torch.float16)

    FlatView([p]).assign_slice(1, torch.tensor([1 / 3, 2.0]))

    assert p.dtype == torch.float16 and p.requires_grad and p.is_leaf
    assert p.tolist() == [0.0, 0.333251953125, 2.0, 0.0]
    assert p.grad.tolist() == [1.0] * 4


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (0, 29), (3, 2)])
def test_a_slice_outside_is_refused(start: int, end: int) -> None:
    with pytest.raises(UsageError, match="of 28 elements"):
        FlatView(odd_parameters()).read_slice(start, end)
    with pytest.raises(UsageError):
        FlatView(odd_parameters()).assign_slice(27, torch.zeros(2))
    with pytest.raises(UsageError, match="1-D"):
        FlatView(odd_parameters()).assign_slice(0, torch.zeros(1, 2))


@pytest.mark.parametrize(
    "bad", [torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.complex64), torch.zeros(2, device="meta")]
)
def test_what_is_not_floats_in_memory_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="parameter 1 is"):
        FlatView([torch.zeros(1), bad])


def test_a_digest_is_sha256_of_little_endian_floats() -> None:
    x = torch.tensor([1.0, -2.5, 0.0])

    assert digest(x) == hashlib.sha256(struct.pack("<3f", 1.0, -2.5, 0.0)).digest()
    assert digest(x) != digest(torch.tensor([1.0, -2.5, -0.0]))
    assert digest(torch.arange(6.0)[::2]) == digest(torch.tensor([0.0, 2.0, 4.0]))
    assert digest(torch.empty(0)) == hashlib.sha256(b"").digest()
    with pytest.raises(UsageError):
        digest(x.double())
