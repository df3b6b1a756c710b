"""Chains of updates for tests."""

import hashlib

from legion_p2p.core.announcement import Mark, mark_of
from legion_p2p.core.chain import Chain
from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import Inclusion, Update, UpdateHeader, encode

OWNER = PeerId("owner")


def digest_of(version: int, branch: str = "") -> bytes:
    return hashlib.sha256(f"{branch}{version}".encode()).digest()


def chain_at(version: int, included: tuple[Inclusion, ...] = (), owner: PeerId | None = None) -> Chain:
    return Chain(version, digest_of(version), 1 << 20, included, owner)


def advance(chain: Chain, owner: PeerId = OWNER, included: tuple[Inclusion, ...] = ()) -> UpdateHeader:
    """Apply the next update of the one honest branch."""
    header = next_after(chain, owner=owner, included=included)
    chain.applied(header, update_of(header))
    return header


def next_after(
    chain: Chain, branch: str = "", owner: PeerId = OWNER, included: tuple[Inclusion, ...] = (), salt: bytes = b""
) -> UpdateHeader:
    """The next update of a branch."""
    version = chain.version + 1
    made = digest_of(version, branch)
    return UpdateHeader("run", 0, version, chain.digest, made, owner, "fp32", included, (), 1, 1, salt=salt)


def update_of(header: UpdateHeader, payload: bytes = b"x") -> Update:
    return Update(encode(header), b"s" * 64, payload)


def mark(version: int, branch: str = "") -> Mark:
    return mark_of(version, digest_of(version, branch))
