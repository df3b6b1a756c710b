"""One shard as this peer holds it: the common copy, what only its owner has, and the arithmetic on both.

Tensors here are 1-D fp32 on the CPU and never changed in place: code that was handed one may go on reading it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from legion_p2p.concurrency.notify import Notify
from legion_p2p.concurrency.quick_lock import QuickLock
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.chain import Chain
from legion_p2p.core.identity import PeerId
from legion_p2p.core.round import Closed, ShardRound, staleness_weight
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.same_network import shared_weights
from legion_p2p.core.shard.life import ShardLife
from legion_p2p.core.shard.provisional import WINDOW, Provisional
from legion_p2p.core.shard.push_events import Packed
from legion_p2p.core.update_norms import MAX_KEPT, UpdateNorms
from legion_p2p.core.wire import Part
from legion_p2p.errors import CodecError, NonFiniteError
from legion_p2p.services.shards.inputs import RoundInputs, SignedPush
from legion_p2p.tensor.aggregate import Aggregated, WeightedPush, believed_steps, capped_weights
from legion_p2p.tensor.body import is_finite, is_zero, require_finite
from legion_p2p.tensor.codec import Codec
from legion_p2p.tensor.compact import Compact, Held, Keep, Shelved, compacted, expanded, in_memory, value_of
from legion_p2p.tensor.dense import FP32
from legion_p2p.tensor.encoded import Payload, Value, values_of, whole
from legion_p2p.tensor.feedback import Compressed, compress, compress_difference
from legion_p2p.tensor.flatten import digest
from legion_p2p.tensor.outer import OuterState, outer_step
from legion_p2p.tensor.robust.rules import Rule, aggregate, n_hostile
from legion_p2p.tensor.robust.standing import NEWCOMER

MAX_ACCOUNTED = WINDOW + 1  # updates of a shard whose inputs are kept at most: those that may be taken back, and the one before
N_ACCOUNTED = 2  # that are kept in any case: others compute an update again at once, so longer ago means not at all


@dataclass(frozen=True, eq=False)
class LocalChange:
    """What the training thread hands in for one shard: where its unpushed change started, and where it is now."""

    shard: int
    version: int
    """The newest version that `local` has taken in."""
    base: Held
    local: Held
    tokens: int
    steps: int
    warming_up: bool = False
    """The inner optimizer wants it precise."""


@dataclass(frozen=True, eq=False)
class Body:
    """What a change was compressed to, as it is held until an update contains it: what it decodes to may be hundreds of times as
    long."""

    codec: str
    payload: bytes | memoryview
    value: Payload
    digest: bytes = b""
    """Digest of this peer's own payload, which it signs; empty where the run does not watch its owners."""
    signed: SignedPush | None = None
    """As its member signed it; None where the run does not watch its owners."""


class Earlier(NamedTuple):
    """A shard as it was before a version that may be taken back."""

    common: Tensor | Shelved
    norms: tuple[float, ...]


