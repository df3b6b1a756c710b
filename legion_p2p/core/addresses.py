"""Multiaddrs as people write them: `/ip4/203.0.113.7/tcp/4710/p2p/12D3KooW...`.

Only the forms that a peer can dial are allowed: ip4, ip6, dns, dns4 or dns6, then tcp, then (for a peer's address) p2p. Checked
by hand, so that `--help` and a typing mistake do not cost the second that importing libp2p takes.

A bootstrap node may also be given as `/dnsaddr/bootstrap.example.org/p2p/12D3KooW...`: text records of that name say where it is
(core/dnsaddr.py).

A peer that nobody can dial announces circuits besides: `/ip4/203.0.113.7/tcp/4710/p2p/RELAY/p2p-circuit`, the address of a relay
that has a connection to it.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from legion_p2p.core.identity import PeerId, public_key_of
from legion_p2p.errors import DecodeError, StoreError, UsageError
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
from legion_p2p.files.reading import read_text

FORM = "/ip4/HOST/tcp/PORT/p2p/PEER_ID"
DNSADDR = "/dnsaddr/"
DNSADDR_FORM = f"{DNSADDR}NAME/p2p/PEER_ID"
CIRCUIT = "/p2p-circuit"
CIRCUIT_FORM = f"{FORM}{CIRCUIT}"
MAX_ADDRESS_CHARS = 512  # a DNS name has at most 253, a peer id 52; much more than both is not an address
MAX_ADDRESSES = 1000  # in one list; a bootstrap file of more is a mistake
MAX_INCLUDE_DEPTH = 4  # an @file may name further files, but not itself without end
MAX_INCLUDED_FILES = 100  # nor many that each name many
MAX_FILE_BYTES = 1 << 20  # of an address file: more than MAX_ADDRESSES addresses with a comment each
FLAG = "--initial-peers"
ENDPOINT_FORM = "PORT, or HOST:PORT, as in 127.0.0.1:9100"

MAX_HOST_CHARS = 253

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")  # one part of a DNS name


def split_address(address: str) -> tuple[str, PeerId | None]:
    """Where to dial, and the peer that should answer: (the address without its `/p2p/` part, the peer id or None).

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


@dataclass(frozen=True)
class Circuit:
    """The way to a peer through a relay: where the relay is dialed, and the id of the relay."""

    where: str
    relay: PeerId

    def __str__(self) -> str:
        return f"{self.where}/p2p/{self.relay}{CIRCUIT}"


def is_circuit(address: str) -> bool:
    """Whether an address leads through a relay, if it is an address at all."""
    return CIRCUIT in address


def split_circuit(address: str) -> tuple[Circuit, PeerId | None]:
    """A circuit, and the peer at its end where the address names it. The relay itself is dialed directly, never by a circuit.

    Raises: UsageError.
    """
    before, mark, after = address.partition(CIRCUIT)
    if not mark or len(address) > MAX_ADDRESS_CHARS:
        raise UsageError(f"{address[:200]!r} is not a circuit; the form is {CIRCUIT_FORM}")
    where, relay = _parse_direct(before)
    _, target = split_address(f"{where}{after}")
    return Circuit(where, relay), target


def parse_peer_address(address: str) -> tuple[str, PeerId]:
    """Like `split_address`, for an address that must name its peer and a port that can be dialed; it may be a circuit, or a
    `/dnsaddr`, which has no port.

    Raises: UsageError.
    """
    if address.startswith(DNSADDR):
        return _parse_dnsaddr(address)
    if not is_circuit(address):
        return _parse_direct(address)
    circuit, target = split_circuit(address)
    if target is None:
        raise _malformed(address, "the id of the peer behind the relay is missing")
    return str(circuit), target


def _parse_dnsaddr(address: str) -> tuple[str, PeerId]:
    host, _, peer = address[:MAX_ADDRESS_CHARS].removeprefix(DNSADDR).partition("/p2p/")
    try:
        public_key_of(peer)
    except DecodeError as bad:
        raise UsageError(f"{address[:MAX_ADDRESS_CHARS]!r} cannot be used: {bad}; the form is {DNSADDR_FORM}") from bad
    _check_host(address, "dns", host)
    return f"{DNSADDR}{host}", PeerId(peer)


