"""What an update is made of, as members and owners sign it. See core/account.py."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from legion_p2p.core.account import sign_push
from legion_p2p.core.identity import Identity
from legion_p2p.core.messages.evidence import PushClaim
from legion_p2p.core.messages.shards import UpdateHeader
from legion_p2p.tensor.flatten import digest
from legion_p2p.tensor.outer import OuterState

_NOTHING = b"\0" * 32


@dataclass(frozen=True, eq=False)
class SignedPush:
    """A push as its member signed it."""

    claim: PushClaim
    signature: bytes
    payload: bytes | memoryview

    @classmethod
    def by(cls, member: Identity, claim: PushClaim, payload: bytes | memoryview) -> "SignedPush":
        """The push of this member."""
        return cls(claim, sign_push(claim, member), payload)


@dataclass(frozen=True, eq=False)
class RoundInputs:
    """What an update was made of."""

    header: UpdateHeader
    residual: Tensor | None
    outer: OuterState
    pushes: Sequence[SignedPush]
    update: bytes | memoryview
    """What was made of it."""


def payload_digest(payload: bytes | memoryview) -> bytes:
    """What a signed claim or account names a payload by."""
    return hashlib.sha256(payload).digest()


def state_digest(residual: Tensor | None, outer: OuterState) -> bytes:
    """Of what only an owner has of a shard; zeros are nothing."""
    parts = [_NOTHING if x is None or not bool(x.any()) else digest(x) for x in (residual, outer.momentum, outer.recent)]
    return hashlib.sha256(b"".join(parts) + outer.n_recent.to_bytes(4, "big")).digest()
