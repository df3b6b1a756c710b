"""The signed announcements of members, kept to be passed on."""

import random

from legion_p2p.core.announcement import Announcement
from legion_p2p.core.identity import PeerId
from legion_p2p.core.known_members import KnownMembers
from legion_p2p.core.membership import Membership

MAX_EXCHANGE_BYTES = 512 * 1024  # of announcements in one message: half a control frame


class SignedAnnouncements:
    """The newest of each member that is not dead."""

    def __init__(self, table: Membership, rng: random.Random) -> None:
        self._table = table
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

    def news_for(self, known: KnownMembers, own: bytes, excluding: PeerId, limit: int) -> tuple[bytes, ...]:
        """This peer's `own` and what one lacks that has these: at most `limit`, or as many as fit."""
        return self._choose([a.peer_id for a in self.known() if a.peer_id != excluding and known.lacks(a)], own, limit)

    def sample(self, own: bytes, excluding: PeerId, limit: int) -> tuple[bytes, ...]:
        """This peer's `own` and a random sample of the living: `limit`, or as many as fit."""
        return self._choose([a.peer_id for a in self.known() if a.peer_id != excluding], own, limit)

    def _choose(self, names: list[str], own: bytes, limit: int) -> tuple[bytes, ...]:
        peers = [PeerId(name) for name in names]
        chosen = [own]
        size = len(own)
        for peer in self._rng.sample(peers, min(limit - 1, len(peers))):
            size += len(self._signed[peer])
            if size > MAX_EXCHANGE_BYTES:
                break
            chosen.append(self._signed[peer])
        return tuple(chosen)
