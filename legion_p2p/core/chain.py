"""The history of a shard as one peer holds it: its version, its digest, and the updates that led there.

Updates form a chain: each names the digest it starts from and the digest it ends in. Peers that hold the same digest hold the
same bytes; two different digests of one version mean that two peers both believed they owned the shard (a split brain).

What to do with a header that comes in:

    it starts where we are                        -> APPLY
    we hold that version with that digest         -> KNOWN
    it starts beyond our version                  -> BEHIND: fetch what is missing, then apply
    anything else                                 -> FORKED: the owner that rendezvous ranks higher prevails

The log is bounded in entries and in bytes; a peer that falls behind its start fetches the whole shard.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sized
from enum import Enum

import msgspec

from legion_p2p.core.announcement import Mark, mark_of
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.contribution import first
from legion_p2p.core.identity import PeerId
from legion_p2p.core.seniority import salt_after
from legion_p2p.core.wire import MAX_UPDATES, Inclusion, Update, UpdateHeader

MAX_LOG_ENTRIES = MAX_UPDATES  # what one reply can carry
MAX_DIGESTS = 1024  # versions of which the digest is remembered: minutes of history, 40 KiB a shard
MAX_SEQ_JUMP = 1 << 32  # between two contributions of one member: it numbers them one by one, so more is made up
MAX_TRACKED = 10_000  # members whose contributions are told apart: as many as there may be


class Step(Enum):
    APPLY = "apply"
    KNOWN = "known"
    BEHIND = "behind"
    FORKED = "forked"


class LogEntry(msgspec.Struct, frozen=True):
    """One update that was applied."""

    header: UpdateHeader
    update: Update


class Chain:
    """Version, digest and log of one shard."""

    def __init__(
        self,
        version: int,
        digest: bytes,
        max_log_bytes: int,
        included: Iterable[Inclusion] = (),
        owner: PeerId | None = None,
        *,
        salt: bytes = b"",
    ) -> None:
        self.version = version
        self.digest = digest
        self.owner = owner
        """Whose updates made this chain, as far as known."""
        self.salt = salt
        """By which the owner is found: see core.seniority."""
        self.n_replaced = 0
        """How often it was exchanged for another one."""
        self._max_log_bytes = max_log_bytes
        self._log: OrderedDict[int, LogEntry] = OrderedDict()  # by the version that it made
        self._log_bytes = 0
        self._older_bytes: dict[int, int] = {}
        """Of each version in the log: the bytes of all updates that were in the log before it, since the log was begun."""
        self._included: dict[PeerId, int] = {}
        self._standings: dict[PeerId, int] = {}
        self._rounds: dict[PeerId, int] = {}
        self._seen: set[PeerId] = set()
        """The members whose standing comes from an update that was applied here."""
        self._digests: BoundedMap[int, bytes] = BoundedMap(MAX_DIGESTS)
        self._digests[version] = digest
        self._include(included)

    @property
    def mark(self) -> Mark:
        return mark_of(self.version, self.digest)

    def judge(self, header: UpdateHeader) -> Step:
        """What to do with an update, by its header."""
        if header.version == self.version + 1 and header.base_digest == self.digest:
            return Step.APPLY
        if header.version <= self.version and self._digests.get(header.version) == header.digest:
            return Step.KNOWN
        if header.version > self.version + 1:
            return Step.BEHIND
        return Step.FORKED

    def passed(self, version: int, digest: bytes) -> bool:
        """True if this chain came through that state."""
        return self._digests.get(version) == digest

    def holds(self, mark: Mark) -> bool | None:
        """Whether a mark lies on this chain: True, False, or None where it is too old or too new to tell."""
        digest = self._digests.get(mark.version)
        return None if digest is None else mark_of(mark.version, digest) == mark

    def applied(self, header: UpdateHeader, update: Update) -> None:
        """The update was applied, and the result has the digest that it promised."""
        self._advance(header.version, header.digest)
        last = self._log.get(self.version - 1)
        older = 0 if last is None else self._older_bytes[self.version - 1] + _size(last.update)
        self._older_bytes[header.version] = older
        self._log[header.version] = LogEntry(header, _by_itself(update))
        self._log_bytes += _size(update)
        while self._log and (len(self._log) > MAX_LOG_ENTRIES or self._log_bytes > self._max_log_bytes):
            version, oldest = self._log.popitem(last=False)
            del self._older_bytes[version]
            self._log_bytes -= _size(oldest.update)
        self.owner = PeerId(header.owner)
        self.salt = header.salt
        self._include(header.included)
        self._seen.update(PeerId(i.peer) for i in header.included if i.standing is not None)

    def shelve(self, keep: Callable[[bytes | memoryview], bytes | memoryview]) -> None:
        """Hold the bytes of all updates in the log as `keep` gives them back."""
        for version, entry in self._log.items():
            self._log[version] = LogEntry(entry.header, with_payload(entry.update, keep(entry.update.payload)))

    def rebased(self, digest: bytes, owner: PeerId, included: Iterable[Inclusion] = ()) -> None:
        """A swarm of one replaced the bytes: a new version without an update that others could apply."""
        self._advance(self.version + 1, digest)
        self._forget_log()
        self.owner = owner
        self._include(included)

    def replaced(
        self, version: int, digest: bytes, owner: PeerId, included: Iterable[Inclusion] = (), *, salt: bytes = b""
    ) -> None:
        """The shard was taken over whole, as `owner` holds it: this is another chain from now on."""
        self.version = version
        self.digest = digest
        self.owner = owner
        self.n_replaced += 1
        self._forget_log()
        self._digests.clear()
        self._digests[version] = digest
        self.salt = salt
        self._included, self._standings, self._rounds, self._seen = {}, {}, {}, set()
        self._include(included)

    def since(self, version: int, digest: bytes) -> tuple[Update, ...] | None:
        """The updates that lead from a state to ours; None where the log does not reach back, or never held that state."""
        if version == self.version and digest == self.digest:
            return ()
        first = self._log.get(version + 1)
        if first is None or first.header.base_digest != digest:
            return None
        return tuple(entry.update for v, entry in self._log.items() if v > version)

    def bytes_since(self, version: int, digest: bytes) -> int | None:
        """How many bytes `since` would give; None where it gives none."""
        if version == self.version and digest == self.digest:
            return 0
        first = self._log.get(version + 1)
        if first is None or first.header.base_digest != digest:
            return None
        # Asked of thousands of states at once, by strangers too: so nothing is summed here.
        newest = self._log[self.version]
        return self._older_bytes[self.version] + _size(newest.update) - self._older_bytes[version + 1]

    def passed_otherwise(self, version: int, digest: bytes) -> bool:
        """True if this chain was in that version with other bytes."""
        return self._digests.get(version, digest) != digest

    def included(self) -> tuple[Inclusion, ...]:
        """The newest contribution of every member that this state contains."""
        standings, rounds = self._standings, self._rounds
        return tuple(Inclusion(peer, seq, standings.get(peer), rounds.get(peer)) for peer, seq in sorted(self._included.items()))

    def rounds(self, peer: PeerId) -> int:
        """In how many versions a push of the member was, as far as that is counted."""
        return self._rounds.get(peer, 0)

    def counts_right(self, header: UpdateHeader, owner_rounds: int) -> bool:
        """Whether the next update says what follows of the salt, and of how long members have taken part."""
        if not owner_rounds:
            return not header.salt and all(i.rounds is None for i in header.included)
        right_salt = header.salt == salt_after(self.version, self.digest, self.salt, owner_rounds)
        return right_salt and all(i.rounds == self.rounds(PeerId(i.peer)) + 1 for i in header.included)

    def standing(self, peer: PeerId) -> int | None:
        """How far the pushes of a member have gone with the others', as the newest update with one of them says."""
        return self._standings.get(peer)

    def agrees_on_standings(self, header: UpdateHeader) -> bool:
        """Whether the owner of the next update begins with the standings that the updates before ended with, as far as they were
        seen here."""
        if header.account is None or len(header.account.standings) != len(header.included):
            return header.account is None or all(i.standing is None for i in header.included)
        before = zip(header.included, header.account.standings, strict=True)
        return all(self._standings.get(PeerId(i.peer)) == standing for i, standing in before if i.peer in self._seen)

    def newest(self, peer: PeerId) -> int:
        """The number of the newest contribution of `peer` that this state contains; -1 where it contains none."""
        return self._included.get(peer, -1)

    def first(self, members: Iterable[PeerId]) -> frozenset[PeerId]:
        """See core.contribution."""
        return first(members, self._included, self.version)

    def includes(self, peer: PeerId, seq: int) -> bool:
        return seq <= self.newest(peer)

    def is_plausible(self, peer: PeerId, seq: int) -> bool:
        """Whether a contribution of this number can be the next one of `peer`, some lost ones allowed for."""
        return seq <= self.newest(peer) + MAX_SEQ_JUMP

    def was_made_by(self, peer: PeerId) -> bool:
        """Whether `peer` made the version that is held, or one of those in the log."""
        return peer == self.owner or any(entry.header.owner == peer for entry in self._log.values())

    def entry(self, version: int) -> LogEntry | None:
        """The update that made this version; None where the log does not have it."""
        return self._log.get(version)

    def newest_states(self, n: int) -> list[tuple[int, bytes]]:
        """The newest versions that this chain came through, the oldest of them first, with their digests."""
        return list(self._digests.items())[-n:]

    def last(self) -> LogEntry | None:
        return next(reversed(self._log.values())) if self._log else None

    def _advance(self, version: int, digest: bytes) -> None:
        self.version = version
        self.digest = digest
        self._digests[version] = digest

    def _forget_log(self) -> None:
        self._log.clear()
        self._log_bytes = 0
        self._older_bytes.clear()

    def _include(self, included: Iterable[Inclusion]) -> None:
        known = self._included
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
        while len(self._included) > MAX_TRACKED:  # the member that contributed longest ago goes: newcomers must find room
            gone = next(iter(self._included))
            del self._included[gone]
            self._standings.pop(gone, None)
            self._rounds.pop(gone, None)
            self._seen.discard(gone)


def with_payload(update: Update, payload: bytes | memoryview) -> Update:
    """The update, with the same payload held elsewhere."""
    return msgspec.structs.replace(update, payload=payload)


def _by_itself(update: Update) -> Update:
    """The update, without the rest of the message that it came in: its payload is a view of that, which would keep all of it."""
    payload = update.payload
    if isinstance(payload, memoryview) and isinstance(payload.obj, Sized) and len(payload.obj) > 2 * len(payload):
        return with_payload(update, bytes(payload))
    return update


def _size(update: Update) -> int:
    return len(update.header) + len(update.payload)
