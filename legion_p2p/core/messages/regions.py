"""What regions say to each other when they sync a shard."""

from typing import Annotated

import msgspec

from legion_p2p.core.distance import MAX_RATE
from legion_p2p.core.messages.base import CodecName, Count, Message, Payload, Request, RunId, ShardIndex
from legion_p2p.core.messages.members import SignedBytes
from legion_p2p.core.messages.shards import Held

MAX_NORM = 1e24  # of a shard: its elements are at most 3.4e38 in fp32, and would have lost all meaning long before
MAX_NAMED_BY_ENVOY = 2  # a shard's representative and its owner


class RepresentativeFound(Message, frozen=True, tag="representative_found"):
    """Who syncs a shard of my region with others."""

    announcements: Annotated[tuple[SignedBytes, ...], msgspec.Meta(max_length=MAX_NAMED_BY_ENVOY)]
    """Of the representative, then of the owner where that is another member."""
    share: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """Of all shards of the region, those that the representative syncs."""


class GetRepresentative(Request[RepresentativeFound], frozen=True, tag="get_representative"):
    """Who syncs this shard of your region with others? I know only a few of its members."""

    run: RunId
    region: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    shard: ShardIndex


class SyncReply(Message, frozen=True, tag="sync_reply"):
    """The answering side's half of the sync, in the asker's codec; it has moved already."""

    payload: Payload
    slowed_to: Annotated[float, msgspec.Meta(ge=0, le=MAX_RATE)] | None = None
    """Both move elastically at this rate, at most that asked for: the run's rule would move one of them too far. None: they do
    as asked."""


class Unknown(Message, frozen=True, tag="unknown"):
    """What `known` names is not known here: begin again, with the whole shard."""


class SyncRequest(Request[SyncReply | Unknown], frozen=True, tag="sync_request"):
    """From the owner of a shard in one region to its owner in another, or of its center variable: what I hold, compressed.

    Tell me what you hold, and move as I shall. Answered with SyncReply, or with Unknown.
    """

    run: RunId
    shard: ShardIndex
    region: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    """Of the asker."""
    exchange: Count
    """Number of this sync; sent again, it counts once."""
    known: Annotated[bytes, msgspec.Meta(max_length=32)]
    """Digest of what both know of each other, to which the payload is the difference; empty: the payload is the whole."""
    rate: Annotated[float, msgspec.Meta(gt=0, le=MAX_RATE)]
    """The moving rate of this sync."""
    limit: Annotated[float, msgspec.Meta(ge=0, le=MAX_NORM)] | None
    """The longest step that the asker takes, as a Euclidean norm; None: any."""
    center: bool
    """It is the center variable that the asker wants to sync with."""
    codec: CodecName
    payload: Payload


class RelayRequest(Request[Held], frozen=True, tag="relay_request"):
    """From a relay to the owner of a shard in its region: subtract this, because I have synced with another region.

    Answered with Held.
    """

    run: RunId
    shard: ShardIndex
    number: Count
    """Sent again, it counts once."""
    codec: CodecName
    payload: Payload
