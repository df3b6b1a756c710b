"""Checkpoints: which there are, their blocks, and which of their states a member comes from."""

from typing import Annotated

import msgspec

from legion_p2p.core.messages.base import MAX_COUNT, Busy, Count, Digest, Message, Request, RunId, ShardIndex, Version

MAX_HAS_CIDS = 8192  # in one question: 300 KiB
MAX_GET_CIDS = 64
MAX_BLOCKS_BYTES = 8 << 20  # in one answer: what a link of 8 Mbit/s carries in 8 s
MAX_BLOCK_BYTES = 1 << 20
MAX_CHECKPOINTS = 8  # that a peer tells of: it keeps the last three, and some of long ago
MAX_COMPARED = 8192  # states in one question: two of every shard; half of a control frame

CidBytes = Annotated[bytes, msgspec.Meta(min_length=36, max_length=36)]
BlockBytes = Annotated[bytes, msgspec.Meta(max_length=MAX_BLOCK_BYTES)]
BlockSize = Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOCK_BYTES)]


class HeldBlocks(Message, frozen=True, tag="held_blocks"):
    """For each block asked for how many bytes it has; 0: it is not here."""

    sizes: Annotated[tuple[BlockSize, ...], msgspec.Meta(max_length=MAX_HAS_CIDS)]


class HasBlocks(Request[HeldBlocks], frozen=True, tag="has_blocks"):
    """Which of these blocks do you have? Any peer with a store answers, with HeldBlocks."""

    cids: Annotated[tuple[CidBytes, ...], msgspec.Meta(max_length=MAX_HAS_CIDS)]


class Blocks(Message, frozen=True, tag="blocks"):
    """Each block asked for, in order; empty where it is not here, or found no room in this answer."""

    blocks: Annotated[tuple[BlockBytes, ...], msgspec.Meta(max_length=MAX_GET_CIDS)]


class GetBlocks(Request[Blocks | Busy], frozen=True, tag="get_blocks"):
    """Send these blocks. Answered with Blocks."""

    cids: Annotated[tuple[CidBytes, ...], msgspec.Meta(max_length=MAX_GET_CIDS)]


class Checkpoints(Message, frozen=True, tag="checkpoints"):
    """Of their manifests, the newest first."""

    cids: Annotated[tuple[CidBytes, ...], msgspec.Meta(max_length=MAX_CHECKPOINTS)]
    n_bytes: Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_CHECKPOINTS)] = ()
    """How large each is, with all of its blocks that are here; empty where that was not asked."""


class GetCheckpoints(Request[Checkpoints], frozen=True, tag="get_checkpoints"):
    """Which checkpoints of this run do you have? Answered with Checkpoints."""

    run: RunId
    with_bytes: bool = False
    """Tell their sizes as well: they are counted once for each checkpoint, which may take a second."""


class State(msgspec.Struct, frozen=True):
    """A shard in one version."""

    shard: ShardIndex
    version: Version
    digest: Digest


class AncestryReply(Message, frozen=True, tag="ancestry_reply"):
    """For each state how many bytes of updates lead from it to what I hold; or UNKNOWN; or OTHER: I was at another then."""

    since: Annotated[tuple[Annotated[int, msgspec.Meta(ge=-2, le=MAX_COUNT)], ...], msgspec.Meta(max_length=MAX_COMPARED)]


UNKNOWN, OTHER = -1, -2


class AncestryQuery(Request[AncestryReply], frozen=True, tag="ancestry_query"):
    """Which of these states does what you hold come from? Answered with AncestryReply."""

    run: RunId
    states: Annotated[tuple[State, ...], msgspec.Meta(max_length=MAX_COMPARED)]
