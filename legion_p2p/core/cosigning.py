"""In a run with `verify = "strict"` an update counts once another member has computed it again and signed it; in one with "late"
it stays once that is so (core/shard/provisional.py).

The owner asks the standby, and one of the next in the order if the standby does not answer in time: before it publishes where
the run is strict, and after that in a late one. A strict signature travels with the update, so that a member checks it and
applies the update at once; a late one in the header of one of the owner's next updates. A peer that may own nothing signs
nothing, and where the owner is the only one that may own, its updates count without.

    no answer within the grace    -> the next of the order is asked; the silent one is asked last for a while
    the update is wrong           -> no signature, but an accusation (core/account.py): the owner loses the shard
    nobody signs                  -> the version is not published, or no further one; what follows is that of an owner that makes
                                     nothing

Members that see other members than the owner does may have another order. So one more is believed than the owner asks; what
most of the others hold has been checked by them; and an update that somebody else signed, a member computes again itself.

Never happens: a peer signs two updates of one version within KEPT_S; an owner signs for itself.
"""

from collections.abc import Mapping

import msgspec

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import Identity, PeerId, verify
from legion_p2p.core.rendezvous import Ownership, ranking

DOMAIN = b"legion/cosigned/1\0"
N_ASKED = 3  # of the order; with more, an owner finds one of its own among them more easily
N_BELIEVED = N_ASKED + 1  # one may have come or gone that the owner, or this peer, does not know of yet
KEPT_S = 60.0  # after which an owner may ask for another update of the same version: it was killed, and lost the one before
BELIEVED_S = 15.0  # after others may sign: a round and the way of its update
MAX_KEPT = 4096  # shards of which the last signature is remembered: as many as a model may have


def sign_cosignature(header: bytes, member: Identity) -> bytes:
    """The signature of a member that has computed the update again."""
    return member.sign(DOMAIN + header)


def check_cosignature(member: str, header: bytes, signature: bytes) -> None:
    """Raises: SignatureError; DecodeError."""
    verify(member, DOMAIN + header, signature)


def cosigners(key: str, owners: Ownership, weights: Mapping[PeerId, float]) -> tuple[PeerId, ...]:
    """Those that may sign for the owner of a shard, the standby first. `key`: of the shard. `weights`: of those that may own."""
    ranked = ranking(key, weights)
    first = [] if owners.standby is None else [owners.standby]
    rest = [peer for peer in ranked if peer not in (owners.owner, owners.standby)]
    return tuple((first + rest)[:N_BELIEVED])


class BelievedCosigners:
    """Whose co-signatures a member believes: also of those that might sign until a moment ago, because one that has signed may
    leave before the update arrives."""

    def __init__(self) -> None:
        self._orders: dict[int, tuple[tuple[PeerId, ...], tuple[PeerId, ...], float]] = {}
        """Of each shard those of now, those before, and since when."""

    def believed(self, shard: int, order: tuple[PeerId, ...], now: float) -> tuple[PeerId, ...]:
        """`order`: those that may sign by the members known now. Nobody may -> nobody needs to have signed."""
        current, former, since = self._orders.get(shard, (order, (), now))
        if order != current:
            current, former, since = order, current, now
        self._orders[shard] = current, former, since
        return (*current, *former) if current and now < since + BELIEVED_S else current


class _SignedVersion(msgspec.Struct, frozen=True):
    version: int
    digest: bytes
    """`core.account.header_digest` of the update."""
    signature: bytes
    until: float


class SignedVersions:
    """What this peer has signed for owners last, of each shard."""

    def __init__(self) -> None:
        self._last: BoundedMap[int, _SignedVersion] = BoundedMap(MAX_KEPT)

    def signature(self, shard: int, digest: bytes) -> bytes | None:
        """The signature on this very update: an answer may have been lost."""
        last = self._last.get(shard)
        return last.signature if last is not None and last.digest == digest else None

    def may_sign(self, shard: int, version: int, now: float) -> bool:
        """Whether no other update of the version, nor of a later one, was signed lately: what was signed before the last one is
        not remembered."""
        last = self._last.get(shard)
        return last is None or version > last.version or now >= last.until

    def signed(self, shard: int, version: int, digest: bytes, signature: bytes, now: float) -> None:
        """This peer has signed an update."""
        self._last[shard] = _SignedVersion(version, digest, signature, now + KEPT_S)
