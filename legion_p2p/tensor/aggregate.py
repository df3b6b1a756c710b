"""The mean of what the members of a region push, by weight, with capped norms; and what every other rule needs as well.

The same contributions give the same bits, in whatever order they arrived and on whatever machine, so that a peer that has them
can recompute an update. Therefore members are summed in the order of their names, in fp64, by elementwise operations only.
Library reductions (`sum`, `norm`) add in an order that depends on vector width and threads, and `add_(alpha=)` fuses on some
machines.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from legion_p2p.errors import UsageError
from legion_p2p.tensor.body import is_finite
from legion_p2p.tensor.encoded import Value, whole
from legion_p2p.tensor.flatten import digest
from legion_p2p.tensor.mean_length import Term, given_back

# Shape suffixes: N = elements of a shard, B = elements of a block.

MAX_STEPS_RATIO = 4.0  # of steps believed to the median: more would let one liar among few make rounds' steps far too long
BLOCK = 1 << 15  # elements that are summed at a time: what is read and written again stays in the processor's cache


@dataclass(frozen=True, eq=False)
class WeightedPush:
    """One member's change of a shard."""

    source: str
    """The peer to name if it is unusable."""
    weight: float
    """Relative to the others, such as tokens trained."""
    value: Value
    steps: float = 1.0
    """Local steps that it is made of: see `per_step`."""
    standing: int | None = None
    """Of its member, before this round: see `tensor/robust/standing.py`. None: the run screens nobody."""


@dataclass(frozen=True, eq=False)
class Aggregated:
    """`mean` is 1-D fp32: zeros if nothing was usable, and then `used` is ()."""

    mean: Tensor
    used: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    """(source, reason), sorted."""
    agreement: float | None = None
    """How far they agreed, 0 to 1. None: not measured, or there was nothing to compare."""
    standings: tuple[int, ...] = ()
    """Of the members in `used`, after this round; empty where nobody is screened."""


def weighted_mean(
    contributions: Sequence[WeightedPush], norm_cap: float | None = None, numel: int | None = None, *, restore: float = 0.0
) -> Aggregated:
    """The mean by weight, in which no contribution has a norm per step larger than `norm_cap` times the median one.

    A longer one is scaled down and stays in `used`. The median is over those that are finite and not all zero (an idle peer
    should not shrink the others), and of an even number of them it is the lower of the middle two: with two contributions the
    smaller norm is the measure, so a liar may slow a round of two down, but not blow it up. A single one is its own median: a
    cap of 1 or more never touches it. Without a cap all are trusted, and numbers of steps do not matter.

    `restore`: the part of the length that is given back, see `tensor.mean_length`; 0 measures nothing. `numel` is only needed
    where there may be no contribution at all.

    Raises: UsageError, if values differ in length or are not 1-D fp32, or `norm_cap` is not positive.
    """
    if norm_cap is not None and not norm_cap > 0:
        raise UsageError(f"norm_cap {norm_cap}, must be positive")
    numel = common_numel(contributions, numel)
    usable, refused = usable_in_order(contributions)
    factors, mean_steps = [1.0] * len(usable), 1.0
    if norm_cap is not None:
        factors, mean_steps = equal_factors(usable, norm_cap)

    mean_N = torch.zeros(numel, dtype=torch.float32, device="cpu")
    if usable:
        # relative weights first: the sum of the weights themselves could overflow
        heaviest = max(c.weight for c in usable)
        shares = [c.weight / heaviest for c in usable]
        total = math.fsum(shares)
        out_N, values = mean_N.numpy(), [c.value for c in usable]
        sum_B, one_B = np.empty((2, min(BLOCK, numel)))  # torch takes a quarter longer, and of 256 elements three times as long
        for start in range(0, numel, BLOCK):
            end = min(start + BLOCK, numel)
            sum_B, one_B = sum_B[: end - start], one_B[: end - start]
            sum_B.fill(0.0)
            for value_N, share, factor in zip(values, shares, factors, strict=True):
                one_B[:] = value_N[start:end].detach().numpy()
                one_B *= share * factor
                sum_B += one_B
            sum_B /= total
            with np.errstate(over="ignore"):  # finite values that are too large together: whoever gets the mean checks it
                out_N[start:end] = sum_B
    agreement = None
    if restore > 0:
        terms = [Term(c.value, c.weight, factor) for c, factor in zip(usable, factors, strict=True)]
        mean_N, agreement = given_back(mean_N, terms, restore)
    return Aggregated(
        mean=mean_N if mean_steps == 1.0 else mean_N * mean_steps,
        used=tuple(c.source for c in usable),
        refused=refused,
        agreement=agreement,
    )


def mean_one_by_one(pushed: Sequence[tuple[float, Callable[[], Tensor]]], numel: int) -> Tensor:
    """The mean by weight, as `weighted_mean` makes it without a cap, of values that come when they are asked for: never more than
    one of them is in memory. 1-D fp32 on the CPU; weights are positive and values finite, and there is at least one."""
    heaviest = max(weight for weight, _ in pushed)
    total = math.fsum(weight / heaviest for weight, _ in pushed)
    sum_N, one_B = np.zeros(numel), np.empty(min(BLOCK, numel))
    for weight, value_of in pushed:
        share, value_N = weight / heaviest, value_of().detach().numpy()
        for start in range(0, numel, BLOCK):
            part = slice(start, min(start + BLOCK, numel))
            scaled_B = one_B[: part.stop - part.start]
            scaled_B[:] = value_N[part]
            scaled_B *= share
            sum_N[part] += scaled_B
        del value_N
    sum_N /= total
    with np.errstate(over="ignore"):  # as in `weighted_mean`
        return torch.from_numpy(sum_N.astype(np.float32))


