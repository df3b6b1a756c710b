"""How an owner accounts for an update, so that others can compute it again.

Members sign their pushes. An owner signs, in the header of each update, the digests of all that it was made of: the pushes, and
what only an owner has of the shard, before and after. The arithmetic of a round gives the same bits everywhere. So a peer that
has the inputs knows whether the update is theirs, and if not, header and inputs prove it to everybody.

The standby of a shard gets the inputs of each update from the owner. It follows what the owner should have, whatever the owner
says: what an update brought wrongly stays in its residual, and comes back in the first updates that it makes itself when it
takes the shard over.

Never happens: a member is believed to have pushed what it did not sign; an owner chooses afterwards what an update was made of.
"""

import hashlib
from enum import Enum

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import Identity, PeerId, verify
from legion_p2p.core.messages.evidence import Miscount, PushClaim, SignedHeader
from legion_p2p.core.messages.shards import UpdateAccount
from legion_p2p.core.wire import encode_struct

PUSH_DOMAIN = b"legion/push/1\0"
MISCOUNT_DOMAIN = b"legion/miscount/1\0"
SETTLED_VERSIONS = 8  # of one owner, one after another: what the owner before it had to hand over has arrived, or never will
MAX_BREAKS = 3  # that one owner makes: each may bring as much as one update, so it is stopped early
MAX_OWNERS = 256  # whose breaks are counted


class CountVerdict(Enum):
    """What a second computation of an update says."""

    RIGHT = "right"
    UNCLEAR = "unclear"
    """As far off as two machines may be from each other, in the worst case: nobody is accused of it."""
    WRONG = "wrong"


def sign_push(claim: PushClaim, member: Identity) -> bytes:
    """The signature of the member that pushes."""
    return member.sign(PUSH_DOMAIN + encode_struct(claim))


def check_push(claim: PushClaim, signature: bytes) -> None:
    """Raises: SignatureError, if its member did not sign it; DecodeError."""
    verify(claim.peer, PUSH_DOMAIN + encode_struct(claim), signature)


def input_digest(claim: PushClaim, signature: bytes) -> bytes:
    """What an account names a push by."""
    return hashlib.sha256(encode_struct(claim) + signature).digest()


def header_digest(raw: bytes) -> bytes:
    """What an update is known by, where its inputs are asked for."""
    return hashlib.sha256(raw).digest()


def accuse(run: str, update: SignedHeader, accuser: Identity) -> Miscount:
    """The accusation that the inputs of an update give another one."""
    signed = MISCOUNT_DOMAIN + header_digest(update.header)
    return Miscount(run, update, accuser.peer_id, accuser.sign(signed))


def check_accusation(accusation: Miscount) -> None:
    """Raises: SignatureError, if the accuser did not sign it; DecodeError. Whether it is true takes the inputs."""
    verify(accusation.accuser, MISCOUNT_DOMAIN + header_digest(accusation.update.header), accusation.signature)


def deviation(error: float, own_error: float, length: float, *, is_random: bool = False) -> CountVerdict:
    """What it says that an update is `error` away from what it should carry, where this peer's codec is off by `own_error`.

    `length`: of what it should carry. Two machines may add in another order, and choose between equals in another way, which
    changes the error little. A codec that rounds at random (`is_random`) never does the same twice.
    """
    right, wrong, floor = (1.02, 1.1, 1e-3) if is_random else (1.001, 1.005, 1e-4)
    if error <= right * own_error + floor * length:
        return CountVerdict.RIGHT
    return CountVerdict.WRONG if error > wrong * own_error + 10 * floor * length else CountVerdict.UNCLEAR


class Continuity:
    """Whether an owner begins each round of one shard with what it had after the one before. Everybody sees that in its headers.

    Regions that sync change it in between, and so does a hand-over that arrives late: then it says nothing.
    """

    def __init__(self) -> None:
        self._owner: PeerId | None = None
        self._version = 0
        self._after = b""
        self._n_made = 0

    def breaks(self, owner: PeerId, version: int, account: UpdateAccount) -> bool:
        """The next update; whether its owner begins with something else without a possible reason."""
        follows = owner == self._owner and version == self._version + 1
        broken = follows and self._n_made >= SETTLED_VERSIONS and account.before != self._after
        self._n_made = self._n_made + 1 if follows else 1
        self._owner, self._version, self._after = owner, version, account.after
        return broken


class Breaks:
    """How often each owner did that."""

    def __init__(self) -> None:
        self._n: BoundedMap[PeerId, int] = BoundedMap(MAX_OWNERS)

    def add(self, owner: PeerId) -> bool:
        """Once more; whether that is too often."""
        self._n[owner] = n = self._n.get(owner, 0) + 1
        return n % MAX_BREAKS == 0
