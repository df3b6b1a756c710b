"""The arithmetic of a sync: what two regions tell each other of a shard, and how far each of them moves.

Each side keeps an estimate of either copy. Both keep the same two estimates, bit for bit, which a digest over them shows. A
message is the compressed difference between a copy and the estimate of it, which both sides then add to that estimate. So what
compression leaves out is in the next difference, and the estimates follow the copies, however lossy the codec (CHOCO-SGD:
Koloskova, Stich and Jaggi, 1902.00340). How far both move follows from the estimates, so the estimates move along, and no message
has to say how far. Where they do not move along, a codec as sparse as topk64-2bit makes the copies diverge at a moving rate of
0.3: measured.

    elastic    step = alpha * (ours - theirs)                    the other side's is its negative: the mean of both stays
    nesterov   change = anchor - (ours + theirs) / 2             an outer step of DiLoCo (2311.08105) over the two regions:
               m = mu * m + change                               both go to the same new anchor
               anchor -= lr * (change + mu * m);  step = ours - anchor

A step is subtracted from one's copy. Neither side has to go further than the least that both allow (`limit`): where the rule
asks for more, both move elastically, at the rate that this allows; one of them says which, so the mean stays in any case.
"""

# Shape suffixes: N = elements of a shard.

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from legion_p2p.errors import DecodeError
from legion_p2p.tensor.body import require_finite
from legion_p2p.tensor.codec import Codec
from legion_p2p.tensor.flatten import digest

OUTER_RATE = 0.7  # of DiLoCo, section 3.1
OUTER_MOMENTUM = 0.9
OUTER_REACH = 3.0  # its momentum alone makes steps as long as several changes: 0.63 * 10, were they all in one direction

STILL = 0.005  # of a copy's norm: a sync may move it by that much even if nobody trains it, or it could never follow the others
ABSURD = 10.0  # times our norm: two copies of one run, trained apart for however long, do not differ so much


@dataclass(frozen=True, eq=False)
class Known:
    """What both sides know of each other. Never changed in place."""

    ours_N: Tensor
    theirs_N: Tensor
    anchor_N: Tensor | None = None
    momentum_N: Tensor | None = None

    def digest(self, ours_first: bool) -> bytes:
        """The same at both sides, where one of them says that its estimate comes first, and the other that it does not."""
        parts = (self.ours_N, self.theirs_N) if ours_first else (self.theirs_N, self.ours_N)
        whole = hashlib.sha256(b"".join(digest(x_N) for x_N in parts))
        for x_N in (self.anchor_N, self.momentum_N):
            whole.update(b"" if x_N is None else digest(x_N))
        return whole.digest()


@dataclass(frozen=True, eq=False)
class ElasticStep:
    """What a sync comes to at one side."""

    known: Known
    digest: bytes
    step_N: Tensor
    """To be subtracted from the copy."""
    distance: float
    """Of the two estimates: the Euclidean norm of their difference."""
    slowed_to: float | None = None
    """The elastic rate instead of the rule's own step, which would have been longer than the limit."""


def tell(own_N: Tensor, known: Known | None, codec: Codec) -> tuple[bytes, Tensor]:
    """The message, and the estimate of `own_N` that both sides have from now on. Raises: NonFiniteError."""
    difference_N = own_N if known is None else own_N - known.ours_N
    data = codec.encode(difference_N)
    told_N = codec.decode(data, own_N.numel())
    return data, told_N if known is None else known.ours_N + told_N


def hear(data: bytes | memoryview, known: Known | None, numel: int, codec: Codec) -> Tensor:
    """The estimate of the other's copy that both sides have from now on. Raises: CodecError; NonFiniteError."""
    told_N = codec.decode(data, numel)
    heard_N = told_N if known is None else known.theirs_N + told_N
    require_finite(heard_N)
    return heard_N


def move(
    ours_N: Tensor, theirs_N: Tensor, known: Known | None, rule: str, alpha: float, ours_first: bool, limit: float | None = None
) -> ElasticStep:
    """How far this side moves, by what both now know: `known` is what they knew before. Raises: NonFiniteError.

    `limit`: the Euclidean norm of the longest step of either side; None: any. Only one side decides by it: the other would not
    get the same norm to the last bit on another machine. It is told `slowed_to`, and calls `move_at` with that.
    """
    if rule != "nesterov":
        moved = move_at(ours_N, theirs_N, alpha, ours_first)
        longest = alpha * moved.distance
    else:
        moved = _outer(ours_N, theirs_N, known, ours_first)
        longest = max(norm(moved.step_N), norm(theirs_N - moved.known.theirs_N))
    if limit is not None and rule == "nesterov" and (known is None or known.anchor_N is None):
        limit /= OUTER_REACH  # there is no momentum yet
    if limit is None or longest <= limit:
        return moved
    return move_at(ours_N, theirs_N, min(alpha, limit / moved.distance) if moved.distance else 0.0, ours_first, slowed=True)


def move_at(ours_N: Tensor, theirs_N: Tensor, alpha: float, ours_first: bool, slowed: bool = False) -> ElasticStep:
    """The elastic step. The momentum of outer steps is dropped. Raises: NonFiniteError."""
    apart_N = ours_N - theirs_N
    step_N = alpha * apart_N
    require_finite(step_N)
    after = Known(ours_N - step_N, theirs_N + step_N)
    return ElasticStep(after, after.digest(ours_first), step_N, norm(apart_N), alpha if slowed else None)


def _outer(ours_N: Tensor, theirs_N: Tensor, known: Known | None, ours_first: bool) -> ElasticStep:
    mean_N = (ours_N + theirs_N) / 2
    if known is None or known.anchor_N is None:  # a first sync has no change to follow: it only brings both together
        after = Known(mean_N, mean_N, mean_N)
    else:
        change_N = known.anchor_N - mean_N
        momentum_N = change_N if known.momentum_N is None else OUTER_MOMENTUM * known.momentum_N + change_N
        anchor_N = known.anchor_N - OUTER_RATE * (change_N + OUTER_MOMENTUM * momentum_N)
        after = Known(anchor_N, anchor_N, anchor_N, momentum_N)
    step_N = ours_N - after.ours_N
    require_finite(step_N)
    return ElasticStep(after, after.digest(ours_first), step_N, norm(ours_N - theirs_N))


def norm(x_N: Tensor) -> float:
    """Euclidean; in fp64, where squares of what fp32 holds fit."""
    return float(torch.linalg.vector_norm(x_N, dtype=torch.float64))


def check_plausible(theirs_N: Tensor, ours_N: Tensor, travelled: float) -> None:
    """Raises: DecodeError, if what another region says to hold cannot be the same shard of the same run."""
    theirs, ours = norm(theirs_N), norm(ours_N)
    if theirs > ABSURD * max(ours, travelled) > 0:
        raise DecodeError(f"a copy of norm {theirs:.3g}, where ours has {ours:.3g} and has moved by {travelled:.3g} lately")


def reach(own_N: Tensor, travelled: float, cap: float, rule: str) -> float | None:
    """The longest step that another copy may make this one take: see `tensor.travel`. None: any.

    `cap`: factor on what its own training made it move; 0: no cap.
    """
    if not cap:
        return None
    return max(cap * travelled * (OUTER_REACH if rule == "nesterov" else 1.0), STILL * norm(own_N))
