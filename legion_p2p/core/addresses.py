"""Multiaddrs as people write them: `/ip4/203.0.113.7/tcp/4710/p2p/12D3KooW...`.

Only the forms that a peer can dial are allowed: ip4, ip6, dns, dns4 or dns6, then tcp, then (for a peer's address) p2p. Checked
by hand, so that `--help` and a typing mistake do not cost the second that importing libp2p takes.
"""

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from legion_p2p.core.identity import PeerId, public_key_of
from legion_p2p.errors import DecodeError, UsageError

FORM = "/ip4/HOST/tcp/PORT/p2p/PEER_ID"
MAX_ADDRESS_CHARS = 512  # a DNS name has at most 253, a peer id 52; much more than both is not an address
MAX_ADDRESSES = 1000  # in one list; a bootstrap file of more is a mistake
MAX_INCLUDE_DEPTH = 4  # an @file may name further files, but not itself for ever

MAX_HOST_CHARS = 253

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")  # one part of a DNS name


def split_address(address: str) -> tuple[str, PeerId | None]:
    """Where to dial and who should answer: (the address without its `/p2p/` part, the peer id or None).

    Raises: UsageError, naming the address, what is wrong with it, and the right form.
    """
    if len(address) > MAX_ADDRESS_CHARS:
        raise UsageError(f"address of {len(address)} characters, at most {MAX_ADDRESS_CHARS}: {address[:60]}...")
    parts = address.split("/")
    if parts[0] != "" or len(parts) < 5:
        raise _malformed(address, "it is not a multiaddr")
    family, host, protocol, port = parts[1:5]
    _check_host(address, family, host)
    if protocol != "tcp":
        raise _malformed(address, f"{protocol!r} stands where 'tcp' must be")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise _malformed(address, f"{port!r} is not a port")
    rest = parts[5:]
    where = "/".join(parts[:5])
    if not rest:
        return where, None
    if len(rest) != 2 or rest[0] != "p2p":
        raise _malformed(address, f"{'/' + '/'.join(rest)!r} stands where '/p2p/PEER_ID' must be")
    try:
        public_key_of(rest[1])
    except DecodeError as bad:
        raise _malformed(address, str(bad)) from bad
    return where, PeerId(rest[1])


def parse_peer_address(address: str) -> tuple[str, PeerId]:
    """Like `split_address`, for an address that must name its peer and a port that can be dialed.

    Raises: UsageError.
    """
    where, peer_id = split_address(address)
    if peer_id is None:
        raise _malformed(address, "the peer id is missing")
    if where.endswith("/tcp/0"):
        raise _malformed(address, "port 0 cannot be dialed")
    return where, peer_id


def parse_addresses(words: Iterable[str]) -> tuple[str, ...]:
    """Peers' addresses from the command line: each word an address, several separated by blanks or commas, or `@file`.

    In a file: an address or more per line; what follows a `#` is a comment; blank lines do not matter; `@other` includes another
    file, relative to the first. Duplicates are dropped, order is kept.

    Raises: UsageError, naming the file and the line.
    """
    found: dict[str, None] = {}
    for word in words:
        for address in _expand(word, source="", folder="", depth=0):
            found.setdefault(address)
            if len(found) > MAX_ADDRESSES:
                raise UsageError(f"more than {MAX_ADDRESSES} addresses")
    return tuple(found)


def _expand(text: str, source: str, folder: str, depth: int) -> Iterable[str]:
    for word in text.replace(",", " ").split():
        if word.startswith("@"):
            yield from _read(word[1:], source, folder, depth + 1)
            continue
        try:
            parse_peer_address(word)
        except UsageError as bad:
            raise UsageError(f"{source}{bad}") from bad
        yield word


def _read(name: str, source: str, folder: str, depth: int) -> Iterable[str]:
    path = name if name.startswith("/") or not folder else f"{folder}/{name}"
    if depth > MAX_INCLUDE_DEPTH:
        raise UsageError(f"{source}@{name} includes further files more than {MAX_INCLUDE_DEPTH} deep")
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as bad:
        reason = bad.strerror if isinstance(bad, OSError) else "it is not text"
        raise UsageError(f"{source}cannot read the address file {path}: {reason}") from bad
    inner = path.rpartition("/")[0]
    for number, line in enumerate(lines, start=1):
        yield from _expand(line.partition("#")[0], f"{path}, line {number}: ", inner, depth)


def _check_host(address: str, family: str, host: str) -> None:
    try:
        if family == "ip4":
            IPv4Address(host)
        elif family == "ip6":
            IPv6Address(host)
        elif family in ("dns", "dns4", "dns6"):
            labels = host.removesuffix(".").split(".")
            if len(host) > MAX_HOST_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
                raise ValueError
        else:
            raise _malformed(address, f"{family!r} is none of ip4, ip6, dns, dns4, dns6")
    except ValueError as bad:
        raise _malformed(address, f"{host!r} is not a host for {family!r}") from bad


def _malformed(address: str, why: str) -> UsageError:
    return UsageError(f"{address!r} cannot be used: {why}; the form is {FORM}")
