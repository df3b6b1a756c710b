"""An update computed again gives the same, and what an owner changed about it shows."""

import msgspec
import pytest
import torch
from torch import Tensor

from legion_p2p.core.account import CountVerdict, sign_push
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.round import Closed, Contribution
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import Inclusion, PushClaim, UpdateAccount, UpdateHeader
from legion_p2p.services.shards.inputs import RoundInputs, SignedPush, payload_digest, state_digest
from legion_p2p.services.shards.recount import Recount, account_of, recount
from legion_p2p.services.shards.replica import combine
from legion_p2p.tensor import codec
from legion_p2p.tensor.feedback import compress
from legion_p2p.tensor.outer import OuterState

N = 4096
MEMBERS = sorted((Identity(bytes([i]) * 32) for i in range(5)), key=lambda member: member.peer_id)
SPECS = [
    RoundSpec(push_codec="int8", update_codec="int8"),
    RoundSpec(push_codec="fp32", update_codec="fp32", aggregation="mean", outer="nesterov"),
    RoundSpec(push_codec="topk64-2bit", update_codec="topk64-2bit", outer="delayed-nesterov"),
    RoundSpec(push_codec="int4", update_codec="int4-unbiased", aggregation="trimmed-mean", outer="sgd"),
]
ids = [f"{spec.rule()} {spec.update_codec} {spec.outer}" for spec in SPECS]