@dataclass(eq=False)
class Replica:
    """One shard as this peer holds it. Tensors are replaced only under `lock`."""

    shard: int
    common: Tensor | Shelved
    """See `reference`."""
    life: ShardLife
    """What is to be done about it."""
    lock: QuickLock = field(default_factory=QuickLock)
    notify: Notify = field(default_factory=Notify)
    """Wakes others that wait for a change of the shard."""

    norms: UpdateNorms = field(default_factory=UpdateNorms)
    """Lengths of the last updates."""

    # while versions may be taken back (core/shard/provisional.py)
    earlier: dict[int, Earlier] = field(default_factory=dict)
    """By version: those that this peer may return to."""
    own_pushes: dict[int, Packed] = field(default_factory=dict)
    """This peer's own contributions, by the version that contains them."""
    given_back: BoundedMap[int, Packed] = field(default_factory=lambda: BoundedMap(WINDOW))
    """Those that were taken back with their versions, by their numbers: they are in the residual, or were pushed again."""

    # as a member
    kept: Tensor | Compact | None = None
    """See `residual`."""

    # as the owner
    arrived: dict[PeerId, Body] = field(default_factory=dict)
    """The contributions in the round."""
    owner_kept: Tensor | Compact | None = None
    """See `owner_residual`."""
    outer: OuterState = field(default_factory=OuterState)
    taken_over: dict[Part, tuple[PeerId, int, bytes]] = field(default_factory=dict)
    """The last hand-over of each part: from whom, and in which version and digest."""
    inputs: BoundedMap[bytes, RoundInputs] = field(default_factory=lambda: BoundedMap(MAX_ACCOUNTED))
    """Of the last updates that this peer made, by `header_digest`: others may compute them again."""
    inherited: tuple[PeerId, int] | None = None
    """The owner whose residual this peer goes on with as it should be, and the version that it belongs to."""

    @property
    def numel(self) -> int:
        return self.common.numel() if isinstance(self.common, Tensor) else self.common.numel

    @property
    def reference(self) -> Tensor:
        """The common copy."""
        return value_of(self.common)

    @reference.setter
    def reference(self, value: Tensor) -> None:
        self.common = value

    @property
    def residual(self) -> Tensor | None:
        """What compression left out of this peer's contributions so far; of large shards, nearly."""
        return expanded(self.kept)

    @residual.setter
    def residual(self, value: Tensor | None) -> None:
        self.kept = compacted(value)

    @property
    def owner_residual(self) -> Tensor | None:
        """What compression left out of this owner's updates so far."""
        return expanded(self.owner_kept)

    @owner_residual.setter
    def owner_residual(self, value: Tensor | None) -> None:
        self.owner_kept = value

    @property
    def chain(self) -> Chain:
        return self.life.chain

    @property
    def version(self) -> int:
        return self.chain.version

    @property
    def provisional(self) -> Provisional:
        return self.life.provisional

    def forget_final(self) -> None:
        """Let go of what is kept of versions that will not be taken back any more."""
        final = self.provisional.final
        self.earlier = {v: one for v, one in self.earlier.items() if final <= v < self.chain.version}
        self.own_pushes = {v: one for v, one in self.own_pushes.items() if final < v <= self.chain.version}

    def forget_inputs(self) -> None:
        """Let go of the inputs that nobody needs any more."""
        while len(self.inputs) > N_ACCOUNTED and next(iter(self.inputs.values())).header.version < self.provisional.final:
            self.inputs.popitem(last=False)

    @property
    def round(self) -> ShardRound | None:
        """The open one, where this peer owns the shard."""
        return self.life.owner.round

    @property
    def is_owned(self) -> bool:
        """This peer is its owner."""
        return self.round is not None


@dataclass(frozen=True, eq=False)
class Combined:
    """What a closed round comes to; `payload` is None where no contribution was usable."""

    payload: bytes | memoryview | None
    reference: Tensor
    digest: bytes
    owner_residual: Tensor | None
    outer: OuterState
    used: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    norm: float = 0.0
    """Length of the update."""
    scale: float = 1.0
    """Factor on the step, where it was too long."""
    kept: float = 1.0
    """Factor on what was left over then."""
    agreement: float | None = None
    """How far the pushes agreed: 0 to 1. None: not measured."""
    standings: tuple[int, ...] = ()
    """Of the members in `used`, after the round; empty where nobody is screened."""


def combine(
    reference: Tensor,
    owner_residual: Tensor | None,
    outer: OuterState,
    closed: Closed,
    values: Mapping[PeerId, Value],
    spec: RoundSpec,
    codec: Codec,
    longest: float | None = None,
) -> Combined:
    """Aggregate a closed round and make the next reference: `b += outer(A); B = compress(b); b -= B; y -= B`.

    `longest`: how long B may be; the rest stays in b.
    """
    pushed = [ShownPush(c.peer, c.version, c.tokens, c.steps, c.standing, c.network) for c in closed.contributions]
    result = averaged(pushed, closed.version, values, spec, reference.numel())
    if not result.used:
        return Combined(None, reference, b"", owner_residual, outer, (), result.refused)
    step, outer_after = outer_step(
        spec.outer, result.mean, outer, lr=spec.outer_learning_rate, momentum=spec.outer_momentum, delay=spec.outer_delay
    )
    try:
        packed, scale, kept = _shortened(codec, owner_residual, step, longest)
        made = reference - packed.sent
        require_finite(made)
    except NonFiniteError:  # finite pushes, too large together: nothing of them may enter, and what is left over neither
        too_large = tuple((source, "together with the others it exceeds what numbers can hold") for source in result.used)
        return Combined(None, reference, b"", None, OuterState(), (), result.refused + too_large)
    norm = length(packed.sent)
    return Combined(
        packed.data,
        made,
        digest(made),
        packed.residual,
        outer_after,
        result.used,
        result.refused,
        norm,
        scale,
        kept,
        result.agreement,
        result.standings,
    )


class ShownPush(NamedTuple):
    """What is known of a push beside its value."""

    peer: PeerId
    version: int
    """The version that its member trained from."""
    tokens: int
    steps: int
    standing: int | None = None
    """Of its member, before the round; None where nobody is screened, or nothing is known."""
    network: int = 0
    """See `core.same_network`."""


