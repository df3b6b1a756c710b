"""The life of the shards at one peer: one task looks after all of them.

It asks the machines of every shard to which something happened, or whose time has come (core/shard), and carries out what they
say: what takes a moment at once, transfers and arithmetic in tasks of their own. A shard that rests costs nothing.

The invariants of docs/ARCHITECTURE.md are kept here and tested in tests/sim.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from legion_p2p.concurrency.at_once import run_at_once
from legion_p2p.concurrency.nurseries import TaskStatus
from legion_p2p.core.announcement import Announcement, peer_of
from legion_p2p.core.claims import TimedClaims
from legion_p2p.core.forwarding.overdue import Inquire
from legion_p2p.core.identity import PeerId
from legion_p2p.core.member import Changed, Liveness
from legion_p2p.core.observers import Observers
from legion_p2p.core.priority import Priority
from legion_p2p.core.shard import follower_events, life, owner, push_events
from legion_p2p.core.shard.agenda import Agenda
from legion_p2p.core.shard.life_events import Gone
from legion_p2p.core.shard.stall import Stalled
from legion_p2p.core.wire import (
    AncestryQuery,
    Cosign,
    Equivocation,
    GetInput,
    GetMarks,
    GetShard,
    GetUpdates,
    GetVersion,
    HandoverPart,
    Message,
    Miscount,
    Omission,
    Push,
    Request,
    Update,
    UpdatesMade,
)
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.rpc import Scope
from legion_p2p.services.shards.catch_up import CatchUpService
from legion_p2p.services.shards.cosignatures import Cosignatures
from legion_p2p.services.shards.cosigner import CosignService
from legion_p2p.services.shards.equivocation import EquivocationWatch
from legion_p2p.services.shards.evidence import EvidenceService
from legion_p2p.services.shards.follower import FollowService
from legion_p2p.services.shards.forwarder import ForwardService
from legion_p2p.services.shards.handover import HandoverService
from legion_p2p.services.shards.input_exchange import InputExchange
from legion_p2p.services.shards.mailbox import Mailbox
from legion_p2p.services.shards.mark_exchange import MarkExchange
from legion_p2p.services.shards.network_watch import NetworkWatch
from legion_p2p.services.shards.news import ShardNews
from legion_p2p.services.shards.owner import OwnerService, Watchers
from legion_p2p.services.shards.pusher import PushService
from legion_p2p.services.shards.receipts import Receipts
from legion_p2p.services.shards.replica import LocalChange, Replica
from legion_p2p.services.shards.screening import ScreeningLog
from legion_p2p.services.shards.shard_server import ShardServer
from legion_p2p.services.shards.states import ShardStates
from legion_p2p.services.shards.taking_back import TakeBackService
from legion_p2p.services.shards.witness import StandbyWatch

R = TypeVar("R", bound=Message)

SETTLE_S = 0.05  # membership news of this period are looked at together


class ShardService:
    """All shards of a run at one peer: the service that runs them."""

    def __init__(self, ctx: PeerContext, members: MemberService, mailbox: Mailbox) -> None:
        self.states = ShardStates(ctx, members, mailbox)
        self.mark_exchange = MarkExchange(ctx, self.states)
        self.news = ShardNews(ctx, self.states, self.mark_exchange)
        self.exchange = InputExchange(ctx, self.states)
        self.evidence = EvidenceService(ctx, self.states, self.exchange)
        self.witness = StandbyWatch(ctx, self.states, self.evidence, self.exchange)
        self.taking_back = TakeBackService(ctx, self.states)
        self.cosignatures = Cosignatures(ctx, self.states, self.news, self.witness)
        self.follower = FollowService(ctx, self.states, self.news, self.cosignatures, self.taking_back)
        self.catch_up = CatchUpService(ctx, self.states, self.news, self.follower, self.cosignatures, self.taking_back)
        self.forwarder = ForwardService(ctx, self.states, self.follower)
        self.handover = HandoverService(ctx, self.states, self.follower)
        self.equivocation = EquivocationWatch(ctx, self.states, self.mark_exchange, self.news, self.follower, self.evidence)
        self.receipts = Receipts(ctx, self.states, self.evidence)
        self.screening = ScreeningLog(ctx, self.states)
        self.cosigner = CosignService(ctx, self.states, self.witness)
        self.networks = NetworkWatch(ctx, self.states)
        self.watchers = Watchers(self.witness, self.cosigner, self.taking_back, self.networks)
        self.owner = OwnerService(ctx, self.states, self.news, self.catch_up, self.forwarder, self.watchers)
        self.pusher = PushService(ctx, self.states, self.receipts, self.owner.submit)
        self.server = ShardServer(ctx, self.states)
        self.run = ctx.run
        self.spec = ctx.spec
        self.plan = ctx.plan
        self.me = ctx.me
        self.placement = self.states.placement
        self.replica = self.states.replica
        self.ownership = self.states.ownership
        self.owned = self.states.owned
        self.codec_of = self.states.codec_of
        self.compute = self.states.compute
        self.marks = self.states.marks
        self.hold = self.states.hold
        self.hold_chain = self.states.hold_chain
        self.sync_all = self.catch_up.sync_all
        self.sync = self.catch_up.sync
        self.adopt_region = self.catch_up.adopt_region
        self.hand_over_all = self.handover.hand_over_all
        self.stalls = TimedClaims()
        self.looked: Observers[None] = Observers()
        """Told when this peer has looked at members that have changed."""
        self._events = ctx.events
        self._members = members
        self._agenda = Agenda()
        self._expected: tuple[PeerId, ...] | None = None
        self._not_expected: frozenset[PeerId] = frozenset()
        self._look_at: float | None = None
        self.evidence.proven_wrong.add(self.taking_back.on_proven_wrong)
        self.witness.broken.add(self._note_broken)
        self.evidence.ignored.add(self._note_broken)
        self.networks.broken.add(self._note_broken)
        members.member_changed.add(self._on_member_changed)
        members.announcements.add(self._on_announcement)
        members.roles_changed.add(lambda _: self._look_soon())
        self.states.redealt.add(lambda _: self._look_soon())

    def answer(self, scope: Scope) -> None:
        """Answer all requests about shards from now on."""
        scope.on(Push, self.owner.on_push)
        scope.on(Update, self.follower.on_update)
        scope.on(UpdatesMade, self.forwarder.on_updates_made)
        scope.on(GetUpdates, self.server.on_get_updates)
        scope.on(GetVersion, self.server.on_get_version)
        scope.on(GetMarks, self.mark_exchange.on_get_marks)
        scope.on(GetShard, self.server.on_get_shard)
        scope.on(AncestryQuery, self.server.on_ancestry_query)
        scope.on(HandoverPart, self.handover.on_handover)
        scope.on(Equivocation, self.evidence.on_evidence)
        scope.on(Omission, self.evidence.on_evidence)
        scope.on(Miscount, self.evidence.on_miscount)
        scope.on(GetInput, self.exchange.on_get_input)
        scope.on(Cosign, self.cosigner.on_cosign)

    # what the rest of the peer asks for

    @property
    def replicas(self) -> dict[int, Replica]:
        return self.states.replicas

    @property
    def region(self) -> str:
        return self.states.region

    def contribute(self, change: LocalChange) -> None:
        """A local change to push. Its shard must have been settled since the last one."""
        self.pusher.contribute(change)

    async def sync_with(self, shard: int, peer: PeerId) -> None:
        """Take over what `peer` holds of a shard, of any owner: for a caller that knows which peers to believe."""
        await self.catch_up.fetch_patiently(self.replicas[shard], peer, trusted=True)

    async def ask_owner(self, peer: PeerId, request: Request[R]) -> R:
        """Ask another owner, as one of few transfers at a time. Raises: NetworkError."""
        async with self.states.transfers:
            return await self.states.rpc.ask(peer, request, Priority.ROUND)

    def move(self, region: str) -> None:
        """This peer is in another region from now on, and owns nothing yet."""
        self.states.region = region
        for replica in self.states.replicas.values():
            replica.life.follower.forget()

    async def own_nothing(self) -> None:
        """Until every round that this peer kept is closed for good: its members know it as not ready, so it owns nothing."""
        while any(replica.round is not None for replica in self.states.replicas.values()):
            await self.states.settled.wait()

    def on_members_changed(self) -> None:
        """Look at the members now: owners may differ, others may train than before, and other regions may be further."""
        self._look_at = None
        for replica in self.states.refresh_owners():
            self.news.look_at(replica)
        self._take_in_expected()
        for shard in self.states.owned():
            self.replicas[shard].notify.notify()
        self.looked.tell(None)

    # news of members

    def _take_in_expected(self) -> None:
        """Rounds wait for the members that train now, and whose pushes count."""
        training, weightless = self._members.roster.training(self.states.region), self.states.weightless()
        if training is not self._expected or weightless is not self._not_expected:
            self._expected, self._not_expected = training, weightless
            expected = tuple(peer for peer in training if peer not in weightless) if weightless else training
            for replica in self.states.replicas.values():
                replica.life.owner.handle(owner.Expected(expected), trio.current_time())
                if replica.round is not None:
                    self.states.wake(replica)

    def _on_announcement(self, announcement: Announcement) -> None:
        if announcement.region == self.region:
            self.news.heard_of(peer_of(announcement))
        else:
            self._look_soon()

    def _on_member_changed(self, change: Changed) -> None:
        self.news.heard_of(change.peer_id)
        if change.after in (None, Liveness.DEAD):
            for replica in self.states.replicas.values():
                if replica.life.push.holder == change.peer_id:
                    replica.life.handle(Gone(change.peer_id), trio.current_time())
                    self.states.wake(replica)

    def _look_soon(self) -> None:
        if self._look_at is None:
            self._look_at = trio.current_time() + SETTLE_S
            self.states.woken.set()

    # the task

    async def run_forever(self, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self.states.nursery = nursery
            try:
                self._expected = None  # shards may have come since
                self.on_members_changed()
                for replica in self.states.replicas.values():
                    self.news.look_at(replica)
                    self.states.wake(replica)
                task_status.started(None)
                while True:
                    self._work(trio.current_time())
                    with trio.move_on_at(self._next_deadline()):
                        await self.states.woken.wait()
            finally:
                self.states.nursery = None  # a peer that leaves still answers and asks, but starts nothing

    def _next_deadline(self) -> float:
        deadlines = (self._look_at, self._agenda.next_deadline())
        return min((at for at in deadlines if at is not None), default=math.inf)

    def _work(self, now: float) -> None:
        """Look at everything that there is to look at now."""
        if self._look_at is not None and now >= self._look_at:
            self.on_members_changed()
        # At once, while other news settle: no round may close without a member that said already that it trains.
        self._take_in_expected()
        if self.states.woken.is_set():
            self.states.woken = trio.Event()
        shards = dict.fromkeys(self._agenda.due(now)) | self.states.take_to_look_at()
        for shard in shards:
            self._look(self.states.replicas[shard], now)

    def _look(self, replica: Replica, now: float) -> None:
        happened = True
        while happened:
            replica.life.handle_timeout(now)
            while (effect := replica.life.poll()) is not None:
                self._carry_out(replica, effect)
            happened = self.states.take_one_to_look_at(replica)  # by what was carried out
        self._agenda.set(replica.shard, replica.life.next_deadline())

    def _carry_out(self, replica: Replica, effect: life.Effect) -> None:
        match effect:
            case push_events.Compress(change):
                if self.pusher.encodes_at_once(replica):
                    run_at_once(self.pusher.encode(replica, change))
                else:
                    self._start(self.pusher.encode, replica, change)
            case push_events.Rebase(change, seq):
                self._start(self.pusher.rebase, replica, change, seq)
            case push_events.SendPush(target, packed):
                self._start(self.pusher.send, replica, target, packed)
            case push_events.GiveUp():
                self.pusher.give_up(replica)
            case push_events.Enter(packed):
                self.pusher.enter(replica, packed)
            case push_events.Settle(failure):
                self.states.mailbox.settle(replica.shard, failure)
                self.states.settled.notify()
            case push_events.Ask(peer):
                self.pusher.ask_for_included(replica, peer)
            case Stalled(stalled):
                self._start(self._note_stalled, replica, stalled)
            case Inquire(peer):
                self._start(self.forwarder.inquire, replica, peer)
            case follower_events.Fetch(peer, within_s):
                self._start(self._do, replica, self.catch_up.fetch_what_is_promised, peer, within_s)
            case owner.Claim():
                self._start(self._do, replica, self.owner.claim)
            case owner.Release():
                self._start(self._do, replica, self.handover.release)
            case owner.Close():
                self._start(self._do, replica, self.owner.close)

    async def _note_stalled(self, replica: Replica, stalled: PeerId) -> None:
        version = replica.chain.version
        await self.news.hear(replica, self._members.roster.ready(self.states.region))
        if replica.chain.version != version:
            return  # it went on while the others answered
        if self._members.absence.was_away or not self._members.roster.is_heard(stalled) or self.news.is_behind_most(replica):
            return  # versions may have been made that have not come here; whether a silent owner is dead is decided elsewhere
        if self.stalls.found(stalled, trio.current_time()):
            self._events.emit("owner.stalled", shard=replica.shard, version=replica.chain.version, owner=stalled)
            self._members.announcer.announce_soon()

    def _note_broken(self, owner: PeerId) -> None:
        """It proves nothing by itself: others see it as well, and say so."""
        if self.stalls.found(owner, trio.current_time()):
            self._events.emit("owner.inconsistent", owner=owner)
            self._members.announcer.announce_soon()

    def _start(self, fn: Callable[..., Awaitable[Any]], *args: Any) -> None:
        assert self.states.nursery is not None
        self.states.nursery.start_soon(fn, *args)

    async def _do(self, replica: Replica, job: Callable[..., Awaitable[Any]], *args: Any) -> None:
        """One of the things that are done one at a time for each shard."""
        await job(replica, *args)
        replica.life.done()
        self.states.wake(replica)