def values(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def push_of(member: Identity, spec: RoundSpec, seed: int, **fields: object) -> SignedPush:
    payload = codec.get(spec.push_codec).encode(values(seed))
    claim = PushClaim("run", 0, member.peer_id, 7, 3, 100 + seed, spec.push_codec, payload_digest(payload))
    claim = msgspec.structs.replace(claim, **fields)
    return SignedPush(claim, sign_push(claim, member), payload)


def a_round(
    spec: RoundSpec, longest: float | None = None, networks: tuple[int, ...] = (0,) * len(MEMBERS)
) -> tuple[RoundInputs, UpdateAccount, Tensor | None, OuterState]:
    """What an honest owner makes and accounts for, and what it has then. `networks`: of the members, by name."""
    pushes = [push_of(member, spec, seed) for seed, member in enumerate(MEMBERS)]
    residual = values(10, 0.1)
    outer = OuterState() if spec.outer == "average" else OuterState(values(11, 0.1))
    contributions = tuple(
        Contribution(PeerId(p.claim.peer), 3, 7, p.claim.tokens, 0.0, network=n) for p, n in zip(pushes, networks, strict=True)
    )
    closed = Closed(7, contributions, 5, ())
    decoded = {PeerId(p.claim.peer): codec.get(spec.push_codec).decode(p.payload, N) for p in pushes}
    made = combine(torch.zeros(N), residual, outer, closed, decoded, spec, codec.get(spec.update_codec), longest)
    assert made.payload is not None
    account = account_of(residual, outer, pushes, made, made.payload)
    if any(networks):
        account = msgspec.structs.replace(account, networks=networks)
    included = tuple(Inclusion(peer, 3) for peer in made.used)
    header = UpdateHeader("run", 0, 8, b"b" * 32, made.digest, "owner", spec.update_codec, included, (), 5, 1, account)
    return RoundInputs(header, residual, outer, pushes, made.payload), account, made.owner_residual, made.outer


def again(inputs: RoundInputs, account: UpdateAccount, spec: RoundSpec, **more: object) -> Recount:
    return recount(inputs, account, spec, codec.get, N, **more)  # type: ignore[arg-type]


def replaced(inputs: RoundInputs, **fields: object) -> RoundInputs:
    parts = {name: getattr(inputs, name) for name in ("header", "residual", "outer", "pushes", "update")}
    return RoundInputs(**{**parts, **fields})


@pytest.mark.parametrize("longest", [None, 5.0], ids=["", "shortened"])
@pytest.mark.parametrize("spec", SPECS, ids=ids)
def test_an_honest_update_is_right_and_what_its_owner_has_follows(spec: RoundSpec, longest: float | None) -> None:
    inputs, account, residual, outer = a_round(spec, longest)

    found = again(inputs, account, spec)

    assert found.finding is CountVerdict.RIGHT
    assert (account.scale < 1) == (longest is not None)
    assert state_digest(found.residual, found.outer) == state_digest(residual, outer) == account.after


@pytest.mark.parametrize("spec", SPECS, ids=ids)
def test_an_update_that_is_not_what_its_inputs_give_is_wrong(spec: RoundSpec) -> None:
    """Its owner keeps books that fit the update: what is left over is the difference."""
    inputs, account, _, outer = a_round(spec)
    honest = codec.get(spec.update_codec).decode(inputs.update, N)
    exact = a_round(msgspec.structs.replace(spec, update_codec="fp32"))[0]
    wanted = codec.get("fp32").decode(exact.update, N)
    for lie in (-honest, 2 * honest, values(99, float(honest.norm()) / 64)):
        packed = compress(codec.get(spec.update_codec), None, lie)
        books = msgspec.structs.replace(
            account, payload=payload_digest(packed.data), after=state_digest(wanted - packed.sent, outer)
        )

        found = again(replaced(inputs, update=packed.data), books, spec)

        assert found.finding is CountVerdict.WRONG and "carry" in found.reason


@pytest.mark.parametrize("spec", SPECS, ids=ids)
def test_an_owner_that_keeps_something_else_than_is_left_over_is_wrong(spec: RoundSpec) -> None:
    inputs, account, residual, outer = a_round(spec)
    more = values(5) if residual is None else residual + values(5)

    for after in (state_digest(more, outer), state_digest(residual, OuterState(values(6)))):
        found = again(inputs, msgspec.structs.replace(account, after=after), spec)

        assert found.finding is CountVerdict.WRONG and "does not follow" in found.reason
        assert state_digest(found.residual, found.outer) == account.after, "what it should have is known all the same"


def test_a_push_that_its_member_did_not_sign_is_wrong() -> None:
    spec = SPECS[0]
    inputs, account, *_ = a_round(spec)
    first, *rest = inputs.pushes
    forged = SignedPush(msgspec.structs.replace(first.claim, tokens=10**6), first.signature, first.payload)
    elsewhere = push_of(MEMBERS[0], spec, 0, shard=1)

    assert "not pushed" in again(replaced(inputs, pushes=[forged, *rest]), account, spec).reason
    assert "something else" in again(replaced(inputs, pushes=[elsewhere, *rest]), account, spec).reason
    assert "two pushes" in again(replaced(inputs, pushes=[first, *inputs.pushes]), account, spec).reason


def test_a_push_that_was_not_used_but_is_named_is_wrong() -> None:
    spec = SPECS[0]
    inputs, account, *_ = a_round(spec)
    header = msgspec.structs.replace(inputs.header, included=inputs.header.included[1:])

    assert "other contributions" in again(replaced(inputs, header=header), account, spec).reason


def test_inputs_that_cannot_be_decoded_are_wrong() -> None:
    spec = SPECS[0]
    inputs, account, *_ = a_round(spec)
    broken = SignedPush.by(MEMBERS[0], inputs.pushes[0].claim, b"garbage")

    for bad in (replaced(inputs, pushes=[broken, *inputs.pushes[1:]]), replaced(inputs, update=b"garbage")):
        assert again(bad, account, spec).finding is CountVerdict.WRONG


@pytest.mark.parametrize("spec", SPECS, ids=ids)
def test_what_an_owner_should_have_follows_from_what_it_should_have_had(spec: RoundSpec) -> None:
    """It brought in something of its own before the round. That stays out of what is taken over from it."""
    inputs, account, *_ = a_round(spec)
    true = values(20, 0.1), inputs.outer

    found = again(inputs, account, spec, true=true)

    honest = again(replaced(inputs, residual=true[0]), account, spec)
    assert found.finding is CountVerdict.RIGHT, "of what it said that it had"
    assert state_digest(found.residual, found.outer) == state_digest(honest.residual, honest.outer)


BOUNDED = msgspec.structs.replace(SPECS[0], same_network="bounded", norm_cap=0.0, weight_cap=100.0, aggregation="norm-cap")


def test_what_an_owner_saw_of_networks_is_a_part_of_what_is_computed_again() -> None:
    inputs, account, residual, _ = a_round(BOUNDED, networks=(1, 1, 0, 1, 0))

    found = again(inputs, account, BOUNDED)

    assert found.finding is CountVerdict.RIGHT
    assert residual is not None and found.residual is not None and torch.equal(residual, found.residual)


@pytest.mark.parametrize("networks", [(), (0, 1, 1, 1, 0)], ids=["none", "others"])
def test_an_update_by_other_networks_than_its_owner_names_is_wrong(networks: tuple[int, ...]) -> None:
    inputs, account, *_ = a_round(BOUNDED, networks=(1, 1, 0, 1, 0))
    account = msgspec.structs.replace(account, networks=networks)
    inputs = replaced(inputs, header=msgspec.structs.replace(inputs.header, account=account))

    assert again(inputs, account, BOUNDED).finding is CountVerdict.WRONG


def test_networks_count_nothing_in_a_run_that_leaves_them_free() -> None:
    inputs, account, *_ = a_round(SPECS[0], networks=(1, 1, 0, 1, 0))

    assert again(inputs, account, SPECS[0]).finding is CountVerdict.WRONG


def test_zeros_are_nothing() -> None:
    nothing = state_digest(None, OuterState())

    assert state_digest(torch.zeros(N), OuterState(torch.zeros(N), -torch.zeros(N))) == nothing
    assert len({nothing, state_digest(values(1), OuterState()), state_digest(None, OuterState(values(1)))}) == 3
    assert state_digest(None, OuterState(n_recent=1)) != nothing
