"""Every event that the code emits is documented with its fields, and nothing else is."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import msgspec
import pytest

from legion_p2p.core.adapt import Choice
from legion_p2p.observe.catalogue import EVENTS, FIELDS
from legion_p2p.train.outcome import Outcome
from tests.package_trees import trees

SPREAD = {  # calls that pass some of their fields with **: what these are
    "link.adapted": {field.name for field in msgspec.structs.fields(Choice)},
    "step": {"tokens_per_s", "step_s"},
    "peer.left": {field.name for field in msgspec.structs.fields(Outcome)},
}

WAYS = ("emit", "emit_private", "error")


def named_constants(found: dict[Path, ast.Module]) -> dict[str, str]:
    """NAME = "text" anywhere in the package."""
    return {
        node.targets[0].id: node.value.value
        for tree in found.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


@cache
def emitted() -> dict[str, tuple[set[str], bool]]:
    """Of each event in the code: its fields, and whether it is sent as an error."""
    found = trees()
    constants = named_constants(found)
    fields: dict[str, set[str]] = defaultdict(set)
    errors: set[str] = set()
    for path, tree in found.items():
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in WAYS):
                continue
            if not ast.unparse(call.func.value).split(".")[-1].endswith("events"):
                continue
            first = call.args[0]
            name = first.value if isinstance(first, ast.Constant) else constants.get(ast.unparse(first))
            assert isinstance(name, str), f"{path}:{call.lineno}: the event's name must be a text or a constant of a module"
            fields[name] |= {keyword.arg for keyword in call.keywords if keyword.arg}
            if any(keyword.arg is None for keyword in call.keywords):
                fields[name] |= SPREAD[name]
            if call.func.attr == "error":
                errors.add(name)
    return {name: (names, name in errors) for name, names in fields.items()}


def test_every_event_that_the_code_emits_is_documented_and_every_documented_one_is_emitted() -> None:
    assert {kind.name for kind in EVENTS} == set(emitted())


def test_the_documented_fields_are_those_that_are_emitted() -> None:
    code = emitted()

    assert {kind.name: (set(kind.fields), kind.is_error) for kind in EVENTS} == code


def test_every_field_has_a_meaning_and_every_meaning_a_field() -> None:
    used = {field for kind in EVENTS for field in kind.fields}

    assert used <= set(FIELDS)
    assert set(FIELDS) - used <= {"text"}


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.name)
def test_a_meaning_is_a_sentence(kind) -> None:
    assert kind.meaning[0].isupper() and kind.meaning.endswith(".")


def test_no_event_is_documented_twice() -> None:
    names = [kind.name for kind in EVENTS]

    assert len(names) == len(set(names))
