"""Evidence against an owner that anybody can check again, and what it is made of: see `core.evidence`."""

from typing import Annotated

import msgspec

from legion_p2p.core.messages.base import Count, Digest, Done, PeerName, Request, RunId, ShardIndex, Version

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


Evidence = Equivocation | Omission
