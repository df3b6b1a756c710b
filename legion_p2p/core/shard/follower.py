"""Whose versions of a shard a member takes over, and who is asked for what is missing here.

    CURRENT   nobody that counts is known to have more
    BEHIND    `source` has more: it is to be asked
    FETCHING  it is being asked

    CURRENT  -> BEHIND    the owner announces another chain than ours, or has been ahead of us for `announce_s`;
                          or this peer owns the shard, and a member announces a newer version;
                          or it does, and most of the others have held another chain than ours for OUTVOTED_S;
                          or an update, a push or an answer shows that something is missing here;
                          or a version that was promised does not come (core/forwarding/overdue.py)
    BEHIND   -> FETCHING  `Fetch` is carried out
    FETCHING -> CURRENT   the answer has come, or none

A peer whose claim came to nothing is left alone for a while, twice as long each time. A member follows the owner that rendezvous
names; an owner follows only what it can check: `may_make` in belief.py.

While a version is promised, the owner's word that it has it is no reason to ask for it: its bytes would be paid for twice.

Never happens: two fetches at a time; a peer that lies about being ahead is asked more often than its pauses allow, or keeps an
honest one from being asked.
"""

from collections import Counter
from enum import Enum

import msgspec

from legion_p2p.core.announcement import Mark
from legion_p2p.core.chain import Chain
from legion_p2p.core.forwarding.overdue import FetchFrom, Inquire, Overdue
from legion_p2p.core.identity import PeerId
from legion_p2p.core.shard.follower_events import (
    Announced,
    AskBegun,
    AskEnded,
    Event,
    Fetch,
    FetchEnded,
    Inquired,
    NotComing,
    Outvoted,
    Parted,
    Promised,
    Shown,
    TurnedAway,
    Unreachable,
)
from legion_p2p.core.shard.life_events import Advanced, Owners, TakenBack

OUTVOTED_S = 30.0  # in which members come over to the owner's chain, unless they refuse it
MAX_CLAIM_PAUSE_S = 60.0  # between two looks at what a member claims whose claims come to nothing
MAX_CLAIMS = 256  # members whose claims about one shard are remembered


class FollowerState(Enum):
    CURRENT = "current"
    BEHIND = "behind"
    FETCHING = "fetching"


class _Claim(msgspec.Struct):
    mark: Mark | None = None
    not_before: float = 0.0
    pause_s: float = 0.0


