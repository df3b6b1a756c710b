"""The reference of the scenario format, from its structs: `legion-sim fields` prints it, and docs/simulate.md contains it."""

from collections.abc import Iterator
from typing import Any

import msgspec

from legion_p2p.config.fields import allowed_text, docs_of, hints_of
from legion_p2p.scenarios.scenario import Fault, Joins, PeerGroup, Scenario, SimTask, Stays

TABLES: tuple[tuple[str, type[msgspec.Struct]], ...] = (
    ("the file", Scenario), ("[task]", SimTask), ("[[peers]]", PeerGroup), ("joins", Joins), ("stays", Stays),
    ("[[faults]]", Fault),
)  # fmt: skip


def reference_lines() -> Iterator[str]:
    """The tables as Markdown."""
    for title, kind in TABLES:
        yield f"### {title}"
        yield ""
        yield " ".join((kind.__doc__ or "").split())
        yield ""
        yield "| field | allowed | default | what it is |"
        yield "|---|---|---|---|"
        docs, hints = docs_of(kind), hints_of(kind)
        for field in msgspec.structs.fields(kind):
            said = " ".join(docs[field.name].split()).replace("|", "\\|")
            yield f"| `{field.name}` | {_allowed(hints[field.name])} | {_default(field)} | {said} |"
        yield ""


def _allowed(hint: Any) -> str:
    named = {row: title for title, row in TABLES}
    inside = (
        hint if isinstance(hint, type) else next((arg for arg in getattr(hint, "__args__", ()) if isinstance(arg, type)), None)
    )
    if inside in named:
        return f"a table: see {named[inside]}" if isinstance(hint, type) else f"tables: see {named[inside]}"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return "a table: see legion-peer --help, Averaging"
    return allowed_text(hint).replace("|", "\\|")


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    default = field.default
    if isinstance(default, msgspec.Struct) or default in ("", (), None):
        return ""
    return f"{str(default).lower() if isinstance(default, bool) else default}"
