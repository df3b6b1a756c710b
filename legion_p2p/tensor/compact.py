"""Tensors that are held between rounds: in a byte an element, or elsewhere than in memory.

What a peer holds beside its model (what it has handed in since the last version, what compression left out) is as long as the
model. Rounded to 8 bits, with a scale for each 256 values, it is off by at most 1/254 of the largest of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from legion_p2p.errors import NonFiniteError
from legion_p2p.files.mapped import cool
from legion_p2p.tensor.blockwise import INT8
from legion_p2p.tensor.flatten import fp32_bytes, from_fp32_bytes

Keep = Callable[[bytes | memoryview], bytes | memoryview]
"""Gives the same bytes back, held where they take no memory."""


def in_memory(data: bytes | memoryview) -> bytes | memoryview:
    return data


SMALLEST = 1 << 16  # elements that are worth it: shorter ones, of which a run has few, stay as they are


@dataclass(frozen=True, eq=False)
class Compact:
    """A 1-D fp32 tensor on the CPU, rounded."""

    data: bytes | memoryview
    numel: int

    @classmethod
    def of(cls, x: Tensor, keep: Keep = in_memory) -> "Compact":
        """Raises: NonFiniteError."""
        return cls(keep(INT8.encode(x.contiguous())), x.numel())

    def value(self) -> Tensor:
        made = INT8.decode(self.data, self.numel)
        cool(self.data)
        return made


@dataclass(frozen=True, eq=False)
class Shelved:
    """A 1-D fp32 tensor, held elsewhere; each look at it makes a copy."""

    data: bytes | memoryview
    numel: int

    @classmethod
    def of(cls, x: Tensor, keep: Keep) -> "Shelved":
        return cls(keep(fp32_bytes(x)), x.numel())

    def value(self) -> Tensor:
        made = from_fp32_bytes(self.data)
        cool(self.data)
        return made


@dataclass(frozen=True, eq=False)
class Less:
    """`reference - handed`, which is the same bits whenever it is asked for."""

    reference: Tensor | Shelved
    handed: Compact

    def value(self) -> Tensor:
        return value_of(self.reference) - self.handed.value()


Held = Tensor | Shelved | Less


def value_of(held: Held) -> Tensor:
    return held if isinstance(held, Tensor) else held.value()


def shelved(x: Tensor, keep: Keep) -> Tensor | Shelved:
    """What is held instead of `x`, where that is long."""
    return x if x.numel() < SMALLEST or keep is in_memory else Shelved.of(x, keep)


def compacted(x: Tensor | None, keep: Keep = in_memory) -> Tensor | Compact | None:
    """What is held instead of `x`: where it is long, and finite, its rounded values."""
    if x is None or x.numel() < SMALLEST:
        return x
    try:
        return Compact.of(x, keep)
    except NonFiniteError:  # the code that uses it finds out, and reports it
        return x


def expanded(held: Tensor | Compact | None) -> Tensor | None:
    return held.value() if isinstance(held, Compact) else held
