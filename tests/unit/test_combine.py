"""What an owner makes of a closed round: by the run's rule, with the caps that go with it."""

import msgspec
import pytest
import torch
from torch import Tensor

from legion_p2p.core.identity import PeerId
from legion_p2p.core.round import Closed, Contribution
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.update_norms import MAX_KEPT, OWNERS_SHARE
from legion_p2p.services.shards.replica import Combined, combine
from legion_p2p.tensor import codec
from legion_p2p.tensor.outer import OuterState

N = 64
A = PeerId("a")
SPEC = RoundSpec()


def round_of(*peers: PeerId) -> Closed:
    return Closed(3, tuple(Contribution(peer, 0, 3, 10, 0.0) for peer in peers), len(peers), ())


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


def test_many_pushes_from_one_network_weigh_as_two() -> None:
    values = {PeerId(name): ones(-1.0 if name < "e" else 1.0) for name in "abcdefgh"}
    contributions = tuple(
        Contribution(peer, 0, 3, 10, 0.0, network=1 if peer < "e" else 0) for peer in sorted(values)
    )  # four of eight are one host's, and push against the others
    spec = RoundSpec(aggregation="norm-cap", same_network="bounded")

    def mean(closed: Closed) -> float:
        return -float(combine(torch.zeros(N), None, OuterState(), closed, values, spec, codec.get("fp32")).reference[0])

    alone = tuple(msgspec.structs.replace(c, network=0) for c in contributions)
    assert mean(Closed(3, alone, 8, ())) == pytest.approx(0.0)
    assert mean(Closed(3, contributions, 8, ())) == pytest.approx((4 - 2) / 6)


def test_one_that_cannot_be_used_takes_nothing_from_the_others_of_its_network() -> None:
    values = {PeerId(name): ones(1.0) for name in "abcde"}
    values[PeerId("a")] = ones(float("nan"))
    contributions = tuple(Contribution(peer, 0, 3, 10, 0.0, network=int(peer < "d")) for peer in sorted(values))
    values[PeerId("d")] = ones(-1.0)

    made = combine(
        torch.zeros(N), None, OuterState(), Closed(3, contributions, 5, ()), values,
        RoundSpec(aggregation="norm-cap", same_network="bounded"), codec.get("fp32"),
    )  # fmt: skip

    assert -float(made.reference[0]) == pytest.approx((3 - 1) / 4), "two of one network, and two others"


def test_a_late_push_counts_less_beyond_the_cap() -> None:
    made = combined({"a": (100, ones(1)), "b": (10**9, -ones(1))}, RoundSpec(aggregation="norm-cap"), versions={"b": 1})

    torch.testing.assert_close(made.reference, -ones((1 - 0.5) / 1.5))


def test_the_length_that_the_mean_loses_is_given_back_where_the_run_says_so() -> None:
    one, other = torch.zeros(N), torch.zeros(N)
    one[0], other[1] = 3.0, 3.0
    pushes = {"a": (100, one), "b": (100, other)}

    plain, restored = combined(pushes, SPEC), combined(pushes, RoundSpec(restore_length=1.0))

    assert plain.norm == pytest.approx(3 / 2**0.5) and plain.agreement is None
    assert restored.norm == pytest.approx(3.0) and restored.agreement == pytest.approx(0.0)


def test_one_that_claims_a_thousand_times_its_steps_moves_a_round_of_five_no_further() -> None:
    pushes = {name: (100, ones(1)) for name in "abcde"}
    honest = round_of(*(PeerId(name) for name in "abcde"))
    liar = tuple(msgspec.structs.replace(c, steps=10_000 if c.peer == "e" else 10) for c in honest.contributions)
    values = {PeerId(name): value for name, (_, value) in pushes.items()}
    closed = msgspec.structs.replace(honest, contributions=liar)

    made = combine(torch.zeros(N), None, OuterState(), closed, values, SPEC, codec.get("fp32"))

    torch.testing.assert_close(made.reference, -ones(1))


def test_a_step_that_is_too_long_is_shortened_and_the_rest_comes_later() -> None:
    wanted = torch.full((N,), 2.0)
    longest = 0.25 * float(wanted.norm())
    reference, residual, sent = torch.zeros(N), wanted.clone(), torch.zeros(N)
    for _ in range(6):
        made = combine(reference, residual, OuterState(), round_of(A), {A: torch.zeros(N)}, SPEC, codec.get("fp32"), longest)
        assert made.norm <= longest * (1 + 1e-6)
        sent += reference - made.reference
        reference, residual = made.reference, made.owner_residual

    assert torch.allclose(sent, wanted, atol=1e-5) and (residual is None or float(residual.norm()) < 1e-5)


@pytest.mark.parametrize("name", ["int8", "int4", "sign", "topk64-2bit", "gauss2"])
def test_what_a_codec_makes_of_a_shortened_step_is_short_as_well(name: str) -> None:
    """Members refuse what is longer than an owner's share allows."""
    step = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    made = combine(torch.zeros(4096), step, OuterState(), round_of(A), {A: torch.zeros(4096)}, SPEC, codec.get(name), 1.0)

    assert made.norm <= 1.0 / OWNERS_SHARE


def test_a_residual_that_somebody_made_up_is_forgotten_but_for_a_bound() -> None:
    absurd = torch.full((N,), 1e12)

    made = combine(torch.zeros(N), absurd, OuterState(), round_of(A), {A: torch.ones(N)}, SPEC, codec.get("fp32"), 1.0)

    assert made.norm <= 1.0 + 1e-6 and float(made.owner_residual.norm()) <= MAX_KEPT * (1 + 1e-6)
