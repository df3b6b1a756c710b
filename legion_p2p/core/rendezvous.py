"""Which peer owns which shard: weighted rendezvous hashing.

Each pair of shard and peer has a number u in (0, 1) that everybody can compute; the peer with the highest score -weight / ln(u)
owns the shard, the next one stands by. Nobody is asked, the same list gives the same answer everywhere, and one peer that joins
or leaves moves only its own share (Thaler and Ravishankar 1998; the weights: Schindelhauer and Schomaker 2005).
"""

import hashlib
import math
from array import array
from collections.abc import Iterable, Mapping
from functools import lru_cache

import msgspec

from legion_p2p.core.identity import PeerId

_SCALE = 1.0 / (1 << 52)  # one bit less than a float holds, so that the largest number and a half is exact, and below 1


MAX_REMEMBERED = 512  # peers, each in one region, whose hashes are kept: 8 bytes a shard
MAX_SALTED = 1 << 17  # pairs of shard and peer of which the hash is kept where shards have salts, of 100 bytes each
Salts = tuple[bytes, ...]
"""Of each shard: see core.seniority. Empty: there are none."""


class Ownership(msgspec.Struct, frozen=True):
    """The owner of a shard and its standby; None if there is none."""

    owner: PeerId | None
    standby: PeerId | None


def unit_hash(*parts: str) -> float:
    """A number in (0, 1) that depends on `parts` alone."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return ((int.from_bytes(digest[:8], "big") >> 12) + 0.5) * _SCALE


def score(key: str, peer: str, weight: float) -> float:
    """How strongly `peer` claims `key`; 0 for a weight of 0."""
    return -weight / math.log(unit_hash(key, peer)) if weight > 0 else 0.0


def log_hashes(run_id: str, region: str, n_shards: int, peer: PeerId, salts: Salts = ()) -> "array[float]":
    """ln(u) of a peer for each shard: what its claims have in common whatever it weighs. Hashing is what takes time."""
    if not any(salts):
        return _plain_hashes(run_id, region, n_shards, peer)
    return array("d", [_log_hash(salted_key(run_id, region, shard, salts[shard]), peer) for shard in range(n_shards)])


@lru_cache(maxsize=MAX_REMEMBERED)
def _plain_hashes(run_id: str, region: str, n_shards: int, peer: PeerId) -> "array[float]":
    return array("d", [math.log(unit_hash(shard_key(run_id, region, shard), peer)) for shard in range(n_shards)])


@lru_cache(maxsize=MAX_SALTED)
def _log_hash(key: str, peer: PeerId) -> float:
    return math.log(unit_hash(key, peer))


def ranking(key: str, weights: Mapping[PeerId, float]) -> list[PeerId]:
    """All peers of positive weight, the one with the strongest claim to `key` first."""
    scored = [(score(key, peer, weight), peer) for peer, weight in weights.items() if weight > 0]
    return [peer for _, peer in sorted(scored, reverse=True)]


def shard_key(run_id: str, region: str, shard: int) -> str:
    """The key of a shard: for rendezvous, and under which its owner is a provider in the DHT."""
    return f"legion/shard/{run_id}/{region}/{shard}"


def salted_key(run_id: str, region: str, shard: int, salt: bytes) -> str:
    """The key of a shard for rendezvous, with its salt."""
    key = shard_key(run_id, region, shard)
    return f"{key}/{salt.hex()}" if salt else key


def ownership(run_id: str, region: str, shard: int, weights: Mapping[PeerId, float]) -> Ownership:
    """Owner and standby of one shard among the members of one region."""
    ranked = ranking(shard_key(run_id, region, shard), weights)
    return Ownership(ranked[0] if ranked else None, ranked[1] if len(ranked) > 1 else None)


def owned_by(peer: PeerId, run_id: str, region: str, shards: Iterable[int], weights: Mapping[PeerId, float]) -> list[int]:
    """The shards that `peer` owns."""
    return [shard for shard in shards if ownership(run_id, region, shard, weights).owner == peer]
