"""What of a run goes to the disk, and when. Decisions only: the files are in `store`; which of them stay: core/retention.py."""

import msgspec

from legion_p2p.core.cids import Cid
from legion_p2p.core.manifest import MAX_LOG, Manifest
from legion_p2p.core.run import RunSpec, SignedSpec
from legion_p2p.errors import UsageError

LOG_PER_BASE = 4  # in weights as fp32
MIN_JOURNAL_BYTES = 64 << 20  # less is not worth a checkpoint of its own


class StoredRun(msgspec.Struct, frozen=True):
    """A checkpoint of a run on this disk, its specification checked."""

    cid: Cid
    manifest: Manifest
    signed: SignedSpec
    spec: RunSpec


class CheckpointConfig(msgspec.Struct, frozen=True):
    """When a peer with a store writes what. Updates are written as they come, whatever is set here."""

    every_s: float = 60.0
    """Seconds between two manifests. Longer: more of the log is found in the journal only, by this peer alone."""

    base_every: int = 100
    """After at most this many versions a shard is stored whole: at the same versions by all peers, so that they store the same
    blocks. More: smaller checkpoints, and a longer log to apply when resuming.
    """

    gather_s: float = 15.0
    """How long a peer that resumes waits for the members of the time when it stopped. Longer: more certain to find the peer with
    the newest state, slower if one does not come back.
    """

    def __post_init__(self) -> None:
        if not 1 <= self.base_every <= MAX_LOG // 2:
            raise UsageError(f"base_every = {self.base_every}, must be 1 to {MAX_LOG // 2}")
        if not (self.every_s > 0 and self.gather_s >= 0):
            raise UsageError(f"every_s = {self.every_s}, gather_s = {self.gather_s}: must be positive")


def versions_between_bases(bits_per_element: float, most: int) -> int:
    """How many updates of this many bits an element to store on top of a base, before the next: a longer log takes more of the
    disk than it spares, and a base takes the CPU to compress."""
    return max(1, min(most, round(LOG_PER_BASE * 32 / bits_per_element)))


def most_journal_bytes(n_elements: int) -> int:
    """How much a journal may have before a checkpoint has to be made of it: whole shards in it add up quickly."""
    return max(MIN_JOURNAL_BYTES, LOG_PER_BASE * 4 * n_elements)


def is_base_version(shard: int, n_shards: int, version: int, base_every: int) -> bool:
    """Whether all peers store this version of the shard whole: the shards take turns, so that the disk has an even load."""
    return version % base_every == shard * base_every // n_shards
