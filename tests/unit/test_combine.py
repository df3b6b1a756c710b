"""What an owner makes of a closed round: by the run's rule, with the caps that go with it."""

import pytest
import torch
from torch import Tensor

from legion_p2p.core.identity import PeerId
from legion_p2p.core.round import Closed, Contribution
from legion_p2p.core.run import RoundSpec
from legion_p2p.services.shards.replica import Combined, combine
from legion_p2p.tensor import codec
from legion_p2p.tensor.outer import OuterState

N = 64


def combined(pushes: dict[str, tuple[int, Tensor]], spec: RoundSpec, versions: dict[str, int] | None = None) -> Combined:
    """`pushes`: of each peer its tokens and its change."""
    versions = versions or {}
    contributions = tuple(
        Contribution(PeerId(peer), 0, versions.get(peer, 3), tokens, 0.0) for peer, (tokens, _) in sorted(pushes.items())
    )
    values = {PeerId(peer): value for peer, (_, value) in pushes.items()}
    closed = Closed(3, contributions, len(pushes), ())
    return combine(torch.zeros(N), None, OuterState(), closed, values, spec, codec.get("fp32"))


def ones(length: float) -> Tensor:
    return torch.full((N,), float(length))


def test_a_synchronous_run_weighs_by_tokens_exactly() -> None:
    made = combined({"a": (100, ones(1)), "b": (100, ones(1)), "c": (800, ones(11))}, RoundSpec(synchronous=True))

    assert made.reference.tolist() == [-9.0] * N


def test_any_other_caps_length_and_claimed_tokens_of_each_push() -> None:
    made = combined({"a": (100, ones(1)), "b": (100, -ones(1)), "c": (10**9, ones(11))}, RoundSpec(aggregation="norm-cap"))

    torch.testing.assert_close(made.reference, -ones((1 - 1 + 1.5) / 3.5))


@pytest.mark.parametrize(("cap", "expected"), [(1.0, 1 / 3), (4.0, 4 / 6)])
def test_the_cap_on_weights_is_the_run_s(cap: float, expected: float) -> None:
    made = combined(
        {"a": (100, ones(1)), "b": (100, -ones(1)), "c": (10**9, ones(1))}, RoundSpec(aggregation="norm-cap", weight_cap=cap)
    )

    torch.testing.assert_close(made.reference, -ones(expected))


def test_one_liar_of_five_weighs_as_much_as_one_and_a_half() -> None:
    """The caps multiply: with 3 and 4, as they were, one liar weighed as much as twelve, and the others walked backwards."""
    honest = {name: (100, ones(1)) for name in "abcd"}
    liar = {"liar": (10**9, -1000 * ones(1))}

    made = combined(honest | liar, RoundSpec(aggregation="norm-cap"))
    before = combined(honest | liar, RoundSpec(aggregation="norm-cap", norm_cap=3.0, weight_cap=4.0))

    torch.testing.assert_close(made.reference, -ones((4 - 1.5) / 5.5))
    torch.testing.assert_close(before.reference, ones((12 - 4) / 8))


def test_the_rule_of_the_specification_is_the_one_that_is_used() -> None:
    pushes = {name: (100, ones(i)) for i, name in enumerate("abcde")} | {"liar": (100, ones(1000))}

    made = combined(pushes, RoundSpec(aggregation="median", norm_cap=0.0))

    torch.testing.assert_close(made.reference, -ones(2.5))
    assert made.used == ("a", "b", "c", "d", "e", "liar")


def test_a_late_push_counts_less_beyond_the_cap() -> None:
    made = combined({"a": (100, ones(1)), "b": (10**9, -ones(1))}, RoundSpec(aggregation="norm-cap"), versions={"b": 1})

    torch.testing.assert_close(made.reference, -ones((1 - 0.5) / 1.5))
