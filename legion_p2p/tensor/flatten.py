"""The parameters of a model as one flat fp32 tensor, in a fixed order, of which a shard is a slice.

Tied parameters (the same object twice) count once, where they come first.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from legion_p2p.errors import UsageError


class Together(Protocol):
    """The other processes that hold the same parameters, or parts of them, and take part in what is done here."""

    def reading(self, start: int, end: int) -> None:
        """They read the same slice."""

    def writing(self, start: int, values: Tensor) -> None:
        """They write the same."""


class FlatView:
    """Reads and writes slices of the flattened parameters; knows where each one lies.

    `parameters` are tensors, or pairs of name and tensor such as `model.named_parameters()`; without names they are called
    by their index. Any float type, device and shape. It holds the tensors themselves: replaced memory (`p.data = ...`) is
    followed, but a model that gets new Parameter objects needs a new view.

    A parameter may be a DTensor, of which this process holds a part: then reading and writing are collectives, as it is one, and
    `together` are told before each. Writes are passed on to them where parameters are not spread, too.
    """

    def __init__(self, parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]], together: Together | None = None) -> None:
        named = [p if isinstance(p, tuple) else (str(i), p) for i, p in enumerate(parameters)]
        first_of = {id(p): (name, p) for name, p in reversed(named)}
        kept = [(name, p) for name, p in named if first_of[id(p)][0] == name]
        for name, p in kept:
            if not p.is_floating_point() or p.layout != torch.strided or p.is_meta:
                raise UsageError(f"parameter {name} is {p.dtype}, {p.layout}, on {p.device}: must be dense floats with memory")
        self.names = tuple(name for name, _ in kept)
        self.shapes = tuple(tuple(p.shape) for _, p in kept)
        self._params = tuple(p for _, p in kept)
        self._together = together
        # N + 1 boundaries: parameter i lies in [starts[i], starts[i + 1])
        self.starts = tuple(accumulate((p.numel() for p in self._params), initial=0))
        self.numel = self.starts[-1]

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors themselves, in order."""
        return self._params

    def snapshot(self) -> Tensor:
        """A copy of all of it: 1-D fp32 on the CPU."""
        return self.read_slice(0, self.numel)

    @torch.no_grad()
    def read_slice(self, start: int, end: int) -> Tensor:
        """A copy of elements [start, end): 1-D fp32 on the CPU."""
        self._check(start, end)
        if self._together is not None and any(is_spread(p) for p, *_ in self._pieces(start, end)):
            self._together.reading(start, end)
        out = torch.empty(end - start, dtype=torch.float32, device="cpu")
        for p, a, b, at in self._pieces(start, end):
            out[at : at + b - a].copy_(all_of(p).reshape(-1)[a:b])
        return out

    @torch.no_grad()
    def rounded(self, start: int, values: Tensor) -> Tensor:
        """`values`, as they would be read after having been written to the elements from `start` on."""
        self._check(start, start + len(values))
        out = torch.empty(len(values), dtype=torch.float32, device="cpu")
        for p, a, b, at in self._pieces(start, start + len(values)):
            out[at : at + b - a].copy_(values[at : at + b - a].to(p.dtype))
        return out

    def types(self) -> tuple[torch.dtype, ...]:
        """Those that the parameters have now: `model.bfloat16()` changes them under our hands."""
        return tuple(p.dtype for p in self._params)

    @torch.no_grad()
    def assign_slice(self, start: int, values: Tensor) -> None:
        """Write `values` (1-D, any device) to the elements from `start` on, in place, rounded to the type of each parameter."""
        if values.ndim != 1:
            raise UsageError(f"values of shape {tuple(values.shape)}, must be 1-D")
        self._check(start, start + len(values))
        if self._together is not None:
            self._together.writing(start, values)
        for p, a, b, at in self._pieces(start, start + len(values)):
            new = values[at : at + b - a]
            target = p.detach()
            if is_spread(p):
                _assign_spread(p, a, b, new)
            elif target.is_contiguous():
                target.view(-1)[a:b].copy_(new)
            else:
                # no flat view of it exists: change a flat copy and put all of that back
                flat = target.reshape(-1).clone()
                flat[a:b].copy_(new)
                target.copy_(flat.view(target.shape))

    def _check(self, start: int, end: int) -> None:
        if not 0 <= start <= end <= self.numel:
            raise UsageError(f"slice [{start}, {end}) of {self.numel} elements")

    def _pieces(self, start: int, end: int) -> Iterator[tuple[Tensor, int, int, int]]:
        """(parameter, from, to, position in the slice) for each parameter that [start, end) overlaps."""
        i = bisect_right(self.starts, start) - 1
        while i < len(self._params) and self.starts[i] < end:
            first, last = self.starts[i], self.starts[i + 1]
            a, b = max(start, first), min(end, last)
            if a < b:
                yield self._params[i], a - first, b - first, a - start
            i += 1


def is_spread(p: Tensor) -> bool:
    """It is a DTensor, whose parts several processes hold."""
    return hasattr(p, "full_tensor")


def all_of(p: Tensor) -> Tensor:
    """All of it, without its gradient's history; of a DTensor a copy."""
    return p.detach().full_tensor() if is_spread(p) else p.detach()  # type: ignore[attr-defined]


def _assign_spread(p: Any, a: int, b: int, new: Tensor) -> None:
    """Write elements [a, b) of a DTensor. All of it is in memory for a moment."""
    from torch.distributed.tensor import distribute_tensor

    local = p.detach().to_local()
    flat = new.to(local.device, p.dtype) if b - a == p.numel() else all_of(p).reshape(-1).clone()
    flat[a:b] = new.to(local.device)
    placed = distribute_tensor(flat.view(p.shape), p.device_mesh, p.placements)
    local.copy_(placed.to_local())


def snapshot(params: Sequence[Tensor]) -> Tensor:
    """FlatView(params).snapshot(), for one use."""
    return FlatView(params).snapshot()


def assign_slice(params: Sequence[Tensor], start: int, values: Tensor) -> None:
    """FlatView(params).assign_slice(), for one use."""
    FlatView(params).assign_slice(start, values)


def read_slice(params: Sequence[Tensor], start: int, end: int) -> Tensor:
    """FlatView(params).read_slice(), for one use."""
    return FlatView(params).read_slice(start, end)


def digest(x: Tensor) -> bytes:
    """SHA-256 of the little-endian fp32 bytes (32 bytes). Equal digests mean equal bits: -0.0 and 0.0 differ.

    Reads the memory of a contiguous CPU tensor where it is, without copying.
    """
    return hashlib.sha256(fp32_bytes(x)).digest()


def fp32_bytes(x: Tensor) -> memoryview:
    """The little-endian bytes of fp32 values; of a contiguous CPU tensor its own memory, not copied."""
    if x.dtype != torch.float32:
        raise UsageError(f"bytes of {x.dtype}, must be torch.float32")
    array = x.detach().cpu().contiguous().numpy()
    return array.astype("<f4", copy=False).reshape(-1).view(np.uint8).data


def from_fp32_bytes(data: bytes | memoryview) -> Tensor:
    """1-D fp32 on the CPU, with memory of its own."""
    wire = np.frombuffer(data, np.dtype("<f4"))
    return torch.from_numpy(wire.astype(np.float32))
