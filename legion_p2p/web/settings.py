"""Settings as a page shows them: names and values, without secrets."""

from collections.abc import Iterator
from typing import Any

import msgspec

from legion_p2p.observe import human

SECRET = frozenset({"token"})
MAX_ROWS = 200
MAX_VALUE_CHARS = 160


def setting_rows(prefix: str, settings: msgspec.Struct) -> tuple[tuple[str, str], ...]:
    """Every field that is a text, a number, a switch, or some texts, with those of structs inside it."""
    rows = []
    for row in _rows(prefix, settings):
        rows.append(row)
        if len(rows) == MAX_ROWS:
            break
    return tuple(rows)


def _rows(prefix: str, settings: msgspec.Struct) -> Iterator[tuple[str, str]]:
    for field in msgspec.structs.fields(settings):
        value: Any = getattr(settings, field.name)
        name = f"{prefix}.{field.name}" if prefix else field.name
        if field.name in SECRET:
            yield name, "set" if value else "none"
        elif isinstance(value, msgspec.Struct):
            yield from _rows(name, value)
        elif isinstance(value, str | bool | int | float) or (
            isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        ):
            yield name, human.clean(_text(value), MAX_VALUE_CHARS)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) or "none"
