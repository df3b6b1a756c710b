"""Evidence against an owner that anybody can check again, and what it is made of: see `core.evidence`."""

from typing import Annotated

import msgspec

from legion_p2p.core.messages.base import (
    Busy,
    CodecName,
    Count,
    Digest,
    Done,
    Message,
    Payload,
    PeerName,
    Request,
    RunId,
    ShardIndex,
    Version,
)
from legion_p2p.core.round_spec import MAX_OUTER_DELAY

FIRST_PUSH = 4  # parts of the inputs that are not pushes come before
MAX_INPUTS = 10_000  # pushes to one update: as many as members may be
MAX_SHOWN_HEADER_BYTES = 256 << 10  # of an update that is shown as evidence: two go into one control message; of 4000 members

Signature = Annotated[bytes, msgspec.Meta(max_length=64)]


class SignedHeader(msgspec.Struct, frozen=True):
    """What an owner has said of an update, without the update."""

    header: Annotated[bytes, msgspec.Meta(max_length=MAX_SHOWN_HEADER_BYTES)]
    signature: Signature


class Receipt(msgspec.Struct, frozen=True):
    """What an owner signs when it takes a push: it waits for the version after this one."""

    run: RunId
    shard: ShardIndex
    owner: PeerName
    peer: PeerName
    """The member that pushed."""
    seq: Count
    version: Version
    digest: Digest
    """Of that version."""


class Equivocation(Request[Done], frozen=True, tag="equivocation"):
    """Two updates of one version that one owner signed."""

    run: RunId
    first: SignedHeader
    second: SignedHeader


class Omission(Request[Done], frozen=True, tag="omission"):
    """A push for which an owner signed a receipt, and its update that neither contains it nor says why."""

    run: RunId
    receipt: Receipt
    signature: Signature
    """On the receipt."""
    update: SignedHeader


class PushClaim(msgspec.Struct, frozen=True):
    """What a member signs of each push."""

    run: RunId
    shard: ShardIndex
    peer: PeerName
    version: Version
    seq: Count
    tokens: Count
    codec: CodecName
    payload: Digest
    steps: Count = 1


class Miscount(Request[Done], frozen=True, tag="miscount"):
    """An update that is not what its owner's account says. Whoever shows it has the inputs: `GetInput`."""

    run: RunId
    update: SignedHeader
    accuser: PeerName
    """It answers for the accusation with its ownership."""
    signature: Signature
    """Of the accuser."""


class InputPart(Message, frozen=True, tag="input_part"):
    """One of the inputs of an update."""

    payload: Payload
    """Empty: zeros."""
    claim: PushClaim | None = None
    """Of a push, with its member's signature."""
    signature: Signature = b""
    n_recent: Annotated[int, msgspec.Meta(ge=0, le=MAX_OUTER_DELAY)] = 0
    """Changes that `recent` is the sum of."""


class GetInput(Request[InputPart | Busy], frozen=True, tag="get_input"):
    """Send one of the inputs of an update that you made, or hold as evidence."""

    run: RunId
    shard: ShardIndex
    header: Digest
    """SHA-256 of the update's header."""
    part: Annotated[int, msgspec.Meta(ge=0, le=FIRST_PUSH + MAX_INPUTS)]
    """0 to 2: residual, momentum and recent changes before the round, as fp32. 3: the update. From 4 on: the pushes."""


class Cosigned(Message, frozen=True, tag="cosigned"):
    """I have computed the update again: it is right."""

    signature: Signature


class Cosign(Request[Cosigned], frozen=True, tag="cosign"):
    """Compute this update of mine again, from the inputs that I show you, and sign it, so that others apply it."""

    run: RunId
    shard: ShardIndex
    header: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]
    signature: Signature
    """Of the owner."""


Evidence = Equivocation | Omission | Miscount
