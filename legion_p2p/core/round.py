"""The round of a shard at its owner: which contributions make the next version, and when it closes.

    collecting -> closed, when every member that is waited for has pushed
               -> closed, when a quorum has, and a grace period has passed that follows the spread of earlier arrivals
               -> closed, when all established members have (core/contribution.py), and the newcomers' grace is over
               -> closed, when `patience` periods of earlier rounds have passed since the first push (never where quorum is 1)

A push of an older version joins this round with a weight that falls with its staleness; nothing is turned away for being late.
Of the members that have hardly contributed yet a few are waited for, the rest is not. A member that missed `absent_after` rounds
is not waited for until it pushes again: a slow or stuck one delays nobody twice.
A contribution is known by (peer, seq): sent twice it counts once, and what an earlier update included is never included again.

Never happens: a round closes empty; two contributions of one member in one round; a duration that a user has to guess.
"""

import math
from collections.abc import Iterable, Mapping
from enum import Enum

import msgspec

from legion_p2p.core.contribution import established, first
from legion_p2p.core.identity import PeerId
from legion_p2p.core.inclusions import MAX_TRACKED
from legion_p2p.core.wire import Failure, Inclusion

LATE = "did not push in time"  # such a push is not lost: it joins the next round


class RoundConfig(msgspec.Struct, frozen=True):
    """When rounds close. All durations follow from what was measured; these are the factors and the first guesses."""

    quorum: float = 2 / 3
    """Share of the waited-for that suffices after the grace period; 1 waits for all of them."""

    first_grace_s: float = 2.0
    """Grace before any round was measured."""

    grace_spreads: float = 2.0
    """Grace as a multiple of the smoothed spread between first and last arrival. More: fuller rounds, slower ones."""

    max_grace_periods: float = 0.5
    """Grace is at most this share of a round's period, so that a straggler costs at most that."""

    newcomer_grace_periods: float = 0.1
    """Share of a round's period to wait for newcomers that go first, when all established members are there. More: they find into
    step sooner, and cost the others more meanwhile."""

    patience_periods: float = 2.4
    """A round without a quorum closes after this many periods. Members think an owner stuck after three: core/shard/stall.py."""

    min_patience_s: float = 5.0
    """Never less patient than this: one stall of a busy machine should not exclude it."""

    absent_after: int = 2
    """Rounds missed in a row until a member is no longer waited for."""

    ramp_pushes: int = 4
    """Pushes of a newcomer to each shard until they count in full: the moments of its inner optimizer are still cold. More: a
    gentler start, and more of the newcomer's first work for little."""

    smoothing: float = 0.3
    """Weight of the newest measurement in the averages."""


class Contribution(msgspec.Struct, frozen=True):
    """One push as the round sees it."""

    peer: PeerId
    seq: int
    version: int
    """The version that the member trained from."""
    tokens: int
    at: float
    steps: int = 1
    """Local steps that it is made of."""
    standing: int | None = None
    """Of its member, before the round: see `tensor/robust/standing.py`. None: not known, or of no use in this run."""
    network: int = 0
    """Those with one number came from one network: see `core.same_network`. 0: from another one than all others."""


class Verdict(Enum):
    """What became of a push."""

    ACCEPTED = "accepted"
    REPEATED = "repeated"
    """The round has it already."""
    INCLUDED = "included"
    """An earlier update contains it."""


class Closed(msgspec.Struct, frozen=True):
    """What the next version is made of."""

    version: int
    """The version that these contributions change."""
    contributions: tuple[Contribution, ...]
    expected: int
    failed: tuple[Failure, ...]


def staleness_weight(staleness: int) -> float:
    """Factor on the weight of a push that is `staleness` versions late: 1, 1/2, 1/3, ... Never zero: late is not lost."""
    return 1.0 / (1.0 + max(0, staleness))


