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
    version = chain.version + 1
    header = UpdateHeader("run", 0, version, chain.digest, digest_of(version), owner, "fp32", included, (), 1, 1)
    chain.applied(header, Update(encode(header), b"s" * 64, b"x"))
    return header


def mark(version: int, branch: str = "") -> Mark:
    return mark_of(version, digest_of(version, branch))
