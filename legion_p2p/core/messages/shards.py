"""The life of a shard: pushes, updates, catching up, and what is handed over."""

from typing import Annotated, Literal

import msgspec

from legion_p2p.core.marks import CHECK_BYTES, ROW_BYTES
from legion_p2p.core.messages.base import (
    MAX_PAYLOAD_BYTES,
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
from legion_p2p.core.messages.members import SignedBytes
from legion_p2p.core.plan import MAX_SHARDS
from legion_p2p.core.round_spec import MAX_OUTER_DELAY
from legion_p2p.core.seniority import SALT_BYTES
from legion_p2p.core.update_norms import MAX_KNOWN

MAX_INCLUDED = 10_000  # contributions to one update: as many as members may be
MAX_FAILED_NAMED = 256  # in one update: its header has room for thousands, and a liar can invent any number of members
MAX_UPDATES = 64  # updates in one reply
MAX_REASON_CHARS = 200
MAX_SHOWN_COSIGNATURES = 16  # in one update: four times as many as may be missing

Part = Literal["residual", "momentum", "recent"]
"""What only an owner has of a shard: see `HandoverPart`."""
Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)]


Salt = Annotated[bytes, msgspec.Meta(max_length=SALT_BYTES)]
Norms = Annotated[tuple[Annotated[float, msgspec.Meta(gt=0, le=1e38)], ...], msgspec.Meta(max_length=MAX_KNOWN)]


class Pushed(Message, frozen=True, tag="pushed"):
    """The owner has the push and will include it in the next update, or has included it already."""

    version: Version
    included: bool
    digest: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    """Of that version, and the owner's signature on the `Receipt`: empty where the run does not ask for receipts."""
    signature: Annotated[bytes, msgspec.Meta(max_length=64)] = b""


class NotOwner(Message, frozen=True, tag="not_owner"):
    """Somebody else owns the shard, as far as I know: here is its announcement."""

    owner: PeerName
    announcement: SignedBytes


class Push(Request[Pushed | NotOwner], frozen=True, tag="push"):
    """A member's compressed change of a shard since `version`, for the shard's owner."""

    run: RunId
    shard: ShardIndex
    version: Version
    seq: Count
    """Number of this contribution of this member to this shard; sent again, it counts once."""
    tokens: Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
    """Its weight: of no tokens there is nothing to push."""
    local_steps: Count
    codec: CodecName
    payload: Payload
    signature: Annotated[bytes, msgspec.Meta(max_length=64)] = b""
    """Of the member on the `PushClaim`; empty where the run does not watch its owners."""


Standing = Annotated[int, msgspec.Meta(ge=-1000, le=1000)]


class Inclusion(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whose contribution an update contains: a member and its number."""

    peer: PeerName
    seq: Count
    standing: Standing | None = None
    """How far its pushes have gone with the others', this one included; None where nobody is screened."""
    rounds: Version | None = None
    """Versions that contain a push of it, this one included; None where that is of no use."""


class Failure(msgspec.Struct, frozen=True):
    """Whose contribution an update lacks, and why."""

    peer: PeerName
    reason: Reason


class Cosignature(msgspec.Struct, frozen=True):
    """A member has computed an update again: see `core.cosigning`."""

    version: Version
    cosigner: PeerName
    signature: Annotated[bytes, msgspec.Meta(max_length=64)]


class UpdateAccount(msgspec.Struct, frozen=True):
    """What an owner made an update of, so that a peer that has it can compute the update again: see `core.account`."""

    inputs: Annotated[tuple[Digest, ...], msgspec.Meta(max_length=MAX_INCLUDED)]
    """Digests of the signed pushes that the round combined, those that it could not use as well."""
    payload: Digest
    """Of the update."""
    before: Digest
    """Of what only an owner has of the shard (residual, state of the outer optimizer), before the round and after it."""
    after: Digest
    scale: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Factor on the step, where it would have been too long for one update."""
    kept: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """Factor on what is left over then."""
    standings: Annotated[tuple[Standing, ...], msgspec.Meta(max_length=MAX_INCLUDED)] = ()
    """Of the members whose contributions are included, before the round; empty where nobody is screened."""
    networks: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, le=MAX_INCLUDED)], ...], msgspec.Meta(max_length=MAX_INCLUDED)
    ] = ()
    """Of them, by number: see `core.same_network`. Empty where each is in another one."""
    cosigned: Annotated[tuple[Cosignature, ...], msgspec.Meta(max_length=MAX_SHOWN_COSIGNATURES)] = ()
    """Co-signatures on earlier updates of its owner, which none of its updates has shown: see `core.shard.provisional`."""


class UpdateHeader(msgspec.Struct, frozen=True):
    """What an update claims. The owner signs these bytes; the payload is bound to them by `digest`, that of the result."""

    run: RunId
    shard: ShardIndex
    version: Version
    """The version that this update makes out of the one before."""
    base_digest: Digest
    digest: Digest
    owner: PeerName
    codec: CodecName
    included: Annotated[tuple[Inclusion, ...], msgspec.Meta(max_length=MAX_INCLUDED)]
    failed: Annotated[tuple[Failure, ...], msgspec.Meta(max_length=MAX_INCLUDED)]
    expected: Annotated[int, msgspec.Meta(ge=0, le=MAX_INCLUDED)]
    tokens: Count
    account: UpdateAccount | None = None
    """None where the run does not watch its owners."""
    agreement: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """How far the contributions agreed, by the owner's word: see `tensor/mean_length.py`. None: not measured."""
    payload: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    """SHA-256 of the update's bytes, so that a member that passes them on need not apply them first; of older peers empty."""
    salt: Salt = b""
    """By which the owner of the shard is found after this version: see `core.seniority`."""

    @property
    def averaged_fraction(self) -> float:
        """Contributions used per member that was training; 1 where nobody is missing."""
        return len(self.included) / max(1, self.expected, len(self.included))


class Held(Message, frozen=True, tag="held"):
    """What the answering peer holds of the shard now."""

    version: Version
    digest: Digest


class Update(Request[Held], frozen=True, tag="update"):
    """The owner's compressed change of a shard, from the owner or from a member that passes it on. Answered with Held."""

    header: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]
    signature: Annotated[bytes, msgspec.Meta(max_length=64)]
    payload: Payload
    cosigner: PeerName = ""
    """The member that has computed it again, and its signature: see `core.cosigning`. Empty where the run does not ask for it."""
    cosignature: Annotated[bytes, msgspec.Meta(max_length=64)] = b""


