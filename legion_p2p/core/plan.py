"""How a model becomes shards: parameters in a fixed order, flattened, cut into equal pieces.

The order is the order in which the model names its parameters; every peer of a run must name the same ones with the same shapes,
or it does not fit. All shards have `shard_elements` elements, the last one what remains.
"""

from collections.abc import Sequence
from math import prod
from typing import Annotated

import msgspec

from legion_p2p.errors import IncompatibleModelError, UsageError

MAX_PARAMS = 20_000  # tensors in a model; GPT-2 124M has 148, a 70B Llama 723
MAX_NAME_CHARS = 300
MAX_DIMS = 8
FIXED_DIGEST_BYTES = 8  # two models that differ by chance differ here; an attacker gains nothing by making them collide
MAX_SHARDS = 4096  # each member keeps a log and an owner of every one; a question about all of them is 8.5 KiB
MAX_SHARD_ELEMENTS = 1 << 23  # 32 MiB as fp32: two of them fit into one frame, with room
MIN_SHARD_ELEMENTS = 1 << 16  # chosen: below 64 KiB as int8 a request costs more CPU than its bytes
BLOCK_ELEMENTS = 256  # a shard is whole blocks of the int8 codec
TARGET_SHARDS = 16  # a handful of peers can share 16 evenly; more only adds requests

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARS)]
_Dim = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
_Shape = Annotated[tuple[_Dim, ...], msgspec.Meta(max_length=MAX_DIMS)]


class ParamSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One parameter: its name in the model and its shape."""

    name: _Name
    shape: _Shape

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)}"


class FixedSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of the model that is not trained in the run: a frozen parameter, or a buffer of floats."""

    name: _Name
    shape: _Shape
    digest: Annotated[bytes, msgspec.Meta(min_length=FIXED_DIGEST_BYTES, max_length=FIXED_DIGEST_BYTES)]
    """The start of the SHA-256 of its type and bytes."""


def check_fixed(ours: Sequence[FixedSpec], runs: Sequence[FixedSpec]) -> None:
    """Check that what both models have beside their trained parameters is the same. What only one of them lists is not compared.

    Raises: IncompatibleModelError, naming the first that differs.
    """
    its_of = {its.name: its for its in runs}
    differ = [our for our in ours if our.name in its_of and its_of[our.name] != our]
    if differ:
        first, its = differ[0], its_of[differ[0].name]
        if first.shape != its.shape:
            what = f"{first.name} has the shape {list(first.shape)}, in the run it has {list(its.shape)}"
        else:
            what = f"{first.name} {list(first.shape)} has other values than the model that the run was created with"
        more = f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""
        raise IncompatibleModelError(
            f"{what}{more}: it is not trained in the run, so it would stay different. Load what its creator loaded; or create "
            f'the run with untrained="average", which averages buffers, or untrained="own", which does not compare'
        )


def check_fit(ours: Sequence[ParamSpec], runs: Sequence[ParamSpec]) -> None:
    """Check that a model with parameters `ours` can train in a run with parameters `runs`.

    Raises: IncompatibleModelError, naming the first parameter that differs.
    """
    for i, (our, its) in enumerate(zip(ours, runs, strict=False)):
        if our != its:
            raise IncompatibleModelError(f"parameter {i} differs: this model has {our}, the run has {its}")
    if len(ours) != len(runs):
        shorter, longer = sorted((ours, runs), key=len)
        extra = longer[len(shorter)]
        who = "this model" if longer is ours else "the run"
        raise IncompatibleModelError(
            f"this model has {len(ours)} parameters, the run has {len(runs)}: only {who} has {extra}, and those after it"
        )


class ShardPlan(msgspec.Struct, frozen=True):
    """Where each shard lies in the flattened parameters (`numel` elements)."""

    numel: int
    shard_elements: int

    @property
    def n_shards(self) -> int:
        return max(1, -(-self.numel // self.shard_elements))

    def bounds(self, shard: int) -> tuple[int, int]:
        """First element of `shard`, and the one after its last."""
        if not 0 <= shard < self.n_shards:
            raise UsageError(f"shard {shard}, there are {self.n_shards}")
        return shard * self.shard_elements, min(self.numel, (shard + 1) * self.shard_elements)

    def size(self, shard: int) -> int:
        start, end = self.bounds(shard)
        return end - start


def dense_ranges(params: Sequence[ParamSpec], plan: ShardPlan, shard: int, below: int) -> tuple[tuple[int, int], ...]:
    """Where in `shard` small (fewer than `below` elements) and one-dimensional parameters lie: [from, to) in the shard, in order.

    Neighbours are one range.
    """
    first, last = plan.bounds(shard)
    ranges: list[tuple[int, int]] = []
    start = 0
    for param in params:
        end = start + param.numel
        a, b = max(start, first) - first, min(end, last) - first
        if a < b and (len(param.shape) < 2 or param.numel < below):
            if ranges and ranges[-1][1] == a:
                a = ranges.pop()[0]
            ranges.append((a, b))
        start = end
    return tuple(ranges)


def plan_for(numel: int, shard_elements: int = 0) -> ShardPlan:
    """The plan for a model of `numel` elements; `shard_elements` 0 chooses about TARGET_SHARDS shards.

    Raises: UsageError, if that would make more than MAX_SHARDS shards or the model is empty.
    """
    if numel < 1:
        raise UsageError("the model has no trainable parameters")
    if shard_elements == 0:
        shard_elements = -(-numel // TARGET_SHARDS)
        shard_elements = -(-shard_elements // BLOCK_ELEMENTS) * BLOCK_ELEMENTS
        shard_elements = min(max(shard_elements, MIN_SHARD_ELEMENTS), MAX_SHARD_ELEMENTS)
    if not 1 <= shard_elements <= MAX_SHARD_ELEMENTS:
        raise UsageError(f"shards of {shard_elements} elements, allowed are 1 to {MAX_SHARD_ELEMENTS}")
    plan = ShardPlan(numel, shard_elements)
    if plan.n_shards > MAX_SHARDS:
        raise UsageError(f"{plan.n_shards} shards of {shard_elements} elements, at most {MAX_SHARDS}: choose larger shards")
    return plan