def ramped_weight(tokens: int, n_pushed: int, ramp_pushes: int) -> int:
    """What a push counts after `n_pushed` others: 1/(n+1), 2/(n+1), ... of its tokens, after n = `ramp_pushes` all of them."""
    return max(1, tokens * min(n_pushed + 1, ramp_pushes + 1) // (ramp_pushes + 1))


class Pace:
    """How long rounds of this shard take, and how far apart pushes come."""

    def __init__(self, config: RoundConfig) -> None:
        self.config = config
        self.period_s: float | None = None
        self.spread_s: float | None = None
        self._closed_at: float | None = None

    def closed(self, arrivals: Iterable[float], now: float, *, by_patience: bool = False) -> None:
        """A round closed whose pushes came at `arrivals`, as far as known here.

        One that lasted until patience was over says nothing of how long rounds take: if it counted, members that push every
        second time would make patience longer each time.
        """
        if self._closed_at is not None and not by_patience:
            self.period_s = self._smooth(self.period_s, now - self._closed_at)
        self._closed_at = now
        times = sorted(arrivals)
        if len(times) > 1:
            self.spread_s = self._smooth(self.spread_s, times[-1] - times[0])

    def grace_s(self) -> float:
        """Seconds to wait for the rest once a quorum is there."""
        if self.period_s is None:
            return self.config.first_grace_s
        longest_s = self.config.max_grace_periods * self.period_s
        return longest_s if self.spread_s is None else min(self.config.grace_spreads * self.spread_s, longest_s)

    def newcomer_grace_s(self) -> float:
        """Seconds to wait for newcomers once all others are there."""
        return self.config.first_grace_s if self.period_s is None else self.config.newcomer_grace_periods * self.period_s

    def patience_s(self) -> float:
        """Seconds to wait for a quorum after the first push."""
        if self.period_s is None:
            return 4 * self.config.min_patience_s
        return max(self.config.min_patience_s, self.config.patience_periods * self.period_s)

    def _smooth(self, old: float | None, new: float) -> float:
        return new if old is None else old + self.config.smoothing * (new - old)


class ShardRound:
    """Collects contributions to one shard, version after version, while this peer owns it."""

    def __init__(self, config: RoundConfig, version: int, included: Mapping[PeerId, int], pace: Pace | None = None) -> None:
        """`pace`: of the versions before, as this peer saw them come."""
        self.config = config
        self.pace = pace or Pace(config)
        self.version = version
        self._included = dict(included)
        self._waiting: dict[PeerId, Contribution] = {}
        self._expected: frozenset[PeerId] = frozenset()
        self._missed: dict[PeerId, int] = {}
        self._known: tuple[frozenset[PeerId], frozenset[PeerId]] | None = None
        self._quorum_at: float | None = None
        self._failures: dict[PeerId, str] = {}

    @property
    def waiting(self) -> tuple[Contribution, ...]:
        """What has come so far, by peer."""
        return tuple(self._waiting[peer] for peer in sorted(self._waiting))

    def expect(self, members: Iterable[PeerId], now: float) -> None:
        """These members are training now."""
        self._expected = frozenset(members)
        self._missed = {peer: n for peer, n in self._missed.items() if peer in self._expected}
        self._known = None
        self._check_quorum(now)

    def push(self, contribution: Contribution, now: float) -> Verdict:
        """A contribution arrived."""
        peer = contribution.peer
        if contribution.seq <= self._included.get(peer, -1):
            return Verdict.INCLUDED
        held = self._waiting.get(peer)
        if held is not None and held.seq >= contribution.seq:
            return Verdict.REPEATED
        self._waiting[peer] = contribution
        if self._missed.pop(peer, None) is not None:
            self._known = None
        self._failures.pop(peer, None)
        self._check_quorum(now)
        return Verdict.ACCEPTED

    def refused(self, peer: PeerId, reason: str) -> None:
        """A push of `peer` was not usable; the round's result will say so."""
        self._waiting.pop(peer, None)
        self._failures[peer] = reason
        self._forget_lost_quorum()

    def ready(self, now: float) -> bool:
        """True when the round should close now."""
        deadline = self.next_deadline()
        return bool(self._waiting) and (self._complete() or (deadline is not None and now >= deadline))

    def next_deadline(self) -> float | None:
        """When the round closes if nothing else comes; None while nothing can close it."""
        if not self._waiting:
            return None
        if self._complete():
            return 0.0
        if self.config.quorum >= 1:
            return None
        deadline = min(c.at for c in self._waiting.values()) + self.pace.patience_s()
        if self._quorum_at is not None:
            deadline = min(deadline, self._quorum_at + self.pace.grace_s())
        established = self._look()[1]
        if established and established <= self._waiting.keys():
            deadline = min(deadline, max(self._waiting[p].at for p in established) + self.pace.newcomer_grace_s())
        return deadline

    def close(self, now: float) -> Closed:
        """End the round. Call `advanced` once the next version exists; what comes meanwhile joins the next round."""
        contributions = self.waiting
        here = {c.peer for c in contributions}
        failed = dict(self._failures)
        for peer in self._expected - here:
            failed.setdefault(peer, LATE)
            self._missed[peer] = self._missed.get(peer, 0) + 1
        without_quorum = self._quorum_at is None and not self._complete()
        self._known = None
        self.pace.closed((c.at for c in contributions), now, by_patience=without_quorum)
        self._waiting = {}
        self._failures = {}
        self._quorum_at = None
        failures = tuple(Failure(peer, reason[:200]) for peer, reason in sorted(failed.items()))
        return Closed(self.version, contributions, len(self._expected | here), failures)

    def advanced(self, version: int, included: Iterable[Inclusion]) -> None:
        """The shard has a new version, made here or elsewhere, with these contributions in it."""
        self.version = version
        self._known = None
        for inclusion in included:
            peer = PeerId(inclusion.peer)
            self._included[peer] = max(inclusion.seq, self._included.pop(peer, -1))
            held = self._waiting.get(peer)
            if held is not None and held.seq <= inclusion.seq:
                del self._waiting[peer]
        while len(self._included) > MAX_TRACKED:
            del self._included[next(iter(self._included))]
        self._forget_lost_quorum()

    def waited_for(self) -> frozenset[PeerId]:
        """Members that are training and not known as absent; those of them that go first, unless all have to be in."""
        return self._look()[0]

    def _look(self) -> tuple[frozenset[PeerId], frozenset[PeerId]]:
        """The members that are waited for, and the established ones among them."""
        if self._known is None:  # asked for at every push, and the same for most of a round
            present = frozenset(p for p in self._expected if self._missed.get(p, 0) < self.config.absent_after)
            if self.config.quorum >= 1:
                self._known = present, present
            else:
                self._known = first(present, self._included, self.version), established(present, self._included, self.version)
        return self._known

    def _complete(self) -> bool:
        return self.waited_for() <= self._waiting.keys()

    def _check_quorum(self, now: float) -> None:
        if self._quorum_at is None:
            self._quorum_at = now
        self._forget_lost_quorum()

    def _forget_lost_quorum(self) -> None:
        waited_for = self.waited_for()
        here = len(waited_for & self._waiting.keys())
        if not self._waiting or here < math.ceil(self.config.quorum * len(waited_for) - 1e-9):
            self._quorum_at = None
