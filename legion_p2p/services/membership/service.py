"""Keeps the table of members true: announces this peer, listens to others, probes the silent.

Announcements go out by gossip and, to heal what gossip loses, in an exchange of tables with one random member at a time.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import msgspec
import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.concurrency.nurseries import TaskStatus
from legion_p2p.core.absence import Absence
from legion_p2p.core.admission import Admission
from legion_p2p.core.announcement import Announcement, open_signed, peer_of, sign
from legion_p2p.core.identity import PeerId
from legion_p2p.core.membership import (
    Accuse,
    Changed,
    Greet,
    Liveness,
    Member,
    Membership,
    Met,
    Probe,
    Refute,
    believed,
    role_of,
    weights_of,
)
from legion_p2p.core.observers import Observers
from legion_p2p.core.run import announce_topic
from legion_p2p.core.same_key import Holder, SameKey
from legion_p2p.core.wire import (
    MAX_EXCHANGED,
    Accusation,
    Done,
    Exchange,
    Exchanged,
    Ping,
    PingFor,
    Request,
)
from legion_p2p.errors import DecodeError, JoinError, NetworkError, NoAnswerError, NotAdmittedError, UnreachableError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.rpc import Rpc

EXCHANGE_DEADLINE_S = 5.0
N_INDIRECT_PROBES = 2  # members asked to look at a suspect as well, in case only the path from here is broken
N_WITNESSES = 3  # members told that another one is dead
MAX_INVOLVED = 4  # silent at once with whom others are bothered: where more are, the others see that for themselves
MAX_GREETINGS_IN_FLIGHT = 16  # to members that only others told of: they may not exist, and each costs an attempt to connect
SAMPLE = 16  # announcements in a regular exchange: gossip brings nearly all, and the rest comes in a few more of them
MAX_EXCHANGE_BYTES = 512 * 1024  # of announcements in one message: half a control frame


class Roles(msgspec.Struct, frozen=True):
    """What the members of one region can do."""

    weights: dict[PeerId, float] = {}
    ready: tuple[PeerId, ...] = ()
    training: tuple[PeerId, ...] = ()

    def renewed(self, announcements: Sequence[Announcement], region: str) -> "Roles":
        """The roles of now. What is as before is the same object, so that others see at once what changed."""
        here = [a for a in announcements if a.region == region]
        weights = weights_of(here, region)
        ready = tuple(peer_of(a) for a in here if a.ready)
        training = tuple(peer_of(a) for a in here if a.training)
        return Roles(
            self.weights if weights == self.weights else weights,
            self.ready if ready == self.ready else ready,
            self.training if training == self.training else training,
        )


class MemberService:
    """The members of one run, as seen by this peer."""

    def __init__(self, ctx: PeerContext, describe: Callable[[], Announcement]) -> None:
        """`describe`: what this peer announces now, but for its order in time."""
        self.run = ctx.run
        self.me = ctx.me
        self.config = config = ctx.config.membership
        self.table = Membership(self.me, config, trio.current_time())
        self.table.incarnation = int(ctx.wall_time())
        self.changed = Notify()
        """Rings when somebody came, went, or announced something new."""
        self.was_away = False
        """The others went on without this peer since this was last looked at."""
        self.away = Notify()
        """Rings when `was_away` becomes true."""
        self._wall_time = ctx.wall_time
        self._absence = Absence(self.me, config.suspect_after_s + config.grace_s, self._clocks())
        self._everyone: tuple[Announcement, ...] = ()
        self._everyone_at: tuple[object, ...] = ()  # what it was made from
        spec = ctx.spec
        self.admission = Admission(ctx.run, spec.admission, spec.founder, spec.admins, spec.admitted)
        self._roles: dict[str, Roles] = {}
        self._roles_at: tuple[object, ...] = ()
        self._roles_told: tuple[object, ...] = ()
        self._identity = ctx.identity
        self._messenger = ctx.messenger
        self._rpc = Rpc(ctx.messenger)  # which answers prove that a peer lives is decided here, one by one
        self._gossip = ctx.gossip
        self._events = ctx.events
        self._rng = ctx.rng
        self._describe = describe
        self._seq = 0
        self._same_key = SameKey()
        self._key_is_shared = trio.Event()
        self._shared_key_text = ""
        self._signed: dict[PeerId, bytes] = {}
        self._own: Announcement | None = None
        self._leaving = False
        self._hurry = Notify()
        self._hurried = False
        self._nursery: trio.Nursery | None = None
        self._greetings = trio.CapacityLimiter(MAX_GREETINGS_IN_FLIGHT)
        self.roles_changed: Observers[None] = Observers()
        """Told when a member came, went, or has another role, this peer included."""
        self.member_changed: Observers[Changed] = Observers()
        self.announcements: Observers[Announcement] = Observers()
        """Told of each announcement that is news."""

    # what others ask

    def everyone(self) -> Sequence[Announcement]:
        """This peer's announcement, then those of all members that are not dead, by peer id.

        A member that this peer never met counts as not ready. So does one that was taken for dead and is back, until it says in a
        new incarnation that it has caught up.
        """
        own = self.own()
        state = (self.table.revision, self._absence.n_doubted, own.seq)
        if self._everyone_at != state:  # asked for many times between two changes
            others = [believed(m, own.region) for m in self.table.counted()]
            self._everyone = (own, *map(self._absence.trusted, others))
            self._everyone_at = state
        return self._everyone

    def weights(self, region: str) -> dict[PeerId, float]:
        """Peer to weight, of those in `region` that hold the model and can carry shards. The same object until that changes."""
        return self._roles_in(region).weights

    def ready(self, region: str) -> tuple[PeerId, ...]:
        """Those in `region` that hold the model. The same object until that changes."""
        return self._roles_in(region).ready

    def training(self, region: str) -> tuple[PeerId, ...]:
        """Those in `region` that train now. The same object until that changes."""
        return self._roles_in(region).training

    def _roles_in(self, region: str) -> "Roles":
        own = self.own()
        state = (self.table.roles_revision, self._absence.n_doubted, role_of(own))
        if self._roles_at != state:
            self._roles = {
                known: roles.renewed(self.everyone(), known) for known, roles in self._roles.items() if known == region
            }
            self._roles_at = state
        if region not in self._roles:
            self._roles[region] = Roles().renewed(self.everyone(), region)
        return self._roles[region]

    def announced(self, peer: PeerId) -> Announcement | None:
        """As in `everyone`, of one of the others."""
        member = self.table.get(peer)
        if member is None or not member.counts:
            return None
        return self._absence.trusted(believed(member, self.own().region))

    def others(self) -> list[Announcement]:
        """What the other members say that are not dead, without those of this region that this peer never met."""
        region = self.own().region
        return [m.announcement for m in self.table.counted() if m.met or m.announcement.region != region]

    def own(self) -> Announcement:
        if self._own is None:
            self._renew()
        assert self._own is not None
        return self._own

    def in_region(self) -> list[Member]:
        """The others of this peer's own region that are not dead."""
        region = self.own().region
        return [m for m in self.table.counted() if m.announcement.region == region]

    def is_known(self, peer: PeerId) -> bool:
        return peer == self.me or self.table.get(peer) is not None

    def alone(self) -> bool:
        """Nobody else is in the run, as far as known."""
        return not self.table.counted()

    def introduce(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """`peer` may be found there."""
        if peer != self.me:
            self._messenger.add_addresses(peer, addresses)

    def must_be_admitted(self, peer: PeerId) -> None:
        """Raises: NotAdmittedError, if the run asks for more to take part than `peer` has shown, or the user has banned it."""
        refusal = self._refusal(peer)
        if refusal:
            raise NotAdmittedError(peer, refusal)

    def revocations(self) -> tuple[bytes, ...]:
        """Those that this peer announces next."""
        return self.admission.revocations(self._wall_time(), self._seq)

    def revoke(self, revocation: bytes) -> None:
        """Take a revocation, and tell the others. Raises: DecodeError."""
        if self.admission.revoke(revocation, self._wall_time()):
            self.exclude_refused()
            self.announce_soon()

    def ban(self, peers: Collection[PeerId]) -> None:
        """From now on these have no part in the run, as far as this peer is concerned, and no others are banned."""
        self.admission.banned = frozenset(peers)
        self.exclude_refused()

    def exclude_refused(self) -> None:
        """Forget those that may not take part any more: a token expired or was revoked, or a user banned one."""
        for member in self.table.members():
            if self._refusal(member.peer_id):
                self.table.excluded(member.peer_id)
                self._signed.pop(member.peer_id, None)
        self._work()

    def _refusal(self, peer: PeerId) -> str:
        member = self.table.get(peer)
        return self.admission.refusal(peer, b"" if member is None else member.announcement.token, self._wall_time())

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
        refusal = self.admission.refusal(peer, announcement.token, self._wall_time())
        if refusal:
            raise NotAdmittedError(peer, refusal)
        if announcement.revocations and self._revoke_all(announcement.revocations):
            self.exclude_refused()
        if peer == self.me and announcement.incarnation > self.table.incarnation:
            self._look_at_key(announcement)
        known = self.table.get(peer)
        if self.table.announced(announcement, trio.current_time(), direct=direct):
            if announcement.leaving:
                self._signed.pop(peer, None)
            elif self.table.get(peer) is not None:
                self._signed[peer] = signed
                if known is None or known.announcement.addresses != announcement.addresses:
                    self._messenger.add_addresses(peer, announcement.addresses)
                self.announcements.tell(announcement)
            self._note_change()
        self._work()
        return announcement

    def _revoke_all(self, revocations: Sequence[bytes]) -> bool:
        now_s = self._wall_time()
        return sum([self.admission.revoke(revocation, now_s) for revocation in revocations]) > 0  # all of them, not the first

    def signed_of(self, peer: PeerId) -> bytes | None:
        """The signed announcement of a member, to pass on."""
        return self.signed_own() if peer == self.me else self._signed.get(peer)

    def signed_own(self) -> bytes:
        self.own()
        return self._signed_own

    # what others send

    def on_exchange(self, peer: PeerId, message: Exchange) -> Exchanged:
        # Before learning: what the asker sent, it does not need back. Who knows few wants to hear of all.
        known = self._some_announcements(peer, SAMPLE if len(message.announcements) >= SAMPLE else MAX_EXCHANGED - 1)
        self._take_all(peer, message.announcements)
        self.must_be_admitted(peer)
        self.heard(peer)
        newest = self._signed.get(peer)
        if newest is not None and newest not in message.announcements:
            known = (*known[: MAX_EXCHANGED - 1], newest)  # from an earlier life, with a clock ahead: it has to outbid that
        return Exchanged(known)

    async def on_ping_for(self, message: PingFor) -> Done:
        suspect = PeerId(message.peer)
        if suspect == self.me or not self.is_known(suspect):  # nobody is to be reached through us but members
            raise UnreachableError(suspect, "it is no other member that I know of")
        try:
            await self._rpc.ask(suspect, Ping(self.run), within_s=self.config.grace_s)
        except UnreachableError:
            self.lost(suspect)  # a next owner that has sent nothing to a dead owner would learn of it seconds later
            raise
        except NoAnswerError as silent:
            raise UnreachableError(suspect, f"no answer in {self.config.grace_s:.1f} s") from silent
        self.heard(suspect)
        return Done()

    def on_accusation(self, accuser: PeerId, message: Accusation) -> Done:
        now = trio.current_time()
        is_meant = message.peer == self.me and message.incarnation == self.table.incarnation
        if is_meant and self._absence.accused_by(accuser, self._ids_in_region(), now):
            self._note_absence()
        self.table.accused(PeerId(message.peer), message.incarnation, now)
        self._work()
        return Done()

    # what this peer does

    def announce_soon(self) -> None:
        """Announce at once instead of at the next regular time: something changed that others act on."""
        self._hurried = True
        self._own = None
        self._hurry.notify()
        self._note_change()

    async def announce_now(self) -> None:
        self._renew()
        await self._gossip.publish(announce_topic(self.run), self._signed_own)

    async def leave(self, deadline_s: float) -> None:
        """Tell everybody that this peer goes; at most `deadline_s`."""
        self._leaving = True  # all that is announced from here on says so: a later word would bring this peer back to life
        self._renew()
        signed = self._signed_own
        farewell = Exchange(self.run, (signed,))
        with trio.move_on_after(deadline_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._gossip.publish, announce_topic(self.run), signed)
                for member in self.table.counted()[:MAX_EXCHANGED]:
                    nursery.start_soon(self._tell, member.peer_id, farewell)

    async def exchange_with(self, peer: PeerId) -> bool:
        """Swap what is known of members with `peer`, in a large run a sample of it; False if it did not answer."""
        question = Exchange(self.run, self._some_announcements(peer, SAMPLE))
        try:
            reply = await self._rpc.ask(peer, question, within_s=EXCHANGE_DEADLINE_S)
        except NetworkError:
            return False
        self._take_all(peer, reply.announcements)
        self.heard(peer)
        return True

    async def run_forever(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery, self._gossip.subscribe(announce_topic(self.run)) as heard:
            self._nursery = nursery
            try:
                nursery.start_soon(self._announce_regularly)
                nursery.start_soon(self._exchange_regularly)
                nursery.start_soon(self._look_at_clock)
                nursery.start_soon(self._end_where_the_key_is_shared)
                task_status.started(None)
                async for signed in heard:
                    try:
                        self.take(signed, direct=True)
                    except (DecodeError, NotAdmittedError) as bad:
                        self._events.emit("announcement.refused", reason=str(bad))
            finally:
                self._nursery = None  # a peer that leaves still answers and asks, but starts nothing

    def _look_at_key(self, announcement: Announcement) -> None:
        """This peer's id announced what this peer did not."""
        verdict = self._same_key.contradicted(announcement.incarnation, announcement.seq, self._seq, trio.current_time())
        if verdict is None or self._key_is_shared.is_set():
            return
        where = announcement.addresses[0] if announcement.addresses else "an unknown address"
        ends = "this one is the newer and ends" if verdict is Holder.NEWER else "that one is the newer and should end"
        told = f"another peer at {where} runs with this peer's key: {ends}; each peer needs a key of its own, --identity FILE"
        self._events.error("member.same_key", told)
        if verdict is Holder.NEWER:
            self._shared_key_text = told
            self._key_is_shared.set()

    async def _end_where_the_key_is_shared(self) -> None:
        await self._key_is_shared.wait()
        raise JoinError(self._shared_key_text)

    async def ping(self, peer: PeerId) -> float | None:
        """Seconds until `peer` answered, its own haste included; None: it did not."""
        began = trio.current_time()
        if not await self._tell(peer, Ping(self.run)):
            return None
        self.heard(peer)
        return trio.current_time() - began

    # tasks

    async def _announce_regularly(self) -> None:
        while True:
            self._hurried = False
            self._notice_absence()
            await self.announce_now()
            with trio.move_on_after(self.config.announce_s * self._rng.uniform(0.85, 1.0)):
                if not self._hurried:
                    await self._hurry.wait()

    async def _exchange_regularly(self) -> None:
        while True:
            await trio.sleep(self.config.announce_s * self._rng.uniform(1.0, 2.0))
            counted = self.table.counted()
            if counted:
                await self.exchange_with(self._rng.choice(counted).peer_id)

    async def _look_at_clock(self) -> None:
        tick_s = min(0.5, self.config.grace_s / 4)
        while True:
            await trio.sleep(tick_s)
            self._notice_absence()
            now = trio.current_time()
            if not self.admission.is_open:
                self.exclude_refused()
            if self._absence.end_probation(now):
                self._note_change()
            self.table.handle_timeout(now)
            self._work()

    # inner steps

    def _note_change(self) -> None:
        self.changed.notify()
        own_role = None if self._own is None else role_of(self._own)
        roles = (self.table.roles_revision, self._absence.n_doubted, own_role)
        if roles != self._roles_told:
            self._roles_told = roles
            self.roles_changed.tell(None)

    def _notice_absence(self) -> None:
        if self._absence.look(self._clocks()):
            self._note_absence()

    def _clocks(self) -> tuple[float, float]:
        return trio.current_time(), self._wall_time()

    def _note_absence(self) -> None:
        self.was_away = True
        self.away.notify()
        self._note_change()

    def _work(self) -> None:
        """Carry out what the table asks for."""
        rang = False
        while (effect := self.table.poll()) is not None:
            if isinstance(effect, Changed):
                rang = True
                self._judge_return(effect)
                before, after = (side.value if side else "absent" for side in (effect.before, effect.after))
                self._events.emit("member.changed", peer=effect.peer_id, before=before, after=after)
                self.member_changed.tell(effect)
            elif isinstance(effect, Met):
                rang = True
            elif isinstance(effect, Refute):
                self.table.incarnation = max(self.table.incarnation, effect.incarnation)
                self._events.emit("member.refuted", incarnation=self.table.incarnation)
                self.announce_soon()
                rang = True
            elif self._nursery is not None:
                if isinstance(effect, Probe):
                    self._nursery.start_soon(self._probe, effect.peer_id)
                elif isinstance(effect, Greet):
                    self._nursery.start_soon(self._greet, effect.peer_id)
                elif isinstance(effect, Accuse):
                    self._nursery.start_soon(self._accuse, effect)
        if rang:
            self._note_change()

    def _judge_return(self, change: Changed) -> None:
        """Only within a region: regions that were cut off from each other go on as they are, and come together as regions do."""
        peer, now = change.peer_id, trio.current_time()
        member = self.table.get(peer)
        if member is not None and member.announcement.region != self.own().region:
            return
        if change.after is Liveness.DEAD:
            self._absence.died(peer, now)
        elif change.after is None:
            self._absence.gone(peer)
        elif change.after is Liveness.ALIVE:
            lost_at = self._absence.lives(peer)
            if lost_at is None or member is None or not member.announcement.ready:
                return  # who was started again follows by itself, before it says that it is ready
            if self._absence.returned(peer, member.announcement.incarnation, lost_at, self._ids_in_region(), now):
                self._note_absence()

    def _ids_in_region(self) -> list[PeerId]:
        return [member.peer_id for member in self.in_region()]

    async def _probe(self, suspect: PeerId) -> None:
        counted = self.table.counted() if self._few_are_silent() else []
        helpers = [m.peer_id for m in counted if m.liveness is Liveness.ALIVE and m.peer_id != suspect]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ping, suspect)
            for helper in self._rng.sample(helpers, min(N_INDIRECT_PROBES, len(helpers))):
                nursery.start_soon(self._ping_through, helper, suspect)

    async def _greet(self, peer: PeerId) -> None:
        member = self.table.get(peer)
        if member is None or member.announcement.region != self.own().region:
            return
        async with self._greetings:
            member = self.table.get(peer)
            if member is not None and not member.met and await self._tell(peer, Ping(self.run)):
                self.heard(peer)

    async def _ping(self, suspect: PeerId) -> None:
        if await self._tell(suspect, Ping(self.run)):
            self.heard(suspect)

    async def _ping_through(self, helper: PeerId, suspect: PeerId) -> None:
        if await self._tell(helper, PingFor(self.run, suspect)):
            self.table.lives(suspect, trio.current_time())
            self._work()

    async def _accuse(self, accusation: Accuse) -> None:
        message = Accusation(self.run, accusation.peer_id, accusation.incarnation)
        others = [m.peer_id for m in self.table.counted()] if self._few_are_silent() else []
        async with trio.open_nursery() as nursery:
            # The accused hears it too, so that it can refute if it lives.
            for peer in (accusation.peer_id, *self._rng.sample(others, min(N_WITNESSES, len(others)))):
                nursery.start_soon(self._tell, peer, message)

    def _few_are_silent(self) -> bool:
        """So few suspects, and dead of a moment ago, that others are to be bothered with one of them."""
        since = trio.current_time() - self.config.grace_s
        return sum(m.liveness is not Liveness.ALIVE and m.since >= since for m in self.table.members()) <= MAX_INVOLVED

    async def _tell(self, peer: PeerId, message: Request[Any]) -> bool:
        """Send something whose answer says only that it arrived."""
        try:
            await self._rpc.ask(peer, message, within_s=self.config.grace_s)
        except NetworkError:
            return False
        return True

    def _take_all(self, sender: PeerId, announcements: Iterable[bytes]) -> None:
        for signed in announcements:
            try:
                announcement = open_signed(signed)
                self.take(signed, direct=peer_of(announcement) == sender)
            except NotAdmittedError as refused:
                self._events.emit("announcement.refused", peer=sender, reason=str(refused))
            except DecodeError as bad:
                self._messenger.report(sender, f"bad announcement: {bad}")
                self._events.emit("announcement.refused", peer=sender, reason=str(bad))

    def _some_announcements(self, excluding: PeerId, limit: int) -> tuple[bytes, ...]:
        """This peer's own and a random sample of the living: `limit`, or as many as fit."""
        peers = [m.peer_id for m in self.table.counted() if m.peer_id != excluding and m.peer_id in self._signed]
        chosen = [self.signed_own()]
        size = len(chosen[0])
        for peer in self._rng.sample(peers, min(limit - 1, len(peers))):
            size += len(self._signed[peer])
            if size > MAX_EXCHANGE_BYTES:
                break
            chosen.append(self._signed[peer])
        return tuple(chosen)

    def _renew(self) -> None:
        self._seq += 1
        before = self._own
        self._own = msgspec.structs.replace(
            self._describe(), incarnation=self.table.incarnation, seq=self._seq, leaving=self._leaving
        )
        self._signed_own = sign(self._own, self._identity)
        if before is None or role_of(before) != role_of(self._own):
            self._note_change()
