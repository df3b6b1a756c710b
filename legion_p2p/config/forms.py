"""Forms of values that people write: what is allowed, in words, and how it is read."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from legion_p2p.core.addresses import parse_addresses, split_address
from legion_p2p.errors import UsageError

MAX_SHOWN_CHARS = 60  # of a value in a message
MAX_SHOWN_ITEMS = 8
_YES_OR_NO = "yes or no"
_SWITCHES = {"yes": True, "true": True, "no": False, "false": False}
NONE = "none"
"""How a person says in a flag or a file that there is no such thing, where a field has another default."""


@dataclass(frozen=True)
class Form:
    """Stands beside a field's type in `Annotated`: what is allowed, in words, and how the value is read."""

    allowed: str
    read: Callable[[Any], Any] | None = None
    """Makes the value of what was given; raises UsageError. None: msgspec converts, by the type."""


def in_short(given: Any) -> str:
    """A value as a message shows it: short, and never the contents of a tensor."""
    if isinstance(given, list | tuple | dict) and len(given) > MAX_SHOWN_ITEMS:
        return f"a {type(given).__name__} of {len(given)} items"
    if given is None or isinstance(given, str | bytes | bool | int | float | list | tuple | dict):
        try:
            text = repr(given)
        except Exception:  # of an object inside it
            text = f"a {type(given).__name__}"
        text = " ".join(text.split())
        return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."
    kind = given if isinstance(given, type) else type(given)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"the class {name}" if isinstance(given, type) else f"an object of type {name}"


def refusal(given: Any, allowed: str) -> UsageError:
    """The error of a value that is not allowed."""
    return UsageError(f"{in_short(given)} is not allowed: give {allowed}")


def text_of(given: Any, allowed: str) -> str:
    """A text; a path object is one, and empty or "none" says that there is none. Raises: UsageError."""
    if isinstance(given, str):
        return "" if given == NONE else given
    if isinstance(given, os.PathLike) and isinstance(path := os.fspath(given), str):
        return path
    raise refusal(given, allowed)


def checked_text(allowed: str, parse: Callable[[str], object]) -> Form:
    """The form of a text that must be something `parse` understands, or empty; the text itself is kept."""

    def read(given: Any) -> str:
        if not isinstance(given, str):
            raise refusal(given, allowed)
        if given == NONE:
            return ""
        if given:
            parse(given)
        return given

    return Form(allowed, read)


def _switch(given: Any) -> bool:
    if isinstance(given, str) and given.lower() in _SWITCHES:
        return _SWITCHES[given.lower()]
    if isinstance(given, bool):
        return given
    raise refusal(given, _YES_OR_NO)


def path_text(allowed: str) -> Form:
    """The form of a path: a text or a path object."""
    return Form(allowed, lambda given: text_of(given, allowed))


def _words(given: Any, allowed: str) -> list[str]:
    """A text or several."""
    words = None
    if isinstance(given, str):
        words = [given]
    elif isinstance(given, Iterable) and not isinstance(given, bytes | Mapping):
        words = list(given)
    if words is None or not all(isinstance(word, str) for word in words):
        raise refusal(given, allowed)
    return words


_ADDRESSES = "addresses such as /ip4/203.0.113.7/tcp/4710/p2p/12D3KooW..., or @FILE"
_LISTEN = "addresses such as /ip4/0.0.0.0/tcp/4710"


def peer_addresses(given: Any) -> tuple[str, ...]:
    """Addresses that name a peer; `@FILE` is expanded, and "none" alone says that there is nobody. Raises: UsageError."""
    words = _words(given, _ADDRESSES)
    return () if words == [NONE] else parse_addresses(words)


def listen_addresses(given: Any) -> tuple[str, ...]:
    """Addresses to listen on or to announce, which need not name a peer. Raises: UsageError."""
    found: dict[str, None] = {}
    for text in _words(given, _LISTEN):
        for word in text.replace(",", " ").split():
            split_address(word)
            found.setdefault(word)
    return tuple(found)


Switch = Annotated[bool, Form(_YES_OR_NO, _switch)]
"""Something that is on or off, and is on by default."""
PeerAddresses = Annotated[tuple[str, ...], Form(_ADDRESSES, peer_addresses)]
ListenAddresses = Annotated[tuple[str, ...], Form(_LISTEN, listen_addresses)]
