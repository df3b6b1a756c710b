"""The syntax of every module of the package, read once in each process of the tests: parsing it takes a second."""

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "legion_p2p"


@cache
def trees() -> dict[Path, ast.Module]:
    """By the file. Nobody may change what is in there."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
