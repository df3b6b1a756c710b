"""Tensors that are held between rounds, in a byte an element.

What a peer holds beside its model (what it has handed in since the last version, what compression left out) is as long as the
model. Rounded to 8 bits, with a scale for each 256 values, it is off by at most 1/254 of the largest of them.
"""

from dataclasses import dataclass

from torch import Tensor

from legion_p2p.errors import NonFiniteError
from legion_p2p.tensor.blockwise import INT8

SMALLEST = 1 << 16  # elements that are worth it: shorter ones, of which a run has few, stay as they are


@dataclass(frozen=True, eq=False)
class Compact:
    """A 1-D fp32 tensor on the CPU, rounded."""

    data: bytes
    numel: int

    @classmethod
    def of(cls, x: Tensor) -> "Compact":
        """Raises: NonFiniteError."""
        return cls(INT8.encode(x.contiguous()), x.numel())

    def value(self) -> Tensor:
        return INT8.decode(self.data, self.numel)


@dataclass(frozen=True, eq=False)
class Less:
    """`reference - handed`, which is the same bits whenever it is asked for."""

    reference: Tensor
    handed: Compact

    def value(self) -> Tensor:
        return self.reference - self.handed.value()


Held = Tensor | Less


def value_of(held: Held) -> Tensor:
    return held.value() if isinstance(held, Less) else held


def compacted(x: Tensor | None) -> Tensor | Compact | None:
    """What is held instead of `x`: where it is long, and finite, its rounded values."""
    if x is None or x.numel() < SMALLEST:
        return x
    try:
        return Compact.of(x)
    except NonFiniteError:  # whoever uses it finds out, and says so
        return x


def expanded(held: Tensor | Compact | None) -> Tensor | None:
    return held.value() if isinstance(held, Compact) else held
