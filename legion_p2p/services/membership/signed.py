"""The signed announcements of members, kept to be passed on."""

import random

from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.identity import PeerId
from legion_p2p.core.known_members import KnownMembers
from legion_p2p.core.membership import Membership
from legion_p2p.services.membership.own import OwnAnnouncement

MAX_EXCHANGE_BYTES = 512 * 1024  # of announcements in one message: half a control frame


class SignedAnnouncements:
    """The newest of each member that is not dead."""

    def __init__(self, table: Membership, own: OwnAnnouncement, rng: random.Random) -> None:
        self._table = table
        self._own = own
        self._rng = rng
        self._signed: dict[PeerId, bytes] = {}

    def put(self, peer: PeerId, signed: bytes) -> None:
        self._signed[peer] = signed

    def forget(self, peer: PeerId) -> None:
        self._signed.pop(peer, None)

    def get(self, peer: PeerId) -> bytes | None:
        return self._signed.get(peer)

    def known(self) -> list[Announcement]:
        """What is kept, of those that are not dead."""
        return [m.announcement for m in self._table.counted() if m.peer_id in self._signed]

    def news_for(self, asker: PeerId, region: str, known: KnownMembers, limit: int) -> tuple[bytes, ...]:
        """What `asker` lacks, of this peer, of the members of `region` and of the envoys of others: at most `limit`, chosen by
        chance, or as many as fit."""
        rows = [a for a in self.known() if (a.envoy or a.region == region) and a.peer_id != asker and known.lacks(a)]
        chosen = [self._own.signed] if known.lacks(self._own.now()) else []
        size = sum(map(len, chosen))
        for peer in self._rng.sample([peer_of(a) for a in rows], min(limit - 1, len(rows))):
            size += len(self._signed[peer])
            if size > MAX_EXCHANGE_BYTES:
                break
            chosen.append(self._signed[peer])
        return tuple(chosen)
