"""A unit as a peer that owns it or stands by holds it: weights, what the optimizer remembers, and how a step is made of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from legion_p2p.concurrency.notify import Notify
from legion_p2p.concurrency.quick_lock import QuickLock
from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.sharding import UnitHeld, UnitRole
from legion_p2p.core.sharding.matrices import Matrix
from legion_p2p.core.sharding.plan import Unit
from legion_p2p.core.sharding.step import UnitSteps
from legion_p2p.errors import CodecError
from legion_p2p.tensor.adamw import AdamWRates, Moments
from legion_p2p.tensor.aggregate import mean_one_by_one
from legion_p2p.tensor.body import is_finite
from legion_p2p.tensor.flatten import digest, fp32_bytes, from_fp32_bytes
from legion_p2p.tensor.muon import muon_step

STATE_COPIES = 3  # of a unit's weights, that its state takes: the weights, and two moments
STEPS_BYTES = 8  # before them: how many steps the moments have seen


@dataclass(frozen=True, eq=False)
class ArrivedGradient:
    """As it came, and checked: it is decoded again when the step is made."""

    tokens: int
    decoded: Callable[[], Tensor]


@dataclass(frozen=True, eq=False)
class ClosedStep:
    """What a step is to be made with, where it waits for the other units: at the owner and its standby."""

    step: int
    included: frozenset[PeerId]
    mean: Tensor
    move: Tensor | None
    """Is subtracted after it."""


@dataclass(eq=False)
class HeldUnit:
    """Tensors are changed under `lock` only."""

    unit: Unit
    weights: Tensor
    """1-D fp32."""
    role: UnitRole
    term: int
    steps: UnitSteps
    moments: Moments | None = None
    """None before the first step."""
    digest: bytes = b""
    """Of the weights."""
    packed: bytes | None = None
    """The weights of this version as they are sent to members, once one has asked for them."""
    arrived: dict[PeerId, ArrivedGradient] = field(default_factory=dict)
    """As the owner: the gradients of the step that is being collected for."""
    closed: ClosedStep | None = None
    """The step that is closed and waits, in a run that clips gradients."""
    standby: PeerId | None = None
    """As the owner: the peer that makes the same steps."""
    owner: PeerId | None = None
    """As the standby: the peer that it stands by for."""
    to_subtract: Tensor | None = None
    """As the owner: what syncs with other regions still take from the weights. It goes with a step, so the standby has it too."""
    is_move_due: bool = False
    """Some of it is new since the last step. The rest is what compression left out, and waits for the next sync."""
    arrived_move: tuple[int, int, Tensor] | None = None
    """As the standby: term and step of what is to be subtracted with that step, which has not come yet."""
    lock: QuickLock = field(default_factory=QuickLock)
    notify: Notify = field(default_factory=Notify)
    """Wakes those that wait for a step, or for another role."""

    @property
    def index(self) -> int:
        return self.unit.index

    @property
    def shard(self) -> int:
        """The same number, where regions sync."""
        return self.unit.index

    @property
    def numel(self) -> int:
        return self.unit.numel

    @property
    def is_owned(self) -> bool:
        return self.role == "owner"

    @property
    def version(self) -> int:
        """Steps that were made."""
        return self.steps.version

    def is_closed_for(self, step: int) -> bool:
        """Whose gradients this step is made with is settled, and its standby knows it."""
        return self.closed is not None and self.closed.step == step

    def as_said(self) -> UnitHeld:
        """What is said of it to others."""
        return UnitHeld(self.role, self.term, self.version, self.digest, self.standby or "")

    def make_step(self, mean: Tensor, rates: AdamWRates, matrices: Sequence[Matrix], move: Tensor | None = None) -> bytes:
        """One step of the optimizer, Muon's on `matrices`, then `move` is subtracted; the digest of the weights after it. To be
        called under `lock`, in any thread."""
        if self.moments is None:
            self.moments = Moments.of(self.weights)
        muon_step(self.weights, mean, self.moments, rates, matrices)
        if move is not None:
            self.weights.sub_(move)
        return digest(self.weights)

    def stepped(self, included: Iterable[PeerId], made: bytes) -> None:
        """The step is made; `made`: the digest of the weights."""
        self.digest = made
        self.packed = self.closed = self.arrived_move = None
        self.steps.made(included)
        self.notify.notify()

    def state(self) -> bytes:
        """All that the next owner needs. To be called under `lock`."""
        if self.moments is None:
            return bytes(STEPS_BYTES) + fp32_bytes(self.weights)
        n_steps = self.moments.n_steps.to_bytes(STEPS_BYTES, "big")
        return b"".join((n_steps, *map(fp32_bytes, (self.weights, self.moments.first, self.moments.second))))


def read_state(data: bytes, numel: int) -> tuple[Tensor, Moments | None]:
    """Weights and moments from `HeldUnit.state` of another peer. Raises: CodecError."""
    n_steps, body = int.from_bytes(data[:STEPS_BYTES], "big"), memoryview(data)[STEPS_BYTES:]
    n_copies = STATE_COPIES if n_steps else 1
    if len(body) != 4 * numel * n_copies or n_steps >= 1 << 32:
        raise CodecError(f"state of a unit of {numel} elements after {n_steps} steps has {len(body)} bytes")
    tensors = [from_fp32_bytes(body[4 * numel * i : 4 * numel * (i + 1)]) for i in range(n_copies)]
    if not all(map(is_finite, tensors)) or (n_steps and bool((tensors[2] < 0).any())):
        raise CodecError("state of a unit carries NaN, infinity, or a negative variance")
    return tensors[0], Moments(tensors[1], tensors[2], n_steps) if n_steps else None


def combine_gradients(arrived: dict[PeerId, ArrivedGradient], numel: int) -> Tensor:
    """Their mean by tokens: the same bits in whatever order they came. One is decoded at a time."""
    return mean_one_by_one([(float(one.tokens), one.decoded) for _, one in sorted(arrived.items())], numel)
