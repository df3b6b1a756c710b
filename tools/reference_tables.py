"""Generated pages that are tables: the configuration, and the messages of the wire."""

import typing
from typing import Any

import msgspec

CONFIGURATION = """# Configuration

Everything that a user may set, in Python and as an option of `legion-peer`: one definition each, from which this page is made.
Options are also keys of the TOML file of `--config`, and `LEGION_*` variables
([options, variables and files](../commands/legion-peer.md#options-variables-and-files)).

{sections}
"""

WIRE = """# Messages of the wire

What peers say to each other: MessagePack maps over libp2p's streams or bulk lanes, each with a `type`. Every field has a bound,
which is checked before anything is used. Announcements and specifications of runs are signed besides
([what a stranger can do](../ARCHITECTURE.md#what-a-stranger-can-do)).

{sections}
"""


def configuration_page() -> str:
    from legion_p2p.cli.option_table import OPTIONS
    from legion_p2p.config.fields import docs_of

    flags = {(option.kind, option.field): option.name for option in OPTIONS}
    kinds = list(dict.fromkeys(option.kind for option in OPTIONS))
    return CONFIGURATION.format(sections="\n\n".join(_section(kind, docs_of(kind), flags) for kind in kinds))


def wire_page() -> str:
    from legion_p2p.core import wire
    from legion_p2p.core.messages.base import reply_types

    sections = []
    for kind in sorted(wire.REQUESTS, key=lambda kind: kind.__name__):
        sections.append(_message(kind) + "\n\nAnswered by:\n\n" + "\n".join(_short(reply) for reply in reply_types(kind)))
    return WIRE.format(sections="\n\n".join(sections))


def _section(kind: type[msgspec.Struct], docs: dict[str, str], flags: dict[tuple[type[msgspec.Struct], str], str]) -> str:
    rows = [
        (f"`{field.name}`", _code(flags.get((kind, field.name), "")), _code(_default(field)), _cell(docs.get(field.name, "")))
        for field in msgspec.structs.fields(kind)
    ]
    intro = (kind.__doc__ or "").partition("\n\n")[0]
    return f"## {kind.__name__}\n\n{intro}\n\n| field | option | default | |\n|---|---|---|---|\n" + "\n".join(
        f"| {' | '.join(row)} |" for row in rows
    )


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return f"{field.default_factory()!r}"
    return "" if field.required else repr(field.default)


def _message(kind: type[msgspec.Struct]) -> str:
    return f"## {kind.__name__}\n\n{_text(kind)}{_fields(kind)}"


def _short(kind: type[msgspec.Struct]) -> str:
    names = ", ".join(f"`{field.name}`" for field in msgspec.structs.fields(kind))
    return f"- **{kind.__name__}** ({names or 'no fields'}): {' '.join(_text(kind).split()) or 'it is done.'}"


def _fields(kind: type[msgspec.Struct]) -> str:
    found = msgspec.structs.fields(kind)
    if not found:
        return ""
    return "\n\n| field | type |\n|---|---|\n" + "\n".join(f"| `{field.name}` | {_code(_type(field.type))} |" for field in found)


def _type(hint: Any) -> str:
    """A type as it is written on the wire, without its bounds."""
    if typing.get_origin(hint) is typing.Annotated:
        return _type(typing.get_args(hint)[0])
    if typing.get_args(hint):
        inner = ", ".join(_type(arg) if arg is not Ellipsis else "..." for arg in typing.get_args(hint))
        return f"{getattr(typing.get_origin(hint), '__name__', str(typing.get_origin(hint)))}[{inner}]"
    return "bytes" if hint is memoryview else str(getattr(hint, "__name__", hint))


def _text(kind: type) -> str:
    doc = kind.__doc__ or ""
    return "" if doc.startswith(f"{kind.__name__}(") else "\n".join(line.strip() for line in doc.strip().splitlines())


def _code(text: str) -> str:
    return f"`{_cell(text)}`" if text else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
