"""The parameters being trained, seen from the shards: where each unpushed change started, and how a new reference is taken in.

    on a push      change = base - local;  base <- local
    on a version   local <- reference + (local - base);  base <- reference

So what was trained since the last push is never lost when the common model moves, and never pushed twice. With `mixing` below 1
base only goes that share of the way to the reference, and local with it: the answer, which is a round old, is merged with where
this copy stood when it asked (as Streaming DiLoCo, 2501.18512, does with the answer to an overlapped exchange).

    compactly  total = reference - local, rounded;  base' = reference - total;  change = base - base'

Where the new base would have to be held beside the reference, what was handed in is held instead, in a byte an element. Rounding
loses nothing: what it left out is the difference of local and base, which is training that will be handed in the next time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from legion_p2p.errors import NonFiniteError
from legion_p2p.tensor.body import is_finite
from legion_p2p.tensor.compact import SMALLEST, Compact, Held, Keep, Less, Shelved, in_memory, value_of
from legion_p2p.tensor.flatten import FlatView


class LocalCopy:
    """The training side of all shards. `bounds` are [start, end) of each shard in the flattened parameters."""

    def __init__(
        self, view: FlatView, bounds: Sequence[tuple[int, int]], exact: bool, mixing: float = 1.0, keep: Keep = in_memory
    ) -> None:
        self.view = view
        self.bounds = tuple(bounds)
        self.exact = exact
        """All parameters are fp32: a reference is stored as it is. Others round it, and rounding must not count as training."""
        self.mixing = mixing
        self._keep = keep
        """Where what was handed in compactly is held."""
        self._types = view.types()
        self.versions = [-1] * len(self.bounds)
        self._bases: list[Held | None] = [None] * len(self.bounds)
        self._prints: list[int | None] = [None] * len(self.bounds)
        """Of the parameters as they were handed in compactly."""

    def follow_types(self) -> None:
        """Call before `take` and `hand_in`: where the model was converted to another type meanwhile, the rounding that this did
        does not count as training.
        """
        types = self.view.types()
        if types == self._types:
            return
        self._types = types
        self.exact = all(kind == torch.float32 for kind in types)
        for shard, base in enumerate(self._bases):
            if base is not None:
                self._bases[shard] = self.view.rounded(self.bounds[shard][0], value_of(base))
                self._prints[shard] = None

    def differs(self, shard: int) -> bool:
        """Something moved the shard's parameters since the last call of `hand_in`, or of `take` where none was."""
        base = self._bases[shard]
        if base is None:
            return False
        local = self.view.read_slice(*self.bounds[shard])
        if self._prints[shard] is not None:
            return _print_of(local) != self._prints[shard]
        return not torch.equal(local, value_of(base))

    def take(self, shard: int, version: int, held_reference: Tensor | Shelved | None) -> None:
        """A shard has a new version; without a reference its bytes are those that were handed in with the last push."""
        self.versions[shard] = version
        if held_reference is None:
            return
        reference = value_of(held_reference)
        start, end = self.bounds[shard]
        held, seen = self._bases[shard], self._prints[shard]
        self._prints[shard] = None
        if held is None:
            self.view.assign_slice(start, reference)
            self._bases[shard] = held_reference if self.exact else self.view.read_slice(start, end)
            return
        local = self.view.read_slice(start, end)
        base = value_of(held)
        change = local - base
        # A diverged copy is given up, or it would never recover; and where nothing was trained since a compact push, what its
        # rounding left out is as well: such a peer ends with exactly the reference.
        if not is_finite(change) or (seen is not None and _print_of(local) == seen):
            change.zero_()
        if self.mixing < 1.0:
            reference = held_reference = base + self.mixing * (reference - base)
        # In this order a peer that has not trained since its push ends with exactly the reference.
        self.view.assign_slice(start, reference + change)
        self._bases[shard] = held_reference if self.exact else self.view.read_slice(start, end) - change

    def take_back(self) -> None:
        """Undo all that has moved the parameters since the last call of `hand_in`, or of `take` where none was."""
        for (start, _), base in zip(self.bounds, self._bases, strict=True):
            if base is not None:
                self.view.assign_slice(start, value_of(base))

    def hand_in(self, shards: Sequence[int], *, compactly: bool = False) -> dict[int, tuple[Held, Held]]:
        """For each of `shards`, (base, local) of the change since the last call; local is the base from now on.

        `compactly`: of large shards, local is only nearly what the parameters are, and is held in a byte an element.
        """
        handed: dict[int, tuple[Held, Held]] = {}
        # One pass over the parameters is much cheaper than one per shard, where most are wanted and all are small.
        small = all(end - start < SMALLEST for start, end in self.bounds)
        whole = self.view.snapshot() if small and 2 * len(shards) > len(self.bounds) else None
        for shard in shards:
            start, end = self.bounds[shard]
            base = self._bases[shard]
            if base is None:
                continue
            local = self.view.read_slice(start, end) if whole is None else whole[start:end]
            after, self._prints[shard] = _compact_base(base, local, self._keep) if compactly else (local, None)
            handed[shard] = (base, after)
            self._bases[shard] = after
        return handed


def _compact_base(base: Held, local: Tensor, keep: Keep) -> tuple[Held, int | None]:
    """The base after `local` was handed in, and the print of `local` if that is only nearly it."""
    reference = base.reference if isinstance(base, Less) else base
    if local.numel() < SMALLEST:
        return local, None
    try:
        return Less(reference, Compact.of(value_of(reference) - local, keep)), _print_of(local)
    except NonFiniteError:  # the receiver of the change refuses it
        return local, None


def _print_of(x: Tensor) -> int:
    """A number that is another one, in all likelihood, if something moved the values: the sum of their bits."""
    return int(x.view(torch.int32).sum(dtype=torch.int64))
