"""Each thing has a name of its own: no two classes of the package share one."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Classes that still share a name; the list only shrinks. `Run` stays: legion.Run and legion.aio.Run are one thing to a user. So
# does `LegionCallback`: that of a user's training library, of which there is one.
SHARED = {"Archive", "Contribution", "Exchange", "LegionCallback", "Liveness", "Messenger", "Run"}


def trees() -> dict[str, ast.Module]:
    """The syntax of every module, by its dotted name."""
    found = {}
    for path in sorted((ROOT / "legion_p2p").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def shared_names() -> dict[str, list[str]]:
    """Names of more than one class, and the modules of these."""
    where: dict[str, list[str]] = defaultdict(list)
    for module, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                where[node.name].append(module)
    return {name: modules for name, modules in where.items() if len(modules) > 1}


def test_no_two_classes_share_a_name() -> None:
    assert {name: modules for name, modules in shared_names().items() if name not in SHARED} == {}