def averaged(
    pushed: Sequence[ShownPush], version: int, values: Mapping[PeerId, Value], spec: RoundSpec, numel: int
) -> Aggregated:
    """The pushes to this version by the run's rule."""
    rule = Rule(spec.rule(), spec.norm_cap or None, spec.hostile_share)
    tokens = [float(push.tokens) for push in pushed]
    weights = tokens if rule.name == "mean" else capped_weights(tokens, spec.weight_cap)
    steps = believed_steps([max(1, push.steps) for push in pushed], n_hostile(rule, len(pushed)))
    weights = tuple(w * staleness_weight(version - push.version) for w, push in zip(weights, pushed, strict=True))
    if any(push.network for push in pushed):
        # An account names the networks of pushes that were used: those that cannot be used must not have a part in it.
        usable = [push.network and is_finite(whole(values[push.peer])) for push in pushed]
        weights = shared_weights(weights, [push.network if ok else 0 for push, ok in zip(pushed, usable, strict=True)])
    contributions = []
    for push, weight, n_steps in zip(pushed, weights, steps, strict=True):
        standing = NEWCOMER if push.standing is None else push.standing
        contributions.append(
            WeightedPush(push.peer, weight, values[push.peer], n_steps, standing if spec.screening == "trend" else None)
        )
    return aggregate(contributions, rule, numel, restore=spec.restore_length)


def _shortened(codec: Codec, residual: Tensor | None, step: Tensor, longest: float | None) -> tuple[Compressed, float, float]:
    """`compress`, of a step that is at most `longest` long; what is left out of it stays in the residual, up to a bound.

    And the factors on the step and on what is left out: 1 where it is short enough.
    """
    packed = compress(codec, residual, step)
    if longest is None or length(packed.sent) <= longest:
        return packed, 1.0, 1.0
    wanted = step if residual is None else residual + step
    scale = longest / length(wanted)
    if scale >= 1:  # what the codec makes of it is a little longer than it is
        return packed, 1.0, 1.0
    short = compress(codec, None, wanted * scale)
    left = wanted - short.sent
    kept = min(1.0, MAX_KEPT * longest / max(length(left), longest))
    return short._replace(residual=left * kept), scale, kept


def combine_arrived(
    reference: Tensor,
    owner_residual: Tensor | None,
    outer: OuterState,
    closed: Closed,
    arrived: dict[PeerId, Body],
    spec: RoundSpec,
    codec: Codec,
    longest: float | None,
) -> Combined:
    """`combine`, of contributions that are decoded only now, and where they are many piece by piece."""
    values = dict(zip(arrived, values_of([one.value for one in arrived.values()]), strict=True))
    return combine(reference, owner_residual, outer, closed, values, spec, codec, longest)


def rebase(change: LocalChange, *leftovers: Tensor | None) -> tuple[Tensor, bytes]:
    """The local parameters as the next reference, with what compression had left over, and its digest. Raises: NonFiniteError."""
    made = value_of(change.local)
    for leftover in leftovers:
        made = made if leftover is None else made - leftover
    require_finite(made)
    return made, digest(made)


def length(x: Tensor) -> float:
    """Euclidean. Of a small tensor `x.norm()` takes twice as long, for the same bits."""
    return float(torch.linalg.vector_norm(x))


def advance(reference: Tensor, payload: bytes | memoryview, codec: Codec) -> tuple[Tensor, bytes, float]:
    """Apply an update: the next reference, its digest, and how long the update is. Raises: CodecError."""
    if codec is FP32:
        change = FP32.decode_shared(payload, reference.numel())
        norm, made = length(change), reference - change
    else:
        change = codec.decode(payload, reference.numel())
        norm, made = length(change), torch.sub(reference, change, out=change)  # fresh memory would cost more than this
    if not is_finite(made):
        raise CodecError("the update leads to NaN or infinity")
    return made, digest(made), norm


def pack(
    change: LocalChange,
    kept: Tensor | Compact | None,
    codec: Codec,
    decay: float,
    keep: Keep = in_memory,
    release: Callable[[Tensor], Tensor] | None = None,
) -> tuple[bytes | memoryview, Tensor | Compact | None]:
    """A member's compressed change, and what is kept of it. Raises: NonFiniteError.

    `release`: makes what others may see of the change; nothing else of it is used.
    """
    base, local = value_of(change.base), value_of(change.local)
    if release is None:
        packed = compress_difference(codec, expanded(kept), base, local, decay)
    else:
        moved = base - local
        require_finite(moved)
        packed = compress(codec, expanded(kept), release(moved), decay)
    residual = packed.residual
    return packed.data, None if residual is None or is_zero(residual) else compacted(residual, keep)
