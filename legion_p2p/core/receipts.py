"""What an owner promises when it takes a push: the next version contains it, or says why not.

The owner signs a receipt that names its version and that version's digest. A round takes whatever waits, so the next version
that this owner makes out of that one has the push, or names its member among the failed. An update that does neither is, with
the receipt, evidence that anybody can check.

Never happens: an honest owner is proven to omit because it lost the shard for a moment, or combined a round that came to nothing
(`core.shard.owner`, `core.round.ShardRound.refused`). One that is killed and started again lets others make a version first; only
where nobody has within a minute, it may be (services/run/returning.py).
"""

from legion_p2p.core.identity import Identity, PeerId, verify
from legion_p2p.core.messages.evidence import MAX_SHOWN_HEADER_BYTES, Omission, Receipt, SignedHeader
from legion_p2p.core.messages.shards import MAX_FAILED_NAMED, Pushed, Update, UpdateHeader
from legion_p2p.core.round import LATE
from legion_p2p.core.wire import encode_struct
from legion_p2p.errors import DecodeError

DOMAIN = b"legion/receipt/1\0"


def sign_receipt(receipt: Receipt, owner: Identity) -> bytes:
    """The owner's signature."""
    return owner.sign(DOMAIN + encode_struct(receipt))


def check_receipt(receipt: Receipt, signature: bytes) -> None:
    """Raises: SignatureError, if its owner did not sign it; DecodeError."""
    verify(receipt.owner, DOMAIN + encode_struct(receipt), signature)


def receipt_in(reply: Pushed, asked: Receipt) -> Receipt:
    """The receipt that an owner's answer is; `asked`: what was pushed, with nothing of the answer. Raises: DecodeError."""
    receipt = Receipt(asked.run, asked.shard, asked.owner, asked.peer, asked.seq, reply.version, reply.digest)
    check_receipt(receipt, reply.signature)
    return receipt


def omission(receipt: Receipt, signature: bytes, update: Update, header: UpdateHeader) -> Omission | None:
    """The evidence that both are; None where they are none, or too long to be shown. `header`: that of the update."""
    if not _is_left_out(receipt, header) or len(update.header) > MAX_SHOWN_HEADER_BYTES:
        return None
    return Omission(receipt.run, receipt, signature, SignedHeader(update.header, update.signature))


def check_omission(evidence: Omission, header: UpdateHeader) -> PeerId:
    """Against whom it speaks. `header`: of its update, whose signature has been checked.

    Raises: DecodeError, SignatureError, where it proves nothing.
    """
    if header.run != evidence.run:
        raise DecodeError(f"evidence of run {evidence.run} about an update of run {header.run}")
    check_receipt(evidence.receipt, evidence.signature)
    if not _is_left_out(evidence.receipt, header):
        raise DecodeError("evidence of a receipt and an update that do not contradict each other")
    return PeerId(header.owner)


def _is_left_out(receipt: Receipt, header: UpdateHeader) -> bool:
    """The update follows the version of the receipt, and has neither the push, nor a later one, nor the reason."""
    same = (receipt.run, receipt.shard, receipt.owner) == (header.run, header.shard, header.owner)
    follows = header.version == receipt.version + 1 and header.base_digest == receipt.digest
    if not (same and follows) or len(header.failed) >= MAX_FAILED_NAMED:  # the reason may not have found room
        return False
    has_it = any(i.peer == receipt.peer and i.seq >= receipt.seq for i in header.included)
    has_reason = any(failure.peer == receipt.peer and failure.reason != LATE for failure in header.failed)
    return not (has_it or has_reason)  # it was not late: there is the receipt