def equal_factors(contributions: Sequence[WeightedPush], norm_cap: float | None) -> tuple[list[float], float]:
    """For each contribution, the factor that makes it the change of one step, no longer than `norm_cap` allows; and how many
    steps the mean of those stands for.

    A peer that makes four steps while another makes one pushes what is up to four times as long. Rules compare directions and
    lengths, so they are given both at equal steps: otherwise they would take one for an outlier, or cut it to the other's length
    (normalized averaging: Wang et al. 2020, 2007.07481). One step is here all the steps of the contribution with the most.
    """
    most = max((c.steps for c in contributions), default=1.0)
    per_step = [most / c.steps for c in contributions]
    caps = [1.0] * len(contributions)
    if norm_cap is not None:
        caps = cap_factors([norm(whole(c.value)) * one for c, one in zip(contributions, per_step, strict=True)], norm_cap)
    factors = [one * cap for one, cap in zip(per_step, caps, strict=True)]
    if all(one == 1.0 for one in per_step):
        return factors, 1.0
    heaviest = max(c.weight for c in contributions)
    weights = [c.weight / heaviest for c in contributions]
    return factors, math.fsum(w / one for w, one in zip(weights, per_step, strict=True)) / math.fsum(weights)


def believed_steps(steps: Sequence[int], hostile: int) -> tuple[float, ...]:
    """The claimed steps, limited to the claim that only `hostile` others exceed, and to MAX_STEPS_RATIO times the lower median.

    They cannot be checked. A claim that is too high makes a push count for less and the round's step longer, by at most
    MAX_STEPS_RATIO; one that is too low makes the push a longer one, which is capped.
    """
    ordered = sorted(steps, reverse=True)
    limit = min(ordered[min(hostile, len(ordered) - 1)], MAX_STEPS_RATIO * _lower_median([float(s) for s in steps]))
    return tuple(float(min(s, limit)) for s in steps)


def capped_weights(tokens: Sequence[float], cap: float) -> tuple[float, ...]:
    """min(tokens, cap * median): what a member claims to have trained cannot be checked, only limited.

    The median is over positive finite claims, the lower of the middle two. Claims that are neither positive nor finite are left
    as they are, for `weighted_mean` to refuse by name.
    """
    if not cap > 0:
        raise UsageError(f"cap {cap}, must be positive")
    plausible = [t for t in tokens if math.isfinite(t) and t > 0]
    limit = cap * _lower_median(plausible) if plausible else 0.0
    return tuple(min(t, limit) if math.isfinite(t) and t > 0 else t for t in tokens)


def common_numel(contributions: Sequence[WeightedPush], numel: int | None) -> int:
    shapes = {tuple(c.value.shape) for c in contributions}
    dtypes = {c.value.dtype for c in contributions}
    if numel is not None:
        shapes.add((numel,))
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes) or dtypes - {torch.float32}:
        seen = f"shapes {sorted(shapes)}, types {sorted(map(str, dtypes))}"
        raise UsageError(f"contributions must be 1-D torch.float32 of one length, got {seen}")
    return shapes.pop()[0] if shapes else 0


def usable_in_order(contributions: Sequence[WeightedPush]) -> tuple[list[WeightedPush], tuple[tuple[str, str], ...]]:
    """Those that can be used, in the order in which they are summed; and of the others (source, reason), sorted."""
    usable, refused = [], []
    for c in contributions:
        if not (math.isfinite(c.weight) and c.weight > 0):
            refused.append((c.source, f"weight {c.weight}, must be positive and finite"))
        elif not is_finite(whole(c.value)):
            refused.append((c.source, "value carries NaN or infinity"))
        else:
            usable.append(c)
    return _in_fixed_order(usable), tuple(sorted(refused))


def _in_fixed_order(contributions: list[WeightedPush]) -> list[WeightedPush]:
    """By source. Where one source comes twice (a late push beside the present one) what was pushed decides."""
    n_of = Counter(c.source for c in contributions)

    def key(c: WeightedPush) -> tuple[str, float, bytes]:
        tie_break = b"" if n_of[c.source] == 1 else digest(whole(c.value))
        return c.source, c.weight, tie_break

    return sorted(contributions, key=key)


def norm(x_N: Tensor) -> float:
    """The Euclidean norm, the same bits on every machine: adds halves on top of each other until one element is left."""
    # squares of fp32 fit: (3.4e38)^2 = 1.2e77, and 2^32 of them are far from fp64's 1.8e308
    rest = x_N.detach().numpy().astype(np.float64)  # most steps are short: numpy takes a third of torch's time for these
    np.square(rest, out=rest)
    while len(rest) > 1:
        half = len(rest) // 2
        odd = rest[2 * half :]
        rest = np.add(rest[:half], rest[half : 2 * half], out=rest[:half])
        if len(odd):
            rest[0] += odd[0]
    return math.sqrt(rest[0]) if len(rest) else 0.0


def cap_factors(norms: list[float], norm_cap: float) -> list[float]:
    moving = [length for length in norms if length > 0]
    if not moving:
        return [1.0] * len(norms)
    limit = norm_cap * _lower_median(moving)
    return [1.0 if length <= limit else limit / length for length in norms]


def _lower_median(values: list[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]
