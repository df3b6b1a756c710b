"""An update computed a second time, from the inputs that its owner accounts for. See core/account.py."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from legion_p2p.core.account import CountVerdict, check_push, deviation, input_digest
from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.shards import UpdateAccount
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.same_network import included_numbers
from legion_p2p.errors import CodecError, DecodeError, NonFiniteError
from legion_p2p.services.shards.inputs import RoundInputs, SignedPush, payload_digest, state_digest
from legion_p2p.services.shards.replica import Combined, ShownPush, averaged
from legion_p2p.tensor.aggregate import norm
from legion_p2p.tensor.body import require_finite
from legion_p2p.tensor.codec import Codec
from legion_p2p.tensor.encoded import Payload, Value, values_of, whole
from legion_p2p.tensor.outer import OuterState, outer_step

RANDOM = "-unbiased"  # ends the names of codecs that round at random


@dataclass(frozen=True, eq=False)
class Recount:
    """What a second computation comes to."""

    finding: CountVerdict
    reason: str
    residual: Tensor | None
    """What the owner should have after the update, if it had begun with what the inputs say."""
    outer: OuterState


def account_of(
    residual: Tensor | None, outer: OuterState, pushes: Sequence[SignedPush], result: Combined, payload: bytes | memoryview
) -> UpdateAccount:
    """The account of a round that was made of these."""
    return UpdateAccount(
        tuple(input_digest(push.claim, push.signature) for push in pushes),
        payload_digest(payload),
        state_digest(residual, outer),
        state_digest(result.owner_residual, result.outer),
        result.scale,
        result.kept,
    )


def recount(
    inputs: RoundInputs,
    account: UpdateAccount,
    spec: RoundSpec,
    codec_of: Callable[[str], Codec],
    numel: int,
    true: tuple[Tensor | None, OuterState] | None = None,
) -> Recount:
    """Compute an update again. The inputs have the digests of its account.

    `true`: what the owner should have had before, where that is something else: what it should have after follows from it.
    """
    header = inputs.header
    wrong = _check_claims(inputs, spec)
    try:
        values = _values_of(inputs, codec_of, numel)
        sent = codec_of(header.codec).decode(inputs.update, numel)
        step, outer, used = _step(inputs, values, inputs.outer, spec, numel)
        wanted = step if inputs.residual is None else inputs.residual + step
        require_finite(wanted)
    except (CodecError, DecodeError, NonFiniteError) as bad:
        return Recount(CountVerdict.WRONG, f"inputs that no update can be made of: {bad}", inputs.residual, inputs.outer)
    after = _left(wanted, sent, account)
    if not wrong and used != tuple((i.peer, i.seq, i.standing) for i in header.included):
        wrong = "it names other contributions than those that were used, or other standings than follow from them"
    if not wrong and state_digest(after, outer) != account.after:
        wrong = "what its owner kept does not follow from the inputs"
    finding = CountVerdict.WRONG if wrong else _compare(wanted, sent, account, codec_of(header.codec))
    if true is not None:
        step, outer, _ = _step(inputs, values, true[1], spec, numel)
        after = _left(step if true[0] is None else true[0] + step, sent, account)
    return Recount(finding, wrong or "it does not carry what the inputs give", after, outer)


def _values_of(inputs: RoundInputs, codec_of: Callable[[str], Codec], numel: int) -> dict[PeerId, Value]:
    """Of each member what it pushed, in pieces where they are many. Raises: CodecError."""
    values = values_of([Payload(codec_of(push.claim.codec), push.payload, numel) for push in inputs.pushes])
    for value in values:
        whole(value)  # the owner may be a liar: what is not decoded yet is checked
    return dict(zip((PeerId(push.claim.peer) for push in inputs.pushes), values, strict=True))


def _check_claims(inputs: RoundInputs, spec: RoundSpec) -> str:
    """What is wrong with the pushes; empty where nothing is."""
    header = inputs.header
    if spec.same_network == "free" and header.account is not None and header.account.networks:
        return "it weighs pushes by networks, which this run does not"
    peers = [push.claim.peer for push in inputs.pushes]
    if len(set(peers)) < len(peers):
        return "it combines two pushes of one member"
    for push in inputs.pushes:
        claim = push.claim
        if (claim.run, claim.shard) != (header.run, header.shard):
            return f"it combines a push of {claim.peer} that was for something else"
        try:
            check_push(claim, push.signature)
        except DecodeError:
            return f"it combines what {claim.peer} has not pushed"
    return ""


def _step(
    inputs: RoundInputs, values: Mapping[PeerId, Value], before: OuterState, spec: RoundSpec, numel: int
) -> tuple[Tensor, OuterState, tuple[tuple[str, int, int | None], ...]]:
    """What the round changes the shard by, the state after it, and which contributions were used."""
    header = inputs.header
    at_first = () if header.account is None else header.account.standings
    standing_of = dict(zip((i.peer for i in header.included), at_first, strict=False))
    networks = () if header.account is None else header.account.networks
    network_of = included_numbers((i.peer for i in header.included), networks)
    pushed = [
        ShownPush(
            PeerId(p.claim.peer), p.claim.version, p.claim.tokens, p.claim.steps, standing_of.get(p.claim.peer),
            network_of.get(PeerId(p.claim.peer), 0),
        )
        for p in inputs.pushes
    ]  # fmt: skip
    result = averaged(pushed, inputs.header.version - 1, values, spec, numel)
    seq_of = {p.claim.peer: p.claim.seq for p in inputs.pushes}
    step, outer = outer_step(
        spec.outer, result.mean, before, lr=spec.outer_learning_rate, momentum=spec.outer_momentum, delay=spec.outer_delay
    )
    standings = result.standings or (None,) * len(result.used)
    return step, outer, tuple((peer, seq_of[peer], after) for peer, after in zip(result.used, standings, strict=True))


def _left(wanted: Tensor, sent: Tensor, account: UpdateAccount) -> Tensor | None:
    left = wanted - sent
    if account.scale < 1:
        left = left * account.kept
    return left if bool(left.any()) else None


def _compare(wanted: Tensor, sent: Tensor, account: UpdateAccount, codec: Codec) -> CountVerdict:
    target = wanted if account.scale >= 1 else wanted * account.scale
    own = codec.decode(codec.encode(target), len(target))
    is_random = codec.name.endswith(RANDOM)
    return deviation(norm(target - sent), norm(target - own), norm(target), is_random=is_random)
