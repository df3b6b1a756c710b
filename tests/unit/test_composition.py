"""No class of the package inherits from another one of it, but from exceptions, structs, protocols, and torch's bases."""

import ast

from tests.package_trees import trees

INHERITABLE = {"BaseException", "Exception", "Protocol", "Struct", "Module", "Optimizer"}


def bases() -> dict[str, list[str]]:
    """By the name of each class of the package: what it inherits from, without type arguments."""
    found: dict[str, list[str]] = {}
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                named = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
                found[node.name] = [ast.unparse(base).rpartition(".")[2] for base in named]
    return found


def roots(name: str, of: dict[str, list[str]], seen: frozenset[str] = frozenset()) -> set[str]:
    """What a class comes from in the end, outside of the package."""
    if name in seen or name not in of:
        return {name}
    return {root for base in of[name] for root in roots(base, of, seen | {name})}


def heirs_of_our_own(of: dict[str, list[str]]) -> set[str]:
    """Classes that inherit from one of the package that is not there to be inherited from."""
    return {
        name for name, named in of.items() for base in named if base in of and base != name and not roots(base, of) & INHERITABLE
    }


def test_no_class_inherits_from_another_one_of_ours() -> None:
    assert heirs_of_our_own(bases()) == set()


def test_one_that_did_would_be_found() -> None:
    of = {"Service": [], "ShardService": ["Service"], "OurError": ["Exception"], "QuotaError": ["OurError"], "Run": ["Run"]}

    assert heirs_of_our_own(of) == {"ShardService"}
