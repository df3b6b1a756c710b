"""Which members say that they have which checkpoints. It is shown to people; nothing is decided by it."""

from collections.abc import Mapping

import msgspec

from legion_p2p.core.cids import Cid
from legion_p2p.core.identity import PeerId


class CheckpointOrigin(msgspec.Struct, frozen=True):
    """What the manifest of a checkpoint says, which its publisher signed."""

    step: int
    created_s: int
    publisher: PeerId


class HoldersFound(msgspec.Struct, frozen=True):
    """What came of asking some members."""

    n_asked: int = 0
    n_answered: int = 0
    named: Mapping[Cid, tuple[PeerId, ...]] = {}
    """Members that name a checkpoint as theirs."""
    origins: Mapping[Cid, CheckpointOrigin] = {}
    """Of those checkpoints whose manifests were fetched."""
    claimed_bytes: Mapping[Cid, int] = {}
    """How large a checkpoint is, as the members that name it say; nothing proves it."""
    shares: Mapping[PeerId, float] = {}
    """Which share of the blocks of the one that was asked about a member has: 1 if it could restore it alone."""
