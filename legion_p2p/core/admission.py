"""Who may take part in a run whose specification does not admit every peer.

    open        everybody
    token       any peer that shows a token: a permit for one peer, until a moment, signed by the creator or by one of `admins`
    allow-list  the peers that the specification names

The creator and the admins need no token. A member shows its token in its announcement, so that every other member checks it by
itself; once it has expired, or a key that may sign has revoked it, the peer is no longer a member. A peer may also be banned by a
user, for this user's peer alone.

Never happens: a token of one run, or for one peer, admits to another; a revoked token admits again.
"""

import base64
import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Literal

import msgspec

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import MAX_PEER_ID_CHARS, Identity, PeerId, public_key_of, verify
from legion_p2p.errors import DecodeError, UsageError

Admits = Literal["open", "token", "allow-list"]
MAX_ADMITTED = 1024  # peers in a specification: 54 bytes each, of the MiB that it may have
MAX_ADMINS = 16
MAX_TOKEN_BYTES = 512  # a token has about 280: two peer ids, the run's id, a time and a signature
MAX_OPENED = 1024  # checked tokens that are remembered
MAX_REVOKED = 1024  # remembered revocations, about 64 bytes each; those of expired tokens go
MAX_REVOCATIONS_SHOWN = 8  # in one announcement; members take turns, so that more of them come round as well
TEXT_PREFIX = "legion-token-"
FOREVER = 1 << 40  # seconds: no clock of this age says so

_Id = Annotated[str, msgspec.Meta(max_length=MAX_PEER_ID_CHARS)]
_Time = Annotated[int, msgspec.Meta(ge=0, le=FOREVER)]
_Use = Literal["admission", "revocation"]


class Permit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a token says: `peer` may take part in `run` until then; or, in a revocation, that it may not until then."""

    run: Annotated[str, msgspec.Meta(max_length=100)]
    peer: _Id
    until: _Time
    """Seconds since 1970, UTC."""
    signer: _Id


class _Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_TOKEN_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(max_length=64)]


_encoder = msgspec.msgpack.Encoder()
_permit = msgspec.msgpack.Decoder(Permit)
_signed = msgspec.msgpack.Decoder(_Signed)


def check_admission(admits: Admits, admins: Iterable[str], admitted: Iterable[str]) -> None:
    """Whether these fields of a specification fit together. Raises: UsageError."""
    if admins and admits != "token":
        raise UsageError(f"admins sign tokens, which admission {admits!r} does not ask for: leave them out, or choose 'token'")
    if bool(admitted) != (admits == "allow-list"):
        raise UsageError(f"admission {admits!r} with {'a' if admitted else 'no'} list `admitted`: it goes with 'allow-list'")
    for peer in (*admins, *admitted):
        try:
            public_key_of(peer)
        except DecodeError as bad:
            raise UsageError(f"admission: {bad}") from bad


def make_token(identity: Identity, run: str, peer: str, until: int) -> bytes:
    """A token for `peer`. Raises: UsageError."""
    return _make(identity, run, peer, until, "admission")


def make_revocation(identity: Identity, run: str, peer: str, until: int = FOREVER) -> bytes:
    """Word that tokens for `peer` that end before `until` are void. Raises: UsageError."""
    return _make(identity, run, peer, until, "revocation")


@lru_cache(maxsize=MAX_OPENED)
def open_token(data: bytes) -> Permit:
    """Read and check a token that came from a stranger, which shows it with every request. Raises: DecodeError;
    SignatureError."""
    return _open(data, "admission")


def open_revocation(data: bytes) -> Permit:
    """Read and check a revocation that came from a stranger. Raises: DecodeError; SignatureError."""
    return _open(data, "revocation")


class Admission:
    """Decides for one run, at one peer. `now` is the wall clock's, in seconds since 1970."""

    def __init__(self, run: str, admits: Admits, creator: str, admins: Iterable[str] = (), admitted: Iterable[str] = ()) -> None:
        self._run = run
        self._admits = admits
        self._signers = frozenset((creator, *admins))
        self._admitted = frozenset(admitted)
        self._revoked: BoundedMap[str, tuple[int, bytes]] = BoundedMap(MAX_REVOKED)
        """By peer: tokens that end before this time are void; and the proof of that."""
        self.banned: frozenset[str] = frozenset()
        """Peers that this peer's user keeps out."""

    @property
    def is_open(self) -> bool:
        """Nobody needs anything to take part, unless this peer's user has banned it."""
        return self._admits == "open"

    def refusal(self, peer: PeerId, token: bytes, now: float) -> str:
        """Why `peer`, which shows this token, may not take part; empty where it may."""
        if peer in self.banned:
            return "banned by the user of this peer"
        if self._admits == "open" or peer in self._signers:
            return ""
        if self._admits == "allow-list":
            return "" if peer in self._admitted else "not on the run's allow-list"
        if not token:
            return "this run admits peers with a token of its creator, and none was shown"
        try:
            permit = open_token(token)
        except DecodeError as bad:
            return f"its token is none: {bad}"
        if permit.signer not in self._signers:
            return f"its token is signed by {permit.signer}, who may not"
        if (permit.run, permit.peer) != (self._run, peer):
            return "its token is for another run or peer"
        if now >= permit.until:
            return "its token has expired"
        revoked = self._revoked.get(peer)
        return "its token was revoked" if revoked is not None and permit.until <= revoked[0] else ""

    def revoke(self, revocation: bytes, now: float) -> bool:
        """Take word of a revocation, from whomever it comes; True if it was news.

        Raises: DecodeError, if it is none for this run.
        """
        permit = open_revocation(revocation)
        if permit.run != self._run:
            raise DecodeError("a revocation of another run")
        if permit.signer not in self._signers:
            raise DecodeError(f"a revocation signed by {permit.signer}, who may not")
        known = self._revoked.get(permit.peer)
        if permit.until <= now or (known is not None and known[0] >= permit.until):
            return False
        if known is None and len(self._revoked) >= MAX_REVOKED:
            for peer in [peer for peer, (until, _) in self._revoked.items() if until <= now]:
                del self._revoked[peer]
        self._revoked[permit.peer] = (permit.until, revocation)
        return True

    def revocations(self, now: float, turn: int) -> tuple[bytes, ...]:
        """Some that others should know of: another MAX_REVOCATIONS_SHOWN each turn."""
        living = [proof for until, proof in self._revoked.values() if until > now]
        if len(living) <= MAX_REVOCATIONS_SHOWN:
            return tuple(living)
        first = turn * MAX_REVOCATIONS_SHOWN % len(living)
        return tuple((living + living)[first : first + MAX_REVOCATIONS_SHOWN])


