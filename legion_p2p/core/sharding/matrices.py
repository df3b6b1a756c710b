"""Which parts of a unit Muon turns, as matrices: by the names and shapes in a run's specification, which all members know.

The matrices of a block, except embeddings and output matrices; one that holds query, key and value below one another is three.
Of a matrix whose rows lie in several units each unit turns the rows that it has. Everything else is AdamW's.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.sharding.plan import Unit

_IN_BLOCK = re.compile(r"(^|\.)\d+\.")
_APART = re.compile(r"emb|head(\.|$)|(^|\.)(output|unembed|wte|wpe)(\.|$)")
_FUSED = re.compile(r"(^|\.)(qkv|in_proj_weight)(\.|$)")


class Matrix(msgspec.Struct, frozen=True):
    """Rows of a parameter, where they lie in the flat tensor of their unit."""

    start: int
    rows: int
    columns: int

    @property
    def end(self) -> int:
        return self.start + self.rows * self.columns


def matrices_of(unit: Unit, params: Sequence[ParamSpec]) -> tuple[Matrix, ...]:
    """Those of a unit, in order. `params`: the parameters of the run."""
    found: list[Matrix] = []
    at = 0
    for piece in unit.pieces:
        param = params[piece.param]
        if is_matrix(param):
            rows, columns = param.shape
            first, last = piece.start // columns, piece.end // columns
            cuts = [rows // 3, 2 * rows // 3] if _FUSED.search(param.name) and rows == 3 * columns else []
            bounds = [first, *(cut for cut in cuts if first < cut < last), last]
            found += [Matrix(at + (a - first) * columns, b - a, columns) for a, b in pairwise(bounds)]
        at += piece.numel
    return tuple(found)


def is_matrix(param: ParamSpec) -> bool:
    """Whether Muon turns it."""
    inside = _IN_BLOCK.search(param.name) is not None and _APART.search(param.name) is None
    return inside and len(param.shape) == 2 and min(param.shape) > 1
