"""Which contributions of which members a state of a shard contains, and what its updates say of these members.

An update adds its own; what it changed can be taken back.
"""

from collections.abc import Iterable, Sequence

import msgspec

from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.shards import Inclusion

MAX_SEQ_JUMP = 1 << 32  # between two contributions of one member: it numbers them one by one, so more is made up
MAX_TRACKED = 10_000  # members whose contributions are told apart: as many as there may be


class KnownMember(msgspec.Struct, frozen=True):
    """What was known of a member before an update."""

    peer: PeerId
    newest: int | None
    standing: int | None
    rounds: int | None
    is_seen: bool


class Inclusions:
    """Of one shard."""

    def __init__(self) -> None:
        self._newest: dict[PeerId, int] = {}
        """The one that contributed longest ago comes first."""
        self._standings: dict[PeerId, int] = {}
        self._rounds: dict[PeerId, int] = {}
        self._seen: set[PeerId] = set()
        """The members whose standing comes from an update that was applied here."""

    def __len__(self) -> int:
        return len(self._newest)

    def newest(self, peer: PeerId) -> int:
        """The number of the newest contribution of `peer`; -1 where there is none."""
        return self._newest.get(peer, -1)

    def by_peer(self) -> dict[PeerId, int]:
        """The numbers of the newest contributions."""
        return self._newest

    def rounds(self, peer: PeerId) -> int:
        """In how many versions a push of the member was, as far as that is counted."""
        return self._rounds.get(peer, 0)

    def standing(self, peer: PeerId) -> int | None:
        """How far the pushes of a member have gone with the others', as the newest update with one of them says."""
        return self._standings.get(peer)

    def has_seen(self, peer: PeerId) -> bool:
        """Whether that comes from an update that was applied here."""
        return peer in self._seen

    def all(self) -> tuple[Inclusion, ...]:
        """The newest contribution of every member."""
        standings, rounds = self._standings, self._rounds
        return tuple(Inclusion(peer, seq, standings.get(peer), rounds.get(peer)) for peer, seq in sorted(self._newest.items()))

    def known(self, included: Iterable[Inclusion]) -> tuple[KnownMember, ...]:
        """What is known of the members of an update before it is added."""
        peers = [PeerId(one.peer) for one in included]
        return tuple(
            KnownMember(p, self._newest.get(p), self._standings.get(p), self._rounds.get(p), p in self._seen) for p in peers
        )

    def add(self, included: Iterable[Inclusion]) -> None:
        """What an update contains, or a state that was taken over."""
        known = self._newest
        for inclusion in included:  # of hundreds of members, in each update
            peer, seq = PeerId(inclusion.peer), inclusion.seq
            newest = known.get(peer, -1)
            if seq <= newest + MAX_SEQ_JUMP:  # or a liar could have all that the member ever sends taken for included
                if newest >= 0:
                    del known[peer]
                known[peer] = seq if seq > newest else newest
                if inclusion.standing is not None:
                    self._standings[peer] = inclusion.standing
                if inclusion.rounds is not None:
                    self._rounds[peer] = inclusion.rounds
        while len(self._newest) > MAX_TRACKED:  # the member that contributed longest ago goes: newcomers must find room
            self._forget(next(iter(self._newest)))

    def note_seen(self, included: Iterable[Inclusion]) -> None:
        """The update with these was applied here."""
        self._seen.update(PeerId(i.peer) for i in included if i.standing is not None)

    def take_back(self, before: Sequence[KnownMember]) -> None:
        """An update is taken back: what was known before it is known again."""
        for one in before:
            self._forget(one.peer)
            if one.newest is not None:
                self._newest[one.peer] = one.newest
            if one.standing is not None:
                self._standings[one.peer] = one.standing
            if one.rounds is not None:
                self._rounds[one.peer] = one.rounds
            if one.is_seen:
                self._seen.add(one.peer)

    def clear(self) -> None:
        """It is another shard's history from now on."""
        self._newest, self._standings, self._rounds, self._seen = {}, {}, {}, set()

    def _forget(self, peer: PeerId) -> None:
        self._newest.pop(peer, None)
        self._standings.pop(peer, None)
        self._rounds.pop(peer, None)
        self._seen.discard(peer)
