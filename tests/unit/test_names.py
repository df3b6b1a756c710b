"""Each thing has a name of its own: no two classes of the package share one."""

import ast
from collections import defaultdict

from tests.package_trees import PACKAGE, trees

# Classes that still share a name; the list only shrinks. `Run` stays: legion.Run and legion.aio.Run are one thing to a user. So
# does `LegionCallback`: that of a user's training library, of which there is one.
SHARED = {"Archive", "Contribution", "Exchange", "LegionCallback", "Liveness", "Messenger", "Run"}


def shared_names() -> dict[str, list[str]]:
    """Names of more than one class, and the modules of these."""
    where: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees().items():
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                where[node.name].append(module)
    return {name: modules for name, modules in where.items() if len(modules) > 1}


def test_no_two_classes_share_a_name() -> None:
    assert {name: modules for name, modules in shared_names().items() if name not in SHARED} == {}
