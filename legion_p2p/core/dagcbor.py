"""DAG-CBOR: the form in which IPFS writes nodes that link to other blocks (ipld.io/specs/codecs/dag-cbor).

CBOR with one way to write everything: keys are text, sorted by length and then by bytes, integers fit into 64 bits, floats are
64-bit and finite, and the only tag is 42, a link. A value is None, bool, int, float, str, bytes, `Cid`, a list or a dict of them.
"""

import math
from collections.abc import Iterator
from typing import Any

import cbor2

from legion_p2p.core.cids import Cid
from legion_p2p.errors import DecodeError, UsageError

LINK_TAG = 42
MAX_DEPTH = 32  # of nesting in what is read; manifests need 4


def encode(value: Any) -> bytes:
    """Raises: UsageError, if DAG-CBOR cannot say it."""
    try:
        return cbor2.dumps(_prepared(value))
    except (cbor2.CBOREncodeError, UnicodeEncodeError) as bad:
        raise UsageError(f"DAG-CBOR cannot say it: {bad}") from bad


def decode(data: bytes | memoryview) -> Any:
    """The value that `data` says; only its one canonical form is read.

    Raises: DecodeError.
    """
    data = bytes(data)
    try:
        value = cbor2.loads(
            data, tag_hook=_link, semantic_decoders=_ONLY_LINKS, max_depth=MAX_DEPTH,
            allow_indefinite=False, allow_duplicate_keys=False, strict_hashable_types=True,
        )  # fmt: skip
        canonical = encode(value)
    except (cbor2.CBORError, UsageError, ValueError, TypeError, OverflowError, RecursionError) as bad:
        raise DecodeError(f"DAG-CBOR of {len(data)} bytes: {bad}") from bad
    if canonical != data:
        raise DecodeError(f"DAG-CBOR of {len(data)} bytes that is not in canonical form, or has something after its end")
    return value


def links(value: Any) -> Iterator[Cid]:
    """All links in a value, in order of writing."""
    if isinstance(value, Cid):
        yield value
    elif isinstance(value, dict):
        for key in sorted(value, key=_order):
            yield from links(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from links(item)


def _prepared(value: Any) -> Any:
    """`value` in the order and the types in which cbor2 writes it canonically."""
    if value is None or isinstance(value, bool | str | bytes):
        return value
    if isinstance(value, int):
        if not -(1 << 64) <= value < 1 << 64:
            raise UsageError(f"an integer of {value.bit_length()} bits, at most 64")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"the number {value}, must be finite")
        return value
    if isinstance(value, Cid):
        return cbor2.CBORTag(LINK_TAG, b"\x00" + value.raw)
    if isinstance(value, list | tuple):
        return [_prepared(item) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise UsageError("a map with keys other than text")
        return {key: _prepared(value[key]) for key in sorted(value, key=_order)}
    raise UsageError(f"a {type(value).__name__}")


def _order(key: str) -> tuple[int, bytes]:
    raw = key.encode()
    return len(raw), raw


class _OnlyLinks(dict[int, Any]):
    """The meaning of every tag but that of links: an error. cbor2 knows dozens, some of them dangerous in a stranger's hands
    (references that unfold without end, powers, regular expressions).
    """

    def __missing__(self, tag: int) -> Any:
        if tag == LINK_TAG:
            raise KeyError(tag)  # left to `_link`
        return _refuse


_ONLY_LINKS = _OnlyLinks()


def _refuse(*_: Any) -> Any:
    raise DecodeError(f"only the tag {LINK_TAG}, a link, is known")


def _link(tag: cbor2.CBORTag, _immutable: bool = False) -> Cid:
    if not isinstance(tag.value, bytes) or not tag.value.startswith(b"\x00"):
        raise DecodeError("a link that is not the bytes of a CID")
    return Cid.from_bytes(tag.value[1:])