def _parse_direct(address: str) -> tuple[str, PeerId]:
    where, peer_id = split_address(address)
    if peer_id is None:
        raise _malformed(address, "the peer id is missing")
    if where.endswith("/tcp/0"):
        raise _malformed(address, "port 0 cannot be dialed")
    return where, peer_id


def parse_addresses(words: Iterable[str]) -> tuple[str, ...]:
    """Peers' addresses from the command line: each word an address, several separated by blanks or commas, or `@file`.

    The name of a file may contain blanks where a file of that name exists. In a file: an address or more per line; what follows
    a `#` is a comment; blank lines do not matter; `@other` includes another file, relative to the first. A line that a command of
    this project printed will do as it is: of a line with `--initial-peers`, the words after it up to the next option count.
    Duplicates are dropped, order is kept.

    Raises: UsageError, naming the file and the line.
    """
    found: dict[str, None] = {}
    files = _Files()
    for word in words:
        for address in files.expand(word, source="", folder=Path(), depth=0):
            found.setdefault(address)
            if len(found) > MAX_ADDRESSES:
                raise UsageError(f"more than {MAX_ADDRESSES} addresses")
    return tuple(found)


class _Files:
    """The address files of one command line."""

    def __init__(self) -> None:
        self._n_read = 0

    def expand(self, text: str, source: str, folder: Path, depth: int) -> Iterator[str]:
        whole = text.strip()
        if whole.startswith("@") and _is_there(folder, whole[1:]):
            yield from self._read(whole[1:], source, folder, depth + 1)
            return
        for word in text.replace(",", " ").split():
            if word.startswith("@"):
                yield from self._read(word[1:], source, folder, depth + 1)
                continue
            try:
                parse_peer_address(word)
            except UsageError as bad:
                raise UsageError(f"{source}{bad}") from bad
            yield word

    def _read(self, name: str, source: str, folder: Path, depth: int) -> Iterator[str]:
        self._n_read += 1
        if depth > MAX_INCLUDE_DEPTH or self._n_read > MAX_INCLUDED_FILES:
            raise UsageError(
                f"{source}@{shown(name)} includes further files more than {MAX_INCLUDE_DEPTH} deep, or more than "
                f"{MAX_INCLUDED_FILES} of them"
            )
        try:
            path = folder / user_path(name)
            lines = read_text(path, MAX_FILE_BYTES).splitlines()
        except (StoreError, UsageError) as bad:
            raise UsageError(f"{source}@{shown(name)}: {bad}") from bad
        for number, line in enumerate(lines, start=1):
            whole = line.strip()
            said = whole if whole.startswith("@") and _is_there(path.parent, whole[1:]) else line.partition("#")[0]
            yield from self.expand(_addresses_in(said), f"{shown(path)}, line {number}: ", path.parent, depth)


def _is_there(folder: Path, name: str) -> bool:
    try:
        return kind_of(folder / user_path(name)) is not FileKind.MISSING
    except (StoreError, UsageError):
        return False


def _addresses_in(line: str) -> str:
    """What a line says, without the command around it that this project's commands print."""
    _, flag, rest = line.replace(f"{FLAG}=", f"{FLAG} ").partition(FLAG)
    if not flag:
        return line
    words = []
    for word in rest.split():
        if word.startswith("--"):
            break
        words.append(word.strip("'\""))
    return " ".join(words)


class AddressScope(Enum):
    """From where an address can be dialed, if no router or firewall is in the way."""

    ANYWHERE = "others anywhere"
    NETWORK = "others in this network"
    MACHINE = "others on this machine"


def parse_endpoint(text: str) -> tuple[str, int]:
    """`PORT`, `HOST:PORT` or `[IPV6]:PORT`, the host being this machine where it is left out. Raises: UsageError."""
    host, colon, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 65536) or (colon and not host) or (":" in host and host[0] != "["):
        raise UsageError(f"{text!r}: the form is {ENDPOINT_FORM}")
    return host.strip("[]") or "127.0.0.1", int(port)


def scope_of(address: str) -> AddressScope:
    """From where a multiaddr can be dialed; of a name nobody knows, so it is taken at its word."""
    family, host = address.split("/")[1:3]
    if family.startswith("dns"):
        return AddressScope.MACHINE if host == "localhost" else AddressScope.ANYWHERE
    ip = ip_address(host)
    if ip.is_loopback:
        return AddressScope.MACHINE
    return AddressScope.ANYWHERE if ip.is_global else AddressScope.NETWORK


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
