"""Which checkpoints to keep, and what of a run a disk holds. Decisions only: the files are in `store`."""

import re
from collections.abc import Iterable

import msgspec

from legion_p2p.core.cids import Cid
from legion_p2p.core.manifest import MAX_LOG, Manifest
from legion_p2p.core.run import RunSpec, SignedSpec
from legion_p2p.errors import UsageError

MAX_KEPT = 1_000_000
LOG_PER_BASE = 4  # in weights as fp32
_PART = re.compile(r"(last|every)=([0-9]{1,7})")


class Keep(msgspec.Struct, frozen=True):
    """What pruning leaves."""

    last: int = 3
    """The newest so many. More: further back, and as many bases more on the disk where the run is slower than its bases."""
    every: int = 0
    """And for every so many steps of the run one, for ever; 0: none."""


def parse_keep(text: str) -> Keep:
    """Read "last=3,every=100". Raises: UsageError."""
    found = [_PART.fullmatch(part.strip()) for part in text.split(",")]
    values = {match[1]: int(match[2]) for match in found if match}
    if not all(found) or len(values) != len(found):
        raise UsageError(f"{text!r} does not say what to keep: last=3, or last=3,every=100 (steps)")
    keep = Keep(**values)
    if not 1 <= keep.last <= MAX_KEPT:
        raise UsageError(f"last={keep.last}: the newest checkpoint at least is kept, {MAX_KEPT} at most")
    return keep


def kept(checkpoints: Iterable[tuple[Cid, int]], keep: Keep) -> set[Cid]:
    """Of these (CID, step) the ones to keep: the `last` newest, and the first one at or after every multiple of `every` steps."""
    in_order = sorted(checkpoints, key=lambda one: (one[1], one[0]))
    chosen = {cid for cid, _ in in_order[-keep.last :]}
    if keep.every:
        first_of = {step // keep.every: cid for cid, step in reversed(in_order)}
        chosen.update(first_of.values())
    return chosen


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
    """At the latest after so many versions a shard is stored whole: at the same ones by all peers, so that they store the same
    blocks. More: smaller checkpoints, and a longer log to apply when resuming.
    """

    gather_s: float = 15.0
    """How long a peer that resumes waits for those who were members when it stopped. Longer: more certain to find who has the
    newest state, slower where somebody does not come back.
    """

    def __post_init__(self) -> None:
        if not 1 <= self.base_every <= MAX_LOG // 2:
            raise UsageError(f"base_every = {self.base_every}, must be 1 to {MAX_LOG // 2}")
        if not (self.every_s > 0 and self.gather_s >= 0):
            raise UsageError(f"every_s = {self.every_s}, gather_s = {self.gather_s}: must be positive")


def versions_between_bases(bits_per_element: float, most: int) -> int:
    """How many updates of so many bits an element to store on top of a base, before the next: a longer log takes more of the disk
    than it spares, and a base takes the CPU to compress.
    """
    return max(1, min(most, round(LOG_PER_BASE * 32 / bits_per_element)))


def is_base_version(shard: int, n_shards: int, version: int, base_every: int) -> bool:
    """Whether all peers store this version of the shard whole: the shards take turns, so that the disk has an even load."""
    return version % base_every == shard * base_every // n_shards
