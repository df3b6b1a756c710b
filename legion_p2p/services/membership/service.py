"""Keeps the table of members true: announces this peer, listens to others, probes the silent.

Announcements go out by gossip (announcer.py); what gossip loses, exchanges with one member at a time bring (exchanger.py).
"""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.concurrency.nurseries import TaskStatus
from legion_p2p.config import AUTO_REGION
from legion_p2p.core.announcement import Announcement, open_signed, peer_of
from legion_p2p.core.identity import PeerId
from legion_p2p.core.member import Accuse, Alarm, Changed, CheckOn, Greet, Met, Probe, Refute
from legion_p2p.core.membership import Membership
from legion_p2p.core.observers import Observers
from legion_p2p.core.run import announce_topic, region_topic
from legion_p2p.core.wire import (
    MAX_EXCHANGED,
    Accusation,
    Done,
)
from legion_p2p.errors import DecodeError, NotAdmittedError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.absence_watch import AbsenceWatch
from legion_p2p.services.membership.access import AccessControl
from legion_p2p.services.membership.announcer import Announcer
from legion_p2p.services.membership.exchanger import Exchanger
from legion_p2p.services.membership.key_watch import KeyWatch
from legion_p2p.services.membership.own import OwnAnnouncement
from legion_p2p.services.membership.ping_helper import PingHelper
from legion_p2p.services.membership.prober import Prober
from legion_p2p.services.membership.proofs import Proofs
from legion_p2p.services.membership.roster import Roster
from legion_p2p.services.membership.signed import SignedAnnouncements
from legion_p2p.services.rpc import Rpc

SHORTEST_TICK_S = 0.5  # between two looks at the clock while somebody may be silent for too long; a sleep costs more than a look


