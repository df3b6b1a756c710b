"""Who is in the run, and who still lives.

Each member is ALIVE, SUSPECT or DEAD, as seen from here:

    ALIVE   -> SUSPECT  after `suspect_after_s` of silence; or at once, when a connection to it breaks or another peer accuses it.
                        In a large region announcements are rare (ring_watch.py): there it asks whom it watches after such a
                        silence, and suspects one that does not answer; of others as much longer a silence is needed
    SUSPECT -> DEAD     after `grace_s` more of silence; probes go out meanwhile
    any     -> ALIVE    on any message from it: a late packet is better evidence than a timer
    any     -> gone     when it says that it leaves, or `forget_s` after its death

Anybody can announce members that do not exist. So a member counts for nothing in its region until this peer has exchanged a
message with it, over a connection that its key has proved: see `believed`. This peer asks each for one (`Greet`), a few times.

Announcements are ordered by (incarnation, seq), so an old one that comes late changes nothing. Being accused of death, a peer
raises its incarnation and announces itself: the refutation of SWIM (Das, Gupta, Motivala 2002). A peer that was itself asleep
(suspended, stopped, starved of CPU) heard nobody in that time, so it holds nobody's silence against them: the idea of Lifeguard
(Dadgar et al. 2017).

Never happens: a member is DEAD without having been SUSPECT for `grace_s`; a silent member stays ALIVE for longer than its
announcements are apart, twice over; this peer suspects itself.
"""

import math
from collections import deque
from collections.abc import Collection
from typing import Any

import msgspec

from legion_p2p.core.announcement import MAX_MEMBERS, MAX_SUSPECTED, Announcement, peer_of
from legion_p2p.core.envoys import MAX_ENVOYS_KEPT, envoys, far_grown
from legion_p2p.core.identity import PeerId
from legion_p2p.core.member import (
    Accuse,
    Alarm,
    Changed,
    CheckOn,
    Effect,
    Greet,
    Liveness,
    Member,
    Met,
    Probe,
    Refute,
    has_duties,
    role_of,
)
from legion_p2p.core.ring_watch import MANY_SUSPECTED, grown, watched

NEWCOMER_S = 60.0  # of silence of one that is in no region yet: until then it has found one, and is announced there
MAX_GREETINGS = 6  # of a member that does not answer, each twice as long after the last: it may not exist


class MembershipConfig(msgspec.Struct, frozen=True):
    """How patient to be. The defaults declare a killed peer dead within about 7 s."""

    announce_s: float = 2.0
    """Seconds between announcements in a region of a few; in a larger one more (`core.ring_watch`). Shorter: fresher views,
    more gossip."""

    suspect_after_s: float = 4.5
    """Seconds of silence until a member is suspected: two announcements lost. Shorter: more probes."""

    grace_s: float = 3.0
    """Seconds that a suspect has to answer. Longer: fewer false deaths, slower repair."""

    look_s: float = 1.5
    """In a large region: seconds that a member which is asked for a sign of life has to answer, before it is a suspect, and as
    many as a suspect has before it is named to the others. Longer: fewer false suspicions."""

    probe_every_s: float = 1.0
    """Seconds between two probes of a suspect."""

    forget_s: float = 600.0
    """Seconds until a dead member leaves the table, so that its return is recognised until then."""

    asleep_after_s: float = 3.0
    """A gap this long between two looks at the clock means that this peer itself stood still."""


