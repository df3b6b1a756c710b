"""The identity of a peer: an Ed25519 key, and the libp2p peer id that contains that key.

A peer id carries its public key (an identity multihash), so a signature is checked with nothing else at hand.
"""

from functools import lru_cache
from typing import NewType

import base58
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from legion_p2p.errors import DecodeError, SignatureError

PeerId = NewType("PeerId", str)

SEED_BYTES = 32
SIGNATURE_BYTES = 64
MAX_PEER_ID_CHARS = 64  # an Ed25519 peer id has 52; anything much longer is not one
MAX_KEYS_CACHED = 16384  # reading base58 costs a third of checking a signature

# identity multihash (0x00, 36 bytes) of the protobuf PublicKey{type: Ed25519, data: 32 bytes}
# (libp2p specification, peer-ids.md)
_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])


class Identity:
    """A private key and the peer id that goes with it."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise DecodeError(f"identity seed of {len(seed)} bytes, must be {SEED_BYTES}")
        self.seed = seed
        self._key = SigningKey(seed)
        self.peer_id = peer_id_of(bytes(self._key.verify_key))

    @classmethod
    def generate(cls) -> "Identity":
        """A new random one."""
        return cls(bytes(SigningKey.generate()))

    def sign(self, message: bytes) -> bytes:
        """An Ed25519 signature of 64 bytes."""
        return self._key.sign(message).signature


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of a raw Ed25519 public key (32 bytes)."""
    return PeerId(base58.b58encode(_PREFIX + public_key).decode())


@lru_cache(maxsize=MAX_KEYS_CACHED)
def public_key_of(peer_id: str) -> bytes:
    """The raw Ed25519 public key inside a peer id.

    Raises: DecodeError, if it is not an Ed25519 peer id.
    """
    if len(peer_id) > MAX_PEER_ID_CHARS:
        raise DecodeError(f"peer id of {len(peer_id)} characters, at most {MAX_PEER_ID_CHARS}")
    try:
        raw = base58.b58decode(peer_id)
    except ValueError as bad:
        raise DecodeError(f"peer id {peer_id!r} is not base58") from bad
    if len(raw) != len(_PREFIX) + 32 or not raw.startswith(_PREFIX):
        raise DecodeError(f"peer id {peer_id!r} does not carry an Ed25519 key")
    key = raw[len(_PREFIX) :]
    if peer_id_of(key) != peer_id:  # base58 reads over trailing blanks: one key must not be many members
        raise DecodeError(f"peer id {peer_id!r} is not written as peer ids are")
    return key


def verify(peer_id: str, message: bytes, signature: bytes) -> None:
    """Check that `peer_id` signed `message`.

    Raises: SignatureError if it did not; DecodeError if `peer_id` is none.
    """
    key = VerifyKey(public_key_of(peer_id))
    try:
        key.verify(message, signature)
    except (BadSignatureError, ValueError) as bad:
        raise SignatureError(f"not signed by {peer_id}") from bad