class Follower:
    """What one peer knows about who is ahead of it in one shard."""

    def __init__(self, me: PeerId, chain: Chain, announce_s: float) -> None:
        """`announce_s`: between two announcements of a member."""
        self.state = FollowerState.CURRENT
        self.source: PeerId | None = None
        """The peer to ask, or being asked."""
        self._me = me
        self._chain = chain
        self._announce_s = announce_s
        self._owner: PeerId | None = None
        self._claims: dict[PeerId, _Claim] = {}
        self._patient: Counter[PeerId] = Counter()
        """Peers that are being asked anyway."""
        self._behind_at = 0
        self._behind_since: float | None = None
        """When the owner was first seen ahead of the version that is held."""
        self._outvoted: Mark | None = None
        """As the owner: what most of the others hold instead."""
        self._outvoted_since = 0.0
        self._parted: tuple[float, float] | None = None
        """As the owner: since when most of the others have been seen in a newer version that does not follow from what is held
        here, and when last."""
        self._deadline: float | None = None
        self._overdue = Overdue()
        self._inquiry: Inquire | None = None
        self._within_s: float | None = None
        """How long the source may take at least."""

    @property
    def is_behind(self) -> bool:
        """A peer is to be asked, now or later."""
        return self.state is FollowerState.BEHIND or self._deadline is not None

    @property
    def is_at_rest(self) -> bool:
        """Nobody claims to have more, or did a moment ago."""
        return self.state is FollowerState.CURRENT and not self._claims and self._behind_since is None

    def handle(self, event: Event, now: float) -> None:
        """Take in what happened."""
        match event:
            case Owners(owners):
                if owners.owner != self._owner:
                    self._owner = owners.owner
                    self._behind_since = None
            case Announced(peer, mark):
                self._announced(peer, mark, now)
            case Outvoted(mark):
                if mark is None or self._outvoted is None:
                    self._outvoted_since = now
                self._outvoted = mark
            case Parted():
                since, last = self._parted or (now, now)
                self._parted = (since if now - last <= 2 * MAX_CLAIM_PAUSE_S else now), now
            case Shown(peer, proved):
                if proved or self._not_before(peer) <= now:
                    self._follow(peer)
            case Promised(promise):
                self._overdue.promised(promise)
            case NotComing(promise):
                self._overdue.failed(promise, now)
            case Inquired(peer, version):
                self._overdue.answered(peer, version, now)
            case Advanced():
                self._advanced()
            case TakenBack():
                self._behind_since, self._overdue = None, Overdue()
            case AskBegun(peer):
                self._patient[peer] += 1
            case AskEnded(peer):
                self._patient -= Counter([peer])
            case FetchEnded(peer, came_forward, trusted):
                self._fetched(peer, came_forward, trusted, now)
            case TurnedAway(peer, retry_s):
                self._pause(peer, now + retry_s, 0.0)
                self._ended(peer)
            case Unreachable(peer):
                if peer == self.source:
                    self._overdue.unreachable(now)
                self._pause(peer, now + self._announce_s, 0.0)
                self._ended(peer)
        self._look(now)

    def handle_timeout(self, now: float) -> None:
        """Time has passed."""
        self._look(now)

    def is_left_alone(self, now: float) -> bool:
        """As the owner: most of the others have been elsewhere for long, in a newer version, so this peer is to follow them."""
        return self._parted is not None and now - self._parted[0] >= OUTVOTED_S

    def poll(self) -> Fetch | None:
        """The peer to ask now; None: nobody."""
        if self.state is not FollowerState.BEHIND or self.source is None:
            return None
        self.state = FollowerState.FETCHING
        return Fetch(self.source, self._within_s)

    def poll_inquiry(self) -> Inquire | None:
        """The peer to ask which version it has; None: nobody. That needs no turn."""
        asked, self._inquiry = self._inquiry, None
        return asked

    def next_deadline(self) -> float | None:
        """When `handle_timeout` has something to do; None while only an event changes anything."""
        return self._deadline if self.state is FollowerState.CURRENT else None

    def forget(self) -> None:
        """This peer is in another region: what members here claimed counts no longer."""
        self._claims.clear()
        self._behind_since, self._overdue = None, Overdue()
        if self.state is FollowerState.BEHIND:
            self.state, self.source = FollowerState.CURRENT, None

    # inner steps

    def _announced(self, peer: PeerId, mark: Mark | None, now: float) -> None:
        claim = self._claims.get(peer)
        if mark is None or (mark.version <= self._chain.version and self._chain.holds(mark) is not False):
            if claim is not None:
                claim.mark = None
                if claim.not_before <= now:
                    del self._claims[peer]
            if peer == self._owner:
                self._behind_since = None
            return
        if claim is None:
            claim = self._claims.setdefault(peer, _Claim())
            self._trim()
        claim.mark = mark

    def _advanced(self) -> None:
        """What was to be asked for may have come by itself."""
        self._parted = None
        claim = None if self.source is None else self._claims.get(self.source)
        if self.state is FollowerState.BEHIND and claim is not None and claim.mark is not None and self._chain.holds(claim.mark):
            self.state, self.source = FollowerState.CURRENT, None

    def _look(self, now: float) -> None:
        """Find a peer to ask, among those that claim to have more; or when to look again."""
        self._deadline = None
        if self.state is not FollowerState.CURRENT:
            return
        match self._overdue.look(self._chain.version, now):
            case Inquire() as asked:
                self._inquiry = asked
            case FetchFrom(source, within_s):
                self._follow(source, within_s)
                return
        deadline = self._overdue.next_deadline()
        if self._owner == self._me:
            claims = sorted(self._claims.items(), key=lambda item: (item[1].pause_s, item[0]))
        else:
            claim = None if self._owner is None else self._claims.get(self._owner)
            claims = [] if claim is None or self._owner is None else [(self._owner, claim)]
        for peer, claim in claims:
            counts_from = self._counts_from(claim.mark, now)
            if counts_from is None or peer in self._patient:
                continue
            due = max(counts_from, claim.not_before)
            if due <= now:
                self._follow(peer)
                return
            deadline = due if deadline is None else min(deadline, due)
        self._deadline = deadline

    def _counts_from(self, mark: Mark | None, now: float) -> float | None:
        """When this mark is a reason to ask for what is missing; None: never.

        The update is most likely on its way: fetched at once, its bytes would be paid for twice.
        """
        if mark is None:
            return None
        is_ahead = mark.version > self._chain.version
        if self._owner == self._me:
            is_outvoted = mark == self._outvoted and self._chain.holds(mark) is False
            return now if is_ahead else self._outvoted_since + OUTVOTED_S if is_outvoted else None
        if self._chain.holds(mark) is False:
            return now
        if not is_ahead:
            self._behind_since = None
            return None
        if self._behind_since is None or self._behind_at != self._chain.version:
            self._behind_at, self._behind_since = self._chain.version, now
        promise, overdue_at = self._overdue.promise, self._overdue.next_deadline()
        is_promised = promise is not None and mark.version <= promise.version
        return max(self._behind_since + self._announce_s, overdue_at or 0.0 if is_promised else 0.0)

    def _follow(self, peer: PeerId, within_s: float | None = None) -> None:
        if self.state is not FollowerState.FETCHING and peer != self._me:
            self.state, self.source, self._within_s = FollowerState.BEHIND, peer, within_s

    def _fetched(self, peer: PeerId, came_forward: bool, trusted: bool, now: float) -> None:
        claim = self._claims.get(peer)
        before_s = 0.0 if claim is None else claim.pause_s
        if not came_forward:
            pause_s = self._announce_s if trusted else min(max(2 * before_s, self._announce_s), MAX_CLAIM_PAUSE_S)
            self._pause(peer, now + pause_s, pause_s)
        elif claim is not None:
            claim.not_before = claim.pause_s = 0.0
            if claim.mark is None or claim.mark.version <= self._chain.version:
                del self._claims[peer]
        self._ended(peer)

    def _ended(self, peer: PeerId) -> None:
        if self.state is FollowerState.FETCHING and self.source == peer:
            self.state, self.source = FollowerState.CURRENT, None

    def _pause(self, peer: PeerId, until: float, pause_s: float) -> None:
        claim = self._claims.setdefault(peer, _Claim())
        claim.not_before, claim.pause_s = until, pause_s
        self._trim()

    def _not_before(self, peer: PeerId) -> float:
        claim = self._claims.get(peer)
        return 0.0 if claim is None else claim.not_before

    def _trim(self) -> None:
        while len(self._claims) > MAX_CLAIMS:
            del self._claims[next(iter(self._claims))]