def as_text(data: bytes) -> str:
    """A token or revocation in one line, as it is sent to another user."""
    return TEXT_PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")


def from_text(text: str) -> bytes:
    """What `as_text` wrote. Raises: DecodeError."""
    text = text.strip()
    if not text.startswith(TEXT_PREFIX):
        raise DecodeError(f"no token: it starts with {TEXT_PREFIX!r}, as legion-ctl token make prints it")
    coded = text.removeprefix(TEXT_PREFIX)
    if len(coded) > 2 * MAX_TOKEN_BYTES:
        raise DecodeError(f"token of {len(coded)} characters, at most {2 * MAX_TOKEN_BYTES}")
    try:
        return base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
    except ValueError as bad:
        raise DecodeError("the token has characters that none has; copy all of its line again") from bad


def _make(identity: Identity, run: str, peer: str, until: int, use: _Use) -> bytes:
    try:
        public_key_of(peer)
    except DecodeError as bad:
        raise UsageError(str(bad)) from bad
    if not 0 < until <= FOREVER:
        raise UsageError(f"until {until} s since 1970, must be 1 to {FOREVER}")
    body = _encoder.encode(Permit(run, peer, until, identity.peer_id))
    return _encoder.encode(_Signed(body, identity.sign(_domain(body, use))))


def _open(data: bytes, use: _Use) -> Permit:
    if len(data) > MAX_TOKEN_BYTES:
        raise DecodeError(f"{use} of {len(data)} bytes, at most {MAX_TOKEN_BYTES}")
    try:
        signed = _signed.decode(data)
        permit = _permit.decode(signed.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as bad:
        raise DecodeError(f"{use}: {bad}") from bad
    verify(permit.signer, _domain(signed.body, use), signed.signature)
    return permit


def _domain(body: bytes, use: _Use) -> bytes:
    """Keeps a signature from being used as one on anything else."""
    return f"legion/{use}/1\0".encode() + hashlib.sha256(body).digest()
