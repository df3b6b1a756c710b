"""The public face, frozen: what a user may call, with which parameters, as tests/unit/public_api.txt lists it.

python tests/unit/test_public_api.py      writes the list again, after a change that is meant
"""

import ast
import enum
import importlib
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import legion_p2p as legion

LISTED = Path(__file__).with_name("public_api.txt")
MAX_PARAMETERS = 8
RECORDS = ("legion.Status.", "legion.MemberStatus.", "legion.RunSpec.")
MADE_BY_FUNCTIONS = ("legion.Run", "legion.aio.Run")  # their constructors are no user's
MAX_OPTIMIZER_PARAMETERS = 6
FROM_TORCH = "torch.optim"  # what an optimizer inherits is torch's to describe


def public() -> dict[str, Any]:
    """Everything that may be imported, by its full name."""
    found = {f"legion.{name}": getattr(legion, name) for name in legion.__all__ if not name.startswith("_")}
    for module in ("aio", "errors"):
        members = vars(found.pop(f"legion.{module}"))
        names = members.get("__all__") or [name for name, value in members.items() if inspect.isclass(value) and name != "Any"]
        found |= {f"legion.{module}.{name}": members[name] for name in names if members[name].__module__.startswith("legion_p2p")}
    return found


def callables(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    """The functions in a public thing: itself, or a class's constructor, methods and properties."""
    if not inspect.isclass(thing):
        yield name, thing
        return
    if issubclass(thing, msgspec.Struct | enum.Enum):
        return
    for member, value in sorted(vars(thing).items()):
        value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if (member == "__init__" and name not in MADE_BY_FUNCTIONS) or not member.startswith("_"):
            if isinstance(value, property):
                yield f"{name}.{member} (property)", value.fget
            elif inspect.isfunction(value):
                yield f"{name}.{member}", value


def lines() -> list[str]:
    told = []
    for name, thing in sorted(public().items()):
        indent = ""
        if inspect.isclass(thing):
            indent = "    "
            told.append(f"class {name}({', '.join(base.__name__ for base in thing.__bases__)})")
            if issubclass(thing, msgspec.Struct):
                told += [f"    {name}.{field}" for field in fields_of(thing)]
        told += [f"{indent}{called}{signature_text(function)}" for called, function in callables(name, thing)]
    return told


def fields_of(kind: type[msgspec.Struct]) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        default = field.default if field.default is not msgspec.NODEFAULT else None
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        text = f"{type(default).__name__}()" if isinstance(default, msgspec.Struct) else repr(default)
        yield f"{field.name}: {type_text(hints[field.name])}" + ("" if field.required else f" = {text}")


def signature_text(function: Any) -> str:
    return str(inspect.signature(function)).replace("legion_p2p.", "").replace("collections.abc.", "").replace("typing.", "")


def type_text(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    return text.replace("typing.", "").replace("collections.abc.", "")


def test_the_public_face_is_what_was_agreed_on() -> None:
    now, agreed = lines(), LISTED.read_text(encoding="utf-8").splitlines()

    assert [line for line in agreed if line not in now] == []
    assert [line for line in now if line not in agreed and not may_grow(line)] == []


def may_grow(line: str) -> bool:
    """A field with a default in a record that only this package makes: whoever reads such records does not notice."""
    return line.strip().startswith(RECORDS) and " = " in line


@pytest.mark.parametrize("name", sorted(public()))
def test_everything_public_is_documented_and_typed(name: str) -> None:
    thing = public()[name]

    assert inspect.getdoc(thing)
    for called, function in callables(name, thing):
        assert called.endswith("__init__") or inspect.getdoc(function) or FROM_TORCH in str(getattr(thing, "__mro__", "")), called
        signature = inspect.signature(function)
        untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")]
        assert not untyped, called
        assert signature.return_annotation is not signature.empty, called


@pytest.mark.parametrize("name", sorted(public()))
def test_no_function_has_more_parameters_than_one_can_remember(name: str) -> None:
    for called, function in callables(name, public()[name]):
        n = len([p for p in inspect.signature(function).parameters if p not in ("self", "cls")])
        assert n <= (MAX_OPTIMIZER_PARAMETERS if called == "legion.Optimizer.__init__" else MAX_PARAMETERS), called


def test_a_type_checker_sees_every_public_name_where_it_is_loaded_from() -> None:
    tree = ast.parse(Path(legion.__file__).read_text(encoding="utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names}

    assert seen == legion._WHERE | dict.fromkeys(legion._MODULES, "legion_p2p")
    for name, module in legion._WHERE.items():
        assert getattr(importlib.import_module(module), name) is getattr(legion, name)


if __name__ == "__main__":
    LISTED.write_text("\n".join(lines()) + "\n", encoding="utf-8")
