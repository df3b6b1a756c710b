"""The history of a shard as one peer holds it: its version, its digest, and the updates that led there.

Updates form a chain: each names the digest it starts from and the digest it ends in. Peers that hold the same digest hold the
same bytes; two different digests of one version mean that two peers both believed they owned the shard (a split brain).

What to do with a header that comes in:

    it starts where we are                        -> APPLY
    we hold that version with that digest         -> KNOWN
    it starts beyond our version                  -> BEHIND: fetch what is missing, then apply
    anything else                                 -> FORKED: the owner that rendezvous ranks higher prevails

The log is bounded in entries and in bytes; a peer that falls behind its start fetches the whole shard.

In a run with `verify = "late"` the newest versions may be taken back (core/shard/provisional.py). What they changed of what is
known of members is remembered until they are final.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sized
from enum import Enum

import msgspec

from legion_p2p.core.announcement import Mark, mark_of
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.contribution import first
from legion_p2p.core.identity import PeerId
from legion_p2p.core.inclusions import MAX_SEQ_JUMP, Inclusions, KnownMember
from legion_p2p.core.messages.evidence import SignedHeader
from legion_p2p.core.seniority import salt_after
from legion_p2p.core.wire import MAX_UPDATES, Inclusion, Update, UpdateHeader

MAX_LOG_ENTRIES = MAX_UPDATES  # what one reply can carry
MAX_DIGESTS = 1024  # versions of which the digest is remembered: minutes of history, 40 KiB a shard


class Step(Enum):
    APPLY = "apply"
    KNOWN = "known"
    BEHIND = "behind"
    FORKED = "forked"
    REPLACES = "replaces"
    """It starts from an earlier version; those since then may be taken back (core/shard/provisional.py)."""
    REFUSED = "refused"
    """It was taken back before, or follows what is proven to be wrong."""


class LogEntry(msgspec.Struct, frozen=True):
    """One update that was applied."""

    header: UpdateHeader
    update: Update


class _Before(msgspec.Struct, frozen=True):
    """What an update changed, as it was before it."""

    digest: bytes
    owner: PeerId | None
    salt: bytes
    members: tuple[KnownMember, ...]
    made_by: SignedHeader
    """The header of the update: the log may not reach back to it."""


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
        self._inclusions = Inclusions()
        self._digests: BoundedMap[int, bytes] = BoundedMap(MAX_DIGESTS)
        self._digests[version] = digest
        self._before: dict[int, _Before] = {}
        """By the version that can be taken back."""
        self._inclusions.add(included)

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

    def applied(self, header: UpdateHeader, update: Update, *, is_provisional: bool = False) -> None:
        """The update was applied, and the result has the digest that it promised. `is_provisional`: it may be taken back."""
        if is_provisional:
            members = self._inclusions.known(header.included)
            shown = SignedHeader(update.header, update.signature)
            self._before[self.version + 1] = _Before(self.digest, self.owner, self.salt, members, shown)
        else:
            self._before.clear()
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
        self._inclusions.add(header.included)
        self._inclusions.note_seen(header.included)

    @property
    def final(self) -> int:
        """The newest version that will not be taken back."""
        return self.version - len(self._before)

    def settle(self, version: int) -> None:
        """No version up to this one will be taken back."""
        for settled in [v for v in self._before if v <= version]:
            del self._before[settled]

    def take_back(self, version: int) -> None:
        """Return to an earlier version, of which all later ones are provisional."""
        while self.version > version:
            before = self._before.pop(self.version)
            entry = self._log.pop(self.version, None)
            if entry is not None:
                self._log_bytes -= _size(entry.update)
                del self._older_bytes[self.version]
            self._digests.pop(self.version, None)
            self._inclusions.take_back(before.members)
            self.version -= 1
            self.digest, self.owner, self.salt = before.digest, before.owner, before.salt

    def provisional_header(self, version: int) -> SignedHeader | None:
        """That of an update that may be taken back; None of any other."""
        before = self._before.get(version)
        return None if before is None else before.made_by

    def shelve(self, keep: Callable[[bytes | memoryview], bytes | memoryview]) -> None:
        """Hold the bytes of all updates in the log as `keep` gives them back."""
        for version, entry in self._log.items():
            self._log[version] = LogEntry(entry.header, with_payload(entry.update, keep(entry.update.payload)))

    def rebased(self, digest: bytes, owner: PeerId, included: Iterable[Inclusion] = ()) -> None:
        """A swarm of one replaced the bytes: a new version without an update that others could apply."""
        self._advance(self.version + 1, digest)
        self._forget_log()
        self.owner = owner
        self._inclusions.add(included)

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
        self._inclusions.clear()
        self._inclusions.add(included)

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

    def digest_of(self, version: int) -> bytes | None:
        """The digest of a version that this chain came through, as far as it is remembered."""
        return self._digests.get(version)

    def passed_otherwise(self, version: int, digest: bytes) -> bool:
        """True if this chain was in that version with other bytes."""
        return self._digests.get(version, digest) != digest

    def included(self) -> tuple[Inclusion, ...]:
        """The newest contribution of every member that this state contains."""
        return self._inclusions.all()

    def rounds(self, peer: PeerId) -> int:
        """In how many versions a push of the member was, as far as that is counted."""
        return self._inclusions.rounds(peer)

    def counts_right(self, header: UpdateHeader, owner_rounds: int) -> bool:
        """Whether the next update says what follows of the salt, and of how long members have taken part."""
        if not owner_rounds:
            return not header.salt and all(i.rounds is None for i in header.included)
        right_salt = header.salt == salt_after(self.version, self.digest, self.salt, owner_rounds)
        return right_salt and all(i.rounds == self.rounds(PeerId(i.peer)) + 1 for i in header.included)

    def standing(self, peer: PeerId) -> int | None:
        """How far the pushes of a member have gone with the others', as the newest update with one of them says."""
        return self._inclusions.standing(peer)

    def agrees_on_standings(self, header: UpdateHeader) -> bool:
        """Whether the owner of the next update begins with the standings that the updates before ended with, as far as they were
        seen here."""
        if header.account is None or len(header.account.standings) != len(header.included):
            return header.account is None or all(i.standing is None for i in header.included)
        before = zip(header.included, header.account.standings, strict=True)
        known = self._inclusions
        return all(known.standing(PeerId(i.peer)) == standing for i, standing in before if known.has_seen(PeerId(i.peer)))

    def newest(self, peer: PeerId) -> int:
        """The number of the newest contribution of `peer` that this state contains; -1 where it contains none."""
        return self._inclusions.newest(peer)

    def first(self, members: Iterable[PeerId]) -> frozenset[PeerId]:
        """See core.contribution."""
        return first(members, self._inclusions.by_peer(), self.version)

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
        self._before.clear()
        self._log.clear()
        self._log_bytes = 0
        self._older_bytes.clear()


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