class MemberService:
    """The members of one run, as seen by this peer."""

    def __init__(self, ctx: PeerContext, describe: Callable[[], Announcement]) -> None:
        """`describe`: what this peer announces now, without its order in time."""
        self.run = ctx.run
        self.me = ctx.me
        self.config = config = ctx.config.membership
        self.table = Membership(self.me, config, trio.current_time())
        self.table.incarnation = int(ctx.wall_time())
        self.table.region = "" if ctx.config.region == AUTO_REGION else ctx.config.region
        self.changed = Notify()
        """Notified when a member came, went, or announced something new."""
        self.new_roles = Notify()
        """Notified when a member came, went, or has another role: rarely, while `changed` is notified at every announcement."""
        self.proofs = Proofs(ctx.wall_time, self._note_change)
        self.absence = AbsenceWatch(self.me, config, ctx.running_clock)
        self.own = OwnAnnouncement(self.table, ctx.identity, describe, self._note_change)
        self.roster = Roster(ctx.run, self.table, self.own, self.absence, self.proofs.book)
        self.announcer = Announcer(ctx, self.table, self.own, self._note_change)
        self._signed = SignedAnnouncements(self.table, self.own, ctx.rng)
        self.access = AccessControl(ctx, self.table, self.own, self._signed)
        self.access.excluded.add(lambda _: self._work())
        self._exchanger = Exchanger(ctx, self.table, self.access, self._signed, self.own, self._take_all, self.heard)
        self.on_exchange = self._exchanger.on_exchange
        self.exchange_with = self._exchanger.exchange_with
        self._roles_told: tuple[object, ...] = ()
        self._messenger = ctx.messenger
        self._reachability = ctx.reachability
        self._rpc = Rpc(ctx.messenger)  # which answers prove that a peer lives is decided here, one by one
        self._prober = Prober(ctx.run, self.table, self._rpc, ctx.rng, config.grace_s)
        self._gossip = ctx.gossip
        self._events = ctx.events
        self._rng = ctx.rng
        self.ping_helper = PingHelper(ctx.run, ctx.me, self.roster, self._rpc, self.heard, self.lost, config.grace_s)
        self._key_watch = KeyWatch(ctx.events)
        self._nursery: trio.Nursery | None = None
        self.roles_changed: Observers[None] = Observers()
        """Told when a member came, went, or has another role, this peer included."""
        self.member_changed: Observers[Changed] = Observers()
        self.announcements: Observers[Announcement] = Observers()
        """Told of each announcement that is news."""

    def period_s(self) -> float:
        """Between two announcements of a member, as many as there are now."""
        return self.config.announce_s * self.table.grown

    def note_juniors(self, juniors: frozenset[PeerId]) -> None:
        """These may not own yet, by what the shards' versions contain."""
        if juniors != self.roster.juniors:
            self.roster.juniors = juniors
            self._note_change()

    def introduce(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """`peer` may be found there."""
        if peer != self.me:
            self._messenger.add_addresses(peer, addresses)

    def revoke(self, revocation: bytes) -> None:
        """Take a revocation, and tell the others. Raises: DecodeError."""
        if self.access.revoke([revocation]):
            self.announcer.announce_soon()

    def heard(self, peer: PeerId) -> None:
        """Any message came from `peer`."""
        self.table.heard(peer, trio.current_time())
        self._work()

    def lost(self, peer: PeerId) -> None:
        """`peer` could not be reached."""
        self.table.lost(peer, trio.current_time())
        self._work()

    def take(self, signed: bytes, *, direct: bool) -> Announcement:
        """Check an announcement and put it in the table.

        Raises: DecodeError, SignatureError; NotAdmittedError, which is nobody's fault but its own.
        """
        announcement = open_signed(signed)
        if announcement.run != self.run:
            raise DecodeError(f"announcement of run {announcement.run}, this is {self.run}")
        peer = peer_of(announcement)
        known = self.table.get(peer)
        if known is not None and announcement.order <= known.announcement.order:
            return announcement  # most of an exchange: gossip had brought it
        refusal = self.access.refusal(peer, announcement.token)
        if refusal:
            raise NotAdmittedError(peer, refusal)
        self.access.shown(peer, announcement.token)
        if announcement.revocations:
            self.access.revoke(announcement.revocations)
        if peer == self.me and announcement.incarnation > self.table.incarnation:
            self._key_watch.contradicted(announcement, self.own.seq)
        roles_before = self.table.roles_revision
        now = trio.current_time()
        if self.table.announced(announcement, now, direct=direct):
            if announcement.suspected:
                self.table.suspected_by(peer, [PeerId(named) for named in announcement.suspected], now)
            if self.table.get(peer) is None:
                self._signed.forget(peer)
            else:
                self._signed.put(peer, signed)
                if known is None or known.announcement.addresses != announcement.addresses:
                    self._messenger.add_addresses(peer, announcement.addresses)
                self.announcements.tell(announcement)
            if self.table.roles_revision == roles_before:
                self.changed.notify()  # as most: what others act on is as it was
            else:
                self._note_change()
        self._work()
        return announcement

    def signed_of(self, peer: PeerId) -> bytes | None:
        """The signed announcement of a member, to pass on."""
        return self.signed_own() if peer == self.me else self._signed.get(peer)

    def signed_own(self) -> bytes:
        self.own.now()
        return self.own.signed

    # what others send

    def on_accusation(self, accuser: PeerId, message: Accusation) -> Done:
        is_meant = message.peer == self.me and message.incarnation == self.table.incarnation
        if is_meant and self.absence.accused_by(accuser, self._ids_in_region()):
            self._note_change()
        self.table.accused(PeerId(message.peer), message.incarnation, trio.current_time())
        self._work()
        return Done()

    # what this peer does

    async def leave(self, deadline_s: float) -> None:
        """Tell all members that this peer leaves; at most `deadline_s`."""
        nearest_first = sorted(self.table.counted(), key=lambda member: not self.table.is_here(member))
        self.own.leaving = True  # all that is announced from here on says so: a later word would bring this peer back to life
        self.own.renew()
        farewell = self._exchanger.question()
        with trio.move_on_after(deadline_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.announcer.publish)
                for member in nearest_first[:MAX_EXCHANGED]:
                    nursery.start_soon(self._prober.tell, member.peer_id, farewell)

    async def enter(self) -> None:
        """Ask members of this peer's region, as it is from now on, for all of them."""
        self.own.renew()
        await self._exchanger.ask_region()

    async def run_forever(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with (
            trio.open_nursery() as nursery,
            self._gossip.listen(announce_topic(self.run), self._hear, self._is_announcement),
        ):
            self._nursery = nursery
            stop_hearing = self._reachability.regained.add(lambda peer: nursery.start_soon(self._exchanger.meet_again, peer))
            try:
                nursery.start_soon(self.announcer.announce_regularly, self._notice_absence)
                nursery.start_soon(self._exchanger.exchange_regularly, self.period_s)
                nursery.start_soon(self._listen_to_region)
                nursery.start_soon(self._look_at_clock)
                nursery.start_soon(self._key_watch.end_where_shared)
                task_status.started(None)
                await trio.sleep_forever()
            finally:
                stop_hearing()
                self._nursery = None  # a peer that leaves still answers and asks, but starts nothing

    def _is_announcement(self, signed: bytes) -> bool:
        """Whether it is well formed and signed, so that it may be passed on. It is opened once, here or in `_hear`."""
        try:
            return open_signed(signed).run == self.run
        except DecodeError as bad:
            self._events.emit("announcement.refused", reason=str(bad))
            return False

    def _hear(self, signed: bytes) -> None:
        """An announcement was published."""
        try:
            self.take(signed, direct=True)
        except (DecodeError, NotAdmittedError) as bad:
            self._events.emit("announcement.refused", reason=str(bad))

    async def ping(self, peer: PeerId) -> float | None:
        """Seconds until `peer` answered, its own haste included; None: it did not."""
        began = trio.current_time()
        if not await self._prober.ping(peer):
            return None
        self.heard(peer)
        return trio.current_time() - began

    # tasks

    async def _listen_to_region(self) -> None:
        while True:
            region = self.own.now().region
            async with AsyncExitStack() as stack:
                if region:
                    topic = region_topic(self.run, region)
                    await stack.enter_async_context(self._gossip.listen(topic, self._hear, self._is_announcement))
                while self.own.now().region == region:
                    await self.own.moved.wait()

    async def _look_at_clock(self) -> None:
        shortest_s = min(SHORTEST_TICK_S, self.config.grace_s / 4)
        longest_s = max(shortest_s, self.config.asleep_after_s / 3)
        addresses = self._messenger.addresses()
        while True:
            is_due_soon = self.table.check_at < trio.current_time() + longest_s
            await trio.sleep(shortest_s if is_due_soon else longest_s)
            self._notice_absence()
            if self._messenger.addresses() != addresses:
                addresses = self._messenger.addresses()
                self.announcer.announce_soon()
            now = trio.current_time()
            if not self.access.admission.is_open:
                self.access.exclude_refused()
            if self.absence.end_probation():
                self._note_change()
            self.table.handle_timeout(now)
            self.proofs.book.end(now)
            self._work()

    # inner steps

    def _note_change(self) -> None:
        self.changed.notify()
        roles = self.roster.revision()
        if roles != self._roles_told:
            self._roles_told = roles
            self.new_roles.notify()
            self.roles_changed.tell(None)

    def _notice_absence(self) -> None:
        if self.absence.look():
            self._note_change()

    def _work(self) -> None:
        """Carry out what the table asks for."""
        is_news = False
        while (effect := self.table.poll()) is not None:
            if isinstance(effect, Changed):
                is_news = True
                self._judge_return(effect)
                before, after = (side.value if side else "absent" for side in (effect.before, effect.after))
                self._events.emit("member.changed", peer=effect.peer_id, before=before, after=after)
                self.member_changed.tell(effect)
            elif isinstance(effect, Met):
                is_news = True
            elif isinstance(effect, Refute):
                self.table.incarnation = max(self.table.incarnation, effect.incarnation)
                self._events.emit("member.refuted", incarnation=self.table.incarnation)
                self.announcer.announce_soon()
                is_news = True
            elif self._nursery is not None:
                if isinstance(effect, Probe):
                    self._nursery.start_soon(self._probe, effect)
                elif isinstance(effect, CheckOn):
                    self._nursery.start_soon(self.ping, effect.peer_id)
                elif isinstance(effect, Alarm):
                    self.announcer.announce_soon()
                elif isinstance(effect, Greet):
                    self._nursery.start_soon(self._greet, effect.peer_id)
                elif isinstance(effect, Accuse):
                    self._nursery.start_soon(self._prober.accuse, effect)
        if is_news:
            self._note_change()

    def _judge_return(self, change: Changed) -> None:
        """Only within a region: regions that were cut off from each other go on as they are, and come together as regions do."""
        member = self.table.get(change.peer_id)
        if (member is None or self.roster.is_here(member)) and self.absence.judge(change, member, self._ids_in_region):
            self._note_change()

    def _ids_in_region(self) -> list[PeerId]:
        return [member.peer_id for member in self.roster.in_region()]

    async def _probe(self, probe: Probe) -> None:
        suspect = probe.peer_id
        helpers = self._prober.helpers(suspect) if probe.through_others else ()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.ping, suspect)
            for helper in helpers:
                nursery.start_soon(self._ping_through, helper, suspect)

    async def _ping_through(self, helper: PeerId, suspect: PeerId) -> None:
        if await self._prober.ping_through(helper, suspect):
            self.table.lives(suspect, trio.current_time())
            self._work()

    async def _greet(self, peer: PeerId) -> None:
        member = self.table.get(peer)
        if member is not None and self.roster.is_here(member) and await self._prober.greet(peer):
            self.heard(peer)

    def _take_all(self, sender: PeerId, announcements: Sequence[bytes]) -> None:
        for signed in announcements:
            try:
                announcement = open_signed(signed)
                self.take(signed, direct=peer_of(announcement) == sender)
            except NotAdmittedError as refused:
                self._events.emit("announcement.refused", peer=sender, reason=str(refused))
            except DecodeError as bad:
                self._messenger.report(sender, f"bad announcement: {bad}")
                self._events.emit("announcement.refused", peer=sender, reason=str(bad))
