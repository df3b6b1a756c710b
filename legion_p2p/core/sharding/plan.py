"""How the model of a sharded run is cut: into units of whole tensors, so that an inner optimizer can run at a unit's owner.

    a block     the parameters whose names agree up to the first number, such as "blocks.3.": they are used together
    the rest    parameters outside of any list of blocks: embeddings, the last norm, the output matrix; used all through a step
    a unit      a block; of a block that does not fit into one message, and of the rest, as many tensors as fit
    a piece     a tensor of a unit; of a tensor that is too large for one unit, some of its rows

All of it follows from the parameters in the run's specification, so all members cut alike.
"""

import re
from collections.abc import Sequence
from itertools import accumulate
from math import prod

import msgspec

from legion_p2p.core.plan import MAX_SHARD_ELEMENTS, MAX_SHARDS, MIN_SHARD_ELEMENTS, ParamSpec
from legion_p2p.errors import UsageError

_BLOCK = re.compile(r"(?:.*?\.)??\d+\.")


class UnitPiece(msgspec.Struct, frozen=True):
    """Part of a parameter: its elements [start, end), which are whole rows."""

    param: int
    start: int
    end: int

    @property
    def numel(self) -> int:
        return self.end - self.start


class Unit(msgspec.Struct, frozen=True):
    """What has one owner: pieces that lie one after another in one flat tensor."""

    index: int
    pieces: tuple[UnitPiece, ...]

    @property
    def numel(self) -> int:
        return sum(piece.numel for piece in self.pieces)


class UnitBlock(msgspec.Struct, frozen=True):
    """What is pulled, used and freed together; a block's name ends with a dot, that of the rest is empty."""

    name: str
    units: tuple[Unit, ...]

    @property
    def numel(self) -> int:
        return sum(unit.numel for unit in self.units)


class UnitPlan(msgspec.Struct, frozen=True):
    """The blocks of a model, in the order of its parameters; the rest, if there is any, is the first."""

    blocks: tuple[UnitBlock, ...]
    starts: tuple[int, ...]
    """Where each parameter begins in the flattened model, and where the last one ends."""

    @property
    def units(self) -> tuple[Unit, ...]:
        """By index."""
        return tuple(unit for block in self.blocks for unit in block.units)

    @property
    def largest_block(self) -> int:
        return max(block.numel for block in self.blocks)


def plan_units(params: Sequence[ParamSpec]) -> UnitPlan:
    """The plan for these parameters. Raises: UsageError, if there would be more than MAX_SHARDS units, or a row is too long."""
    members: dict[str, list[int]] = {}
    for i, param in enumerate(params):
        found = _BLOCK.match(param.name)
        members.setdefault(found.group() if found else "", []).append(i)
    sizes = [sum(params[i].numel for i in inside) for name, inside in members.items() if name]
    of_rest = min(max(MIN_SHARD_ELEMENTS, *sizes), MAX_SHARD_ELEMENTS) if sizes else MAX_SHARD_ELEMENTS
    blocks: list[UnitBlock] = []
    n_units = 0
    for name in sorted(members, key=bool):  # stable: the rest first, then as they come
        cut = _cut([(i, params[i]) for i in members[name]], MAX_SHARD_ELEMENTS if name else of_rest)
        units = tuple(Unit(n_units + i, pieces) for i, pieces in enumerate(cut))
        n_units += len(units)
        blocks.append(UnitBlock(name, units))
    if n_units > MAX_SHARDS:
        raise UsageError(f"a sharded run of {n_units} units, at most {MAX_SHARDS}")
    return UnitPlan(tuple(blocks), tuple(accumulate((param.numel for param in params), initial=0)))


def _cut(params: Sequence[tuple[int, ParamSpec]], limit: int) -> list[tuple[UnitPiece, ...]]:
    """Pieces of units that have at most `limit` elements, unless one row has more."""
    units: list[tuple[UnitPiece, ...]] = []
    open_unit: list[UnitPiece] = []
    room = limit
    for i, param in params:
        row = max(1, prod(param.shape[1:]))
        if row > MAX_SHARD_ELEMENTS:
            raise UsageError(f"parameter {param}: a row of {row} elements, a sharded run can have {MAX_SHARD_ELEMENTS}")
        at_once = max(row, limit // row * row)
        for start in range(0, param.numel, at_once):
            piece = UnitPiece(i, start, min(start + at_once, param.numel))
            if piece.numel > room and open_unit:
                units.append(tuple(open_unit))
                open_unit, room = [], limit
            open_unit.append(piece)
            room -= piece.numel
    return [*units, tuple(open_unit)] if open_unit else units