class Made(msgspec.Struct, frozen=True):
    """A version that an owner has made."""

    shard: ShardIndex
    version: Version
    n_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_PAYLOAD_BYTES)]
    """Of the update."""


class UpdatesMade(Request[Done], frozen=True, tag="updates_made"):
    """I have made these versions. They are on their way to you, some by way of other members. Answered with Done."""

    run: RunId
    made: Annotated[tuple[Made, ...], msgspec.Meta(max_length=MAX_SHARDS)]


class GetVersion(Request[Held], frozen=True, tag="get_version"):
    """What do you hold of the shard? Answered with Held."""

    run: RunId
    shard: ShardIndex


class Marks(Message, frozen=True, tag="marks"):
    """Rows of shards and their marks, packed as in `core.marks`."""

    rows: Annotated[bytes, msgspec.Meta(max_length=MAX_SHARDS * ROW_BYTES)]


class GetMarks(Request[Marks], frozen=True, tag="get_marks"):
    """What do you hold of these shards, where it is not what I hold? Answered with Marks."""

    run: RunId
    shards: Annotated[bytes, msgspec.Meta(max_length=MAX_SHARDS // 8)]
    """A bit for each shard of the run."""
    checks: Annotated[bytes, msgspec.Meta(max_length=MAX_SHARDS * CHECK_BYTES)]
    """Two bytes for each shard that is asked about, in their order; empty: I hold none of them."""
    salt: Count


class Updates(Message, frozen=True, tag="updates"):
    updates: Annotated[tuple[Update, ...], msgspec.Meta(max_length=MAX_UPDATES)]
    at_version: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)] | None
    """The asker's version, where its state is on this chain; None where the log does not reach it."""
    norms: Norms = ()
    """Lengths of the last updates before these."""


class CosignedHeader(msgspec.Struct, frozen=True):
    """What an owner and a co-signer have signed of an update, without the update."""

    header: Annotated[bytes, msgspec.Meta(max_length=1 << 20)]
    signature: Annotated[bytes, msgspec.Meta(max_length=64)]
    cosigner: PeerName
    cosignature: Annotated[bytes, msgspec.Meta(max_length=64)]


class ShardState(Message, frozen=True, tag="shard_state"):
    """A whole shard, as fp32 bytes, and which contributions of which members it contains."""

    shard: ShardIndex
    version: Version
    digest: Digest
    included: Annotated[tuple[Inclusion, ...], msgspec.Meta(max_length=MAX_INCLUDED)]
    payload: Payload
    ancestor: bool
    """The asker's state lies in the history of this one, so nothing of it is missing here."""
    norms: Norms = ()
    """Lengths of the last updates."""
    salt: Salt = b""
    made_by: CosignedHeader | None = None
    """The update that led to it, in a run in which nobody applies one without a co-signature; None where it is not at hand."""


class GetUpdates(Request[Updates | ShardState | Busy], frozen=True, tag="get_updates"):
    """Send what comes after the state that I hold. Answered with Updates, or with ShardState where the log is too short."""

    run: RunId
    shard: ShardIndex
    version: Version
    digest: Digest
    log_only: bool = False
    """Answer with Updates in any case, empty ones where the log is too short."""


class GetShard(Request[ShardState | Busy], frozen=True, tag="get_shard"):
    """Send the whole shard. Answered with ShardState."""

    run: RunId
    shard: ShardIndex


class HandoverPart(Request[Held], frozen=True, tag="handover"):
    """A part of what only an owner has, for the peer that owns the shard now. Answered with Held.

    The residual of its error feedback, or what its outer optimizer remembers: one at a time, as two would not fit into one frame.
    """

    run: RunId
    shard: ShardIndex
    version: Version
    digest: Digest
    payload: Payload
    """Empty: there is nothing, the question is what the other one holds."""
    part: Part = "residual"
    n_recent: Annotated[int, msgspec.Meta(ge=0, le=MAX_OUTER_DELAY)] = 0
    """Changes that `recent` is the sum of."""
    codec: CodecName = "fp32"
    """Another one where time is short."""
    header: Annotated[bytes, msgspec.Meta(max_length=1 << 20)] = b""
    """Of the last update of the shard that the sender made: a peer that fetched the shard whole has never seen one."""
    signature: Annotated[bytes, msgspec.Meta(max_length=64)] = b""
