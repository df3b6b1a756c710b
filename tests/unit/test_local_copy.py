"""The parameters being trained, as the shards see them: nothing trained is lost, and nothing is pushed twice."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.local import LocalCopy

BOUNDS = [(0, 4), (4, 8), (8, 10)]


def copy_of(dtype: torch.dtype = torch.float32, mixing: float = 1.0) -> tuple[Tensor, LocalCopy]:
    weights, bias = torch.zeros(2, 4, dtype=dtype), torch.zeros(2, dtype=dtype)
    local = LocalCopy(FlatView([("w", weights), ("b", bias)]), BOUNDS, exact=dtype == torch.float32, mixing=mixing)
    return weights, local


def full(value: float, n: int = 4) -> Tensor:
    return torch.full((n,), value)


def train(local: LocalCopy, change: float) -> None:
    for p in local.view.parameters:
        p += change


def handed_change(local: LocalCopy, shard: int) -> Tensor:
    base, now = local.hand_in([shard])[shard]
    return base - now


def test_the_first_reference_replaces_what_was_there() -> None:
    weights, local = copy_of()
    train(local, 3.0)

    local.take(0, 5, full(1.0))

    assert local.versions == [5, -1, -1]
    assert weights[0].tolist() == [1.0] * 4 and weights[1].tolist() == [3.0] * 4


def test_a_shard_that_was_never_taken_in_is_not_handed_in() -> None:
    _, local = copy_of()
    local.take(1, 0, full(1.0))

    assert list(local.hand_in([0, 1, 2])) == [1]


def test_what_was_trained_is_handed_in_once() -> None:
    _, local = copy_of()
    local.take(0, 0, full(1.0))
    train(local, -0.25)

    first, second = handed_change(local, 0), handed_change(local, 0)

    assert first.tolist() == [0.25] * 4 and second.tolist() == [0.0] * 4


def test_a_new_reference_moves_the_parameters_and_keeps_what_was_trained_since_the_push() -> None:
    weights, local = copy_of()
    local.take(0, 0, full(1.0))
    train(local, -0.25)
    local.hand_in([0])
    train(local, -0.5)

    local.take(0, 1, full(10.0))

    assert weights[0].tolist() == [9.5] * 4
    assert handed_change(local, 0).tolist() == [0.5] * 4


def test_who_has_not_trained_since_its_push_ends_with_exactly_the_reference() -> None:
    weights, local = copy_of()
    reference = torch.rand(4)
    local.take(0, 0, torch.rand(4))
    train(local, -0.3)
    local.hand_in([0])

    local.take(0, 1, reference)

    assert torch.equal(weights[0], reference)


def test_a_version_whose_bytes_were_handed_in_changes_no_parameter() -> None:
    weights, local = copy_of()
    local.take(0, 0, full(1.0))
    train(local, -0.25)
    local.hand_in([0])
    train(local, -0.25)

    local.take(0, 1, None)

    assert local.versions[0] == 1 and weights[0].tolist() == [0.5] * 4
    assert handed_change(local, 0).tolist() == [0.25] * 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_copy_is_given_up_for_the_reference(bad: float) -> None:
    weights, local = copy_of()
    local.take(0, 0, full(1.0))
    weights[0, 2] = bad

    local.take(0, 1, full(2.0))

    assert weights[0].tolist() == [2.0] * 4
    assert handed_change(local, 0).tolist() == [0.0] * 4


def test_what_is_handed_in_does_not_change_while_training_goes_on() -> None:
    for shards in ([0], [0, 1, 2]):
        _, local = copy_of()
        for shard, (start, end) in enumerate(BOUNDS):
            local.take(shard, 0, full(1.0, end - start))
        train(local, -0.25)

        handed = local.hand_in(shards)
        train(local, -100.0)

        assert all((base - now).tolist() == [0.25] * len(base) for base, now in handed.values())


def test_a_reference_that_is_taken_in_is_not_changed() -> None:
    _, local = copy_of()
    reference = full(1.0)
    local.take(0, 0, reference)
    train(local, -0.5)

    local.take(0, 1, full(5.0))
    train(local, -0.5)

    assert reference.tolist() == [1.0] * 4


def test_rounding_to_a_narrow_type_does_not_count_as_training() -> None:
    weights, local = copy_of(torch.bfloat16)

    local.take(0, 0, full(1.001))
    untrained = handed_change(local, 0)
    local.take(0, 1, full(3.003))
    still_untrained = handed_change(local, 0)

    assert untrained.abs().max() == 0 and still_untrained.abs().max() == 0
    assert weights[0].float().tolist() == [3.0] * 4


def test_training_in_a_narrow_type_is_handed_in_as_it_was() -> None:
    _, local = copy_of(torch.bfloat16)
    local.take(0, 0, full(1.001))
    train(local, -0.5)

    local.take(0, 1, full(3.003))

    assert torch.allclose(handed_change(local, 0), full(0.5), atol=0.02)


happenings = st.lists(
    st.one_of(
        st.tuples(st.just("train"), st.integers(-8, 8)),
        st.tuples(st.just("hand in"), st.sets(st.sampled_from([0, 1, 2]))),
        st.tuples(st.just("take"), st.sampled_from([0, 1, 2]), st.integers(-8, 8)),
        st.tuples(st.just("rebase"), st.sampled_from([0, 1, 2])),
    ),
    max_size=40,
)


@given(happenings)
def test_what_was_handed_in_and_what_was_not_add_up_to_all_that_was_trained(events: list[tuple]) -> None:
    """In numbers that fp32 holds exactly, to the last bit."""
    _, local = copy_of()
    references = [0.0, 0.0, 0.0]
    unpushed = [0.0, 0.0, 0.0]
    for shard, (start, end) in enumerate(BOUNDS):
        local.take(shard, 0, full(0.0, end - start))
    for version, (what, *args) in enumerate(events, start=1):
        if what == "train":
            train(local, args[0] / 4)
            unpushed = [u + args[0] / 4 for u in unpushed]
        elif what == "hand in":
            for shard, (base, now) in local.hand_in(sorted(args[0])).items():
                assert (now - base).tolist() == [unpushed[shard]] * len(base)
                references[shard] += unpushed[shard]  # what the parameters are relative to, from now on
                unpushed[shard] = 0.0
        elif what == "take":
            shard, references[args[0]] = args[0], float(args[1])
            local.take(shard, version, full(args[1], BOUNDS[shard][1] - BOUNDS[shard][0]))
        else:
            local.take(args[0], version, None)

    flat = local.view.snapshot()
    for shard, (start, end) in enumerate(BOUNDS):
        assert flat[start:end].tolist() == [references[shard] + unpushed[shard]] * (end - start)


def test_with_mixing_the_parameters_go_part_of_the_way_and_nothing_is_pushed_twice() -> None:
    weights, local = copy_of(mixing=0.5)
    local.take(0, 0, full(1.0))
    train(local, -0.25)
    local.hand_in([0])  # stands at 0.75
    train(local, -0.5)

    local.take(0, 1, full(10.0))

    assert weights[0].tolist() == [0.5 * (0.75 + 10.0) - 0.5] * 4
    assert handed_change(local, 0).tolist() == [0.5] * 4
    local.take(0, 2, full(10.0))
    assert weights[0].tolist() == [0.5 * (4.875 + 10.0)] * 4


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_the_rounding_of_a_conversion_does_not_count_as_training(kind: torch.dtype) -> None:
    model = torch.nn.Linear(40, 10)
    view = FlatView(model.named_parameters())
    local = LocalCopy(view, [(0, 200), (200, view.numel)], exact=True)
    start = view.snapshot()
    for shard, (a, b) in enumerate(local.bounds):
        local.take(shard, 0, start[a:b])

    model.to(kind)
    local.follow_types()
    pushed = [base - mine for base, mine in local.hand_in([0, 1]).values()]

    assert not any(bool(change.any()) for change in pushed)
    with torch.no_grad():
        model.weight += 0.5
    local.follow_types()
    moved = torch.cat([mine - base for base, mine in local.hand_in([0, 1]).values()])
    assert torch.allclose(moved[:400], torch.full((400,), 0.5), atol=0.01)
    assert not moved[400:].any()


def test_what_was_trained_before_a_conversion_is_still_pushed() -> None:
    model = torch.nn.Linear(40, 10, bias=False)
    view = FlatView(model.named_parameters())
    local = LocalCopy(view, [(0, view.numel)], exact=True)
    local.take(0, 0, view.snapshot())
    with torch.no_grad():
        model.weight.add_(0.25)

    model.bfloat16()
    local.follow_types()
    base, mine = local.hand_in([0])[0]

    assert (mine - base).mean() == pytest.approx(0.25, abs=1e-3)


def test_a_shard_that_something_moved_differs() -> None:
    p = torch.nn.Parameter(torch.zeros(4))
    local = LocalCopy(FlatView([("p", p)]), [(0, 2), (2, 4)], exact=True)
    assert not local.differs(0)  # nothing was taken in yet
    for shard in (0, 1):
        local.take(shard, 0, torch.ones(2))

    with torch.no_grad():
        p[3] = 5.0

    assert (local.differs(0), local.differs(1)) == (False, True)
    local.hand_in([0, 1])
    assert (local.differs(0), local.differs(1)) == (False, False)


def test_what_was_trained_since_the_push_can_be_undone_and_what_was_pushed_stays() -> None:
    weights, local = copy_of()
    local.take(0, 0, full(1.0))
    train(local, -0.25)
    local.hand_in([0])
    train(local, 100.0)

    local.take_back()

    assert weights[0].tolist() == [0.75] * 4
    assert weights[1].tolist() == [99.75] * 4, "of a shard that never came, nothing is known"
    assert handed_change(local, 0).tolist() == [0.0] * 4