class Membership:
    """The table of one run, as seen by `me`."""

    def __init__(self, me: PeerId, config: MembershipConfig, now: float) -> None:
        self.me = me
        self.region = ""
        """Of this peer. Of other regions only envoys are in the table, and those that are in none yet."""
        self.config = config
        self._members: dict[PeerId, Member] = {}
        self._heard_at: dict[PeerId, float] = {}
        """When anything last came from each of them."""
        self._counted: list[Member] | None = []
        """By peer id; None after a member came, went, died or came back to life."""
        self._counted_at: dict[PeerId, int] = {}
        """Where each of them stands in that list."""
        self._n_here = 0
        """How many of them are in this peer's region."""
        self._looks: dict[PeerId, float] = {}
        """Members that were asked for a sign of life, and when."""
        self._named: set[PeerId] = set()
        """Suspects that others were told of, or told of."""
        self.check_at = -math.inf
        """Before then nobody has been silent for too long, or has to be probed or forgotten: `handle_timeout` does nothing."""
        self._left: dict[PeerId, tuple[tuple[int, int], float]] = {}  # last word and when: others may still pass on older ones
        self._let_go: dict[PeerId, tuple[tuple[int, int], float]] = {}
        """Likewise of those that are kept no longer, because they moved away, or are missed in another region."""
        self._effects: deque[Effect] = deque()
        self._looked_at = now
        self._refuted_at = -math.inf
        self._order: list[PeerId] | None = None  # sorted; None after a member came or went
        self.incarnation = 0
        self.n_refused = 0
        self.revision = 0
        """Rises whenever an announcement or a liveness is another one than before."""
        self.roles_revision = 0
        """Rises whenever a member comes, goes, or announces another role (`role_of`)."""
        self.duties_revision = 0
        """Rises with it where that member has duties, or had (`has_duties`)."""

    # what happened

    def announced(self, announcement: Announcement, now: float, *, direct: bool = True) -> bool:
        """An announcement came in; True if it was news. `direct`: from gossip or the peer itself, so it is a sign of life.

        What a member passed on from its table is no sign of life: otherwise the dead would live forever in each other's tables.
        """
        peer = peer_of(announcement)
        if peer == self.me:
            if announcement.incarnation > self.incarnation:  # from an earlier life of this peer
                self._effects.append(Refute(announcement.incarnation + 1))
            return False
        known = self._members.get(peer)
        if known is not None and announcement.order <= known.announcement.order:
            return False
        if any(peer in gone and announcement.order <= gone[peer][0] for gone in (self._left, self._let_go)):
            return False
        if announcement.leaving:
            if len(self._left) < MAX_MEMBERS:
                self._left[peer] = (announcement.order, now)
            if known is not None:
                self._drop(peer)
            return True
        self._left.pop(peer, None)
        self._let_go.pop(peer, None)
        if not self._is_kept(announcement):
            if known is not None:
                self._let_go_of(announcement, now)
            return known is not None
        if known is None:
            if len(self._members) >= MAX_MEMBERS or self._is_one_envoy_too_many(announcement):
                self.n_refused += 1
                return False
            self._members[peer] = Member(announcement, Liveness.ALIVE, now)
            self._heard_at[peer] = now
            self.check_at = min(self.check_at, now + self.config.suspect_after_s)
            self._order = self._counted = None
            self._count_change(duties=has_duties(announcement))
            self._effects.append(Changed(peer, None, Liveness.ALIVE))
            self._greet(peer, now)
        else:
            if known.announcement.region != announcement.region:
                self._counted = None
                self._looks.pop(peer, None)
                self.check_at = -math.inf  # another patience holds there
            self._replace(known, announcement=announcement)
            duties = has_duties(announcement) or has_duties(known.announcement)
            self._count_change(roles=role_of(announcement) != role_of(known.announcement), duties=duties)
            # A dead member's newer announcement, even passed on, was made after we lost it: worth a new chance.
            if direct or known.liveness is Liveness.DEAD:
                self.lives(peer, now)
            self._greet(peer, now)
        return True

    def moved(self, region: str) -> None:
        """This peer is in this region from now on."""
        if region == self.region:
            return
        self.region = region
        self._let_go.clear()  # a peer that was of no concern in the former region may be of concern in this one
        self._looks.clear()
        for peer, member in list(self._members.items()):
            if not self._is_kept(member.announcement):
                self._drop(peer)
        self._counted = None
        self.check_at = -math.inf
        self._count_change()

    def heard(self, peer: PeerId, now: float) -> None:
        """Any message came from `peer` itself, over a connection of its own."""
        self.lives(peer, now)
        member = self._members.get(peer)
        if member is not None and not member.met:
            self._replace(member, met=True)
            self._count_change(duties=has_duties(member.announcement))
            self._effects.append(Met(peer))

    def lives(self, peer: PeerId, now: float) -> None:
        """A sign of life of `peer` came, if only through others."""
        member = self._members.get(peer)
        if member is None:
            return
        self._heard_at[peer] = now
        if member.liveness is not Liveness.ALIVE:
            self._move(peer, Liveness.ALIVE, now)

    def lost(self, peer: PeerId, now: float) -> None:
        """A connection to `peer` broke, or could not be made: suspect it at once."""
        member = self._members.get(peer)
        if member is not None and member.liveness is Liveness.ALIVE:
            self._suspect(peer, now)

    def excluded(self, peer: PeerId) -> None:
        """`peer` may not take part any more."""
        if peer in self._members:
            self._drop(peer)

    def accused(self, peer: PeerId, incarnation: int, now: float) -> None:
        """Another peer says that `peer` is dead. Not believed, but looked into."""
        if peer == self.me:
            # Not a higher one, which is made up: following it would carry ours beyond what others accept. And none that comes
            # sooner than a silence could be noticed: refuting a flood of them would flood the run with announcements.
            if incarnation == self.incarnation and now - self._refuted_at >= self.config.grace_s:
                self._refuted_at = now
                self._effects.append(Refute(incarnation + 1))
            return
        member = self._members.get(peer)
        if member is None or member.liveness is not Liveness.ALIVE or member.announcement.incarnation > incarnation:
            return
        if now - self._heard_at[peer] > self.config.announce_s:
            self._suspect(peer, now)

    def suspected_by(self, accuser: PeerId, named: Collection[PeerId], now: float) -> None:
        """A member announces that these do not answer it. In a large region that is looked into."""
        known = self._members.get(accuser)
        if known is None or not known.met or not self.is_large or not self.is_here(known):
            return
        if self.me in named and now - self._refuted_at >= self.config.grace_s:
            self._refuted_at = now
            self._effects.append(Alarm())  # whatever this peer announces now is a sign of life
        for peer in named:
            member = self._members.get(peer)
            if member is None or member.liveness is not Liveness.ALIVE or peer == accuser or not self.is_here(member):
                continue
            if now - self._heard_at[peer] > self.config.announce_s:
                self._named.add(peer)
                self._suspect(peer, now)

    def handle_timeout(self, now: float) -> None:
        """Time has passed."""
        asleep_s = now - self._looked_at
        self._looked_at = now
        if asleep_s > self.config.asleep_after_s:
            self._pardon(asleep_s, now)
        if now < self.check_at:
            return
        patience_s, looked_at, is_alarming = self._patience_s(), self._watched(), False
        for peer, member in list(self._members.items()):
            if member.liveness is Liveness.ALIVE:
                silent_s = now - self._heard_at[peer]
                if not self.is_here(member):
                    if silent_s >= self._far_patience_s(member):
                        self._miss(member, now)
                elif silent_s >= patience_s or self._has_not_answered(peer, now):
                    self._suspect(peer, now)
                elif peer in looked_at and peer not in self._looks and silent_s >= self.config.suspect_after_s:
                    self._looks[peer] = now
                    self._effects.append(CheckOn(peer))
            elif member.liveness is Liveness.SUSPECT:
                if now - member.since >= self.config.grace_s:
                    self._move(peer, Liveness.DEAD, now)
                    self._effects.append(Accuse(peer, member.announcement.incarnation))
                else:
                    if now >= member.next_probe_at:
                        self._probe(peer, now)
                    if now >= member.since + self.config.look_s and self.is_large and peer not in self._named:
                        self._named.add(peer)
                        is_alarming = True
            elif now - member.since >= self.config.forget_s:
                self._drop(peer)
        if is_alarming:
            self._effects.append(Alarm())
        for gone in (self._left, self._let_go):
            for peer in [peer for peer, (_, at) in gone.items() if now - at >= self.config.forget_s]:
                del gone[peer]
        deadline = self.next_deadline()
        self.check_at = now + self.config.forget_s if deadline is None else deadline

    # what follows

    def poll(self) -> Effect | None:
        """The next thing to do, in order; None when there is nothing."""
        return self._effects.popleft() if self._effects else None

    def next_deadline(self) -> float | None:
        """When `handle_timeout` has something to do next."""
        deadlines = []
        patience_s, looked_at = self._patience_s(), self._watched()
        for member in self._members.values():
            peer = member.peer_id
            if member.liveness is Liveness.ALIVE:
                if peer in self._looks:
                    deadlines.append(self._looks[peer] + self.config.look_s)
                wait_s = self.config.suspect_after_s if peer in looked_at and peer not in self._looks else patience_s
                if not self.is_here(member):
                    wait_s = self._far_patience_s(member)
                deadlines.append(self._heard_at[peer] + wait_s)
            elif member.liveness is Liveness.SUSPECT:
                deadlines.append(min(member.since + self.config.grace_s, member.next_probe_at))
                if self.is_large and peer not in self._named:
                    deadlines.append(member.since + self.config.look_s)
            else:
                deadlines.append(member.since + self.config.forget_s)
        return min(deadlines, default=None)

    # what is known

    def get(self, peer: PeerId) -> Member | None:
        return self._members.get(peer)

    def members(self) -> list[Member]:
        """All rows, the dead included, by peer id. This peer is not in its own table."""
        if self._order is None:
            self._order = sorted(self._members)
        return [self._members[peer] for peer in self._order]

    def counted(self) -> list[Member]:
        """Those that are not dead."""
        return self._all_counted().copy()

    def here(self) -> list[Member]:
        """Those of them that are in this peer's region."""
        return [member for member in self._all_counted() if self.is_here(member)]

    def is_here(self, member: Member) -> bool:
        """It is in this peer's region."""
        return member.announcement.region == self.region

    def own_part(self, own: Announcement) -> Announcement:
        """What this peer announces, `own`, with what it says of its region."""
        here = [member.announcement for member in self.here()]
        return msgspec.structs.replace(
            own,
            suspected=self.suspected(),
            envoy=bool(own.region) and self.me in envoys([own, *here]),
            region_size=min(1 + len(here), MAX_MEMBERS),
            region_done=own.done and all(a.done for a in here),
        )

    @property
    def n_members(self) -> int:
        """Rows, the dead included."""
        return len(self._members)

    @property
    def n_counted(self) -> int:
        """How many are not dead."""
        return len(self._all_counted())

    @property
    def grown(self) -> float:
        """How many times `announce_s` lies between two announcements of a member of this region."""
        self._all_counted()
        return grown(1 + self._n_here)

    @property
    def far_grown(self) -> float:
        """How many times `announce_s` lies between two announcements of an envoy of this region to others."""
        return max(far_grown(self.n_counted - self._n_here), self.grown)

    @property
    def is_large(self) -> bool:
        """Members announce themselves too rarely for silence to tell who lives."""
        return self.grown > 1

    def suspected(self) -> tuple[PeerId, ...]:
        """Those to name to the others, the last to be suspected first: in a small region nobody, because all hear everybody."""
        if not self.is_large:
            return ()
        since = self._looked_at - 2 * self.config.grace_s
        rows = [self._members[peer] for peer in self._named]
        found = sorted((-m.since, m.peer_id) for m in rows if m.liveness is not Liveness.ALIVE and m.since >= since)
        return tuple(peer for _, peer in found[:MAX_SUSPECTED])

    # inner steps

    def _patience_s(self) -> float:
        """Seconds of silence until a member is suspected that this peer does not watch."""
        return self.config.suspect_after_s * self.grown

    def _grown_there(self, member: Member) -> float:
        """How many times `announce_s` lies between two announcements of one of another region, at most: what it says of its
        region may be from a time when that was smaller."""
        return max(self.far_grown, grown(member.announcement.region_size))

    def _far_patience_s(self, member: Member) -> float:
        """Seconds of silence until one of another region is missed."""
        return self.config.suspect_after_s * self._grown_there(member) if member.announcement.region else NEWCOMER_S

    def _miss(self, member: Member, now: float) -> None:
        """One of another region is silent. Of few it is found out whether they live; of many the others are enough."""
        peer = member.peer_id
        if self._grown_there(member) == 1 and member.announcement.region:
            self._suspect(peer, now)
        else:
            self._let_go_of(member.announcement, now)

    def _let_go_of(self, last: Announcement, now: float) -> None:
        """Keep it no longer, and take nothing back from others that still have what it said up to now."""
        peer = peer_of(last)
        if len(self._let_go) < MAX_MEMBERS:
            self._let_go[peer] = (last.order, now)
        self._drop(peer)

    def _is_kept(self, announcement: Announcement) -> bool:
        return announcement.envoy or announcement.region in ("", self.region)

    def _is_one_envoy_too_many(self, announcement: Announcement) -> bool:
        region = announcement.region
        if region in ("", self.region):
            return False
        return sum(m.announcement.region == region for m in self._members.values()) >= MAX_ENVOYS_KEPT

    def _watched(self) -> Collection[PeerId]:
        """Whom to ask for a sign of life after `suspect_after_s` of silence."""
        if not self.is_large:
            return ()
        here = {peer: m for peer, m in self._members.items() if self.is_here(m)}
        if sum(m.liveness is Liveness.SUSPECT for m in here.values()) >= MANY_SUSPECTED:
            return here.keys()
        return watched(self.me, here, lambda peer: here[peer].liveness is Liveness.ALIVE)

    def _has_not_answered(self, peer: PeerId, now: float) -> bool:
        """It was asked for a sign of life, and none has come in time."""
        asked_at = self._looks.get(peer, now)
        if now < asked_at + self.config.look_s:
            return False
        del self._looks[peer]
        return self._heard_at[peer] <= asked_at

    def _all_counted(self) -> list[Member]:
        if self._counted is None:  # asked for often, and of hundreds
            self._counted = [member for member in self.members() if member.counts]
            self._counted_at = {member.peer_id: i for i, member in enumerate(self._counted)}
            self._n_here = sum(self.is_here(member) for member in self._counted)
        return self._counted

    def _replace(self, member: Member, **changes: Any) -> None:
        """Another row for the same member. Its place among those that count stays, unless its liveness changes."""
        peer = member.peer_id
        row = self._members[peer] = msgspec.structs.replace(member, **changes)
        if row.counts != member.counts:
            self._counted = None
        elif self._counted is not None and row.counts:
            self._counted[self._counted_at[peer]] = row

    def _suspect(self, peer: PeerId, now: float) -> None:
        self._move(peer, Liveness.SUSPECT, now)
        self._probe(peer, now)

    def _probe(self, peer: PeerId, now: float) -> None:
        self._effects.append(Probe(peer, through_others=peer not in self._named))
        self._replace(self._members[peer], next_probe_at=now + self.config.probe_every_s)

    def _greet(self, peer: PeerId, now: float) -> None:
        member = self._members[peer]
        if member.met or member.n_greeted >= MAX_GREETINGS or now < member.next_greeting_at:
            return
        pause_s = self.config.grace_s * 2**member.n_greeted
        self._replace(member, n_greeted=member.n_greeted + 1, next_greeting_at=now + pause_s)
        self._effects.append(Greet(peer))

    def _move(self, peer: PeerId, liveness: Liveness, now: float) -> None:
        member = self._members[peer]
        self._effects.append(Changed(peer, member.liveness, liveness))
        if liveness is Liveness.ALIVE:
            self._named.discard(peer)
        self._replace(member, liveness=liveness, since=now)
        self.check_at = now
        self._count_change(duties=has_duties(member.announcement) and Liveness.DEAD in (member.liveness, liveness))

    def _drop(self, peer: PeerId) -> None:
        member = self._members.pop(peer)
        del self._heard_at[peer]
        self._looks.pop(peer, None)
        self._named.discard(peer)
        self.check_at = -math.inf  # fewer announce themselves more often
        self._order = self._counted = None
        self._count_change(duties=member.counts and has_duties(member.announcement))
        self._effects.append(Changed(peer, member.liveness, None))

    def _count_change(self, *, roles: bool = True, duties: bool = True) -> None:
        self.revision += 1
        self.roles_revision += roles
        self.duties_revision += roles and duties

    def _pardon(self, asleep_s: float, now: float) -> None:
        for member in self.counted():
            # Not beyond now: some were heard, or suspected, after this peer woke and before it looked at the clock.
            self._heard_at[member.peer_id] = min(now, self._heard_at[member.peer_id] + asleep_s)
            self._replace(member, since=min(now, member.since + asleep_s))
        self._looks = {peer: min(now, asked_at + asleep_s) for peer, asked_at in self._looks.items()}
