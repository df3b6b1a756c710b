"""One peer's part in one run: the services that it consists of, and what the trainer does with them.

Every part is there from the first moment. How a run is entered stands in joiner.py, how it is left in leaving.py; what a peer
answers and what it says of itself are functions over an `ActiveRun`, in dispatch.py and status.py.
"""

import hashlib
from collections.abc import Sequence

import torch
import trio
from torch import Tensor

from legion_p2p.core.agreement import Agreement
from legion_p2p.core.announcement import Announcement
from legion_p2p.core.identity import PeerId
from legion_p2p.core.marks import state_of
from legion_p2p.core.member import Changed, Liveness
from legion_p2p.core.plan import ShardPlan
from legion_p2p.core.presence import Presence
from legion_p2p.core.roles import Role
from legion_p2p.core.run import RunSpec, SignedSpec
from legion_p2p.services.context import PeerContext
from legion_p2p.services.inter_region.sync import RegionSync
from legion_p2p.services.inter_region.traffic import RegionalMessenger
from legion_p2p.services.inter_region.unit_sync import UnitSync
from legion_p2p.services.membership.location import RegionService
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.run.advertise import AdvertiseService
from legion_p2p.services.run.clock_log import log_clock
from legion_p2p.services.run.control import ControlService
from legion_p2p.services.run.former import FormerMembers
from legion_p2p.services.run.gate import OwnershipGate
from legion_p2p.services.run.lobby import Lobby
from legion_p2p.services.run.local_checkpoints import LocalCheckpoints
from legion_p2p.services.run.moving import MoveService
from legion_p2p.services.run.own_reach import AnnouncedReach
from legion_p2p.services.run.pacing import Pacer
from legion_p2p.services.run.progress import Progress, StepCount
from legion_p2p.services.run.question_sharing import QuestionService
from legion_p2p.services.run.resume import Restored
from legion_p2p.services.run.returning import ReturnService
from legion_p2p.services.run.target import TargetService
from legion_p2p.services.run.weight import OwnWeight
from legion_p2p.services.sharding.service import UnitService
from legion_p2p.services.shards.local_trainer import LocalTrainer, News
from legion_p2p.services.shards.replica import LocalChange
from legion_p2p.services.shards.service import ShardService
from legion_p2p.tensor.local import LocalCopy

MAX_GREETED = 16  # members that a peer which joins exchanges announcements with at once: gossip brings the rest


class ActiveRun:
    """A peer in a run. Made by `services.run.joiner`. Under trio: other threads may only read its plain attributes."""

    def __init__(
        self,
        lobby: Lobby,
        ctx: PeerContext,
        signed: SignedSpec,
        messenger: RegionalMessenger,
        members: MemberService,
        restored: Restored | None = None,
    ) -> None:
        """`messenger` is that of `ctx`. `restored`: what this peer resumes from; None: it created or joined the run."""
        self.lobby = lobby
        self.ctx = ctx
        self.signed = signed
        self.messenger = messenger
        self.members = members
        self.restored = restored
        self.dashboard = ""
        """Address of this peer's page with its token, for the user who started the peer; empty: it has none."""
        self.network = lobby.parts.network
        self.mailbox = lobby.parts.mailbox
        self.upload_slots = lobby.upload_slots
        self.events = ctx.events
        self.me: PeerId = ctx.me
        self.id = ctx.run
        self.spec: RunSpec = ctx.spec
        self.plan: ShardPlan = ctx.plan
        self.steps = StepCount()
        self.control = ControlService(ctx)
        archive = lobby.parts.archive
        self.weight = OwnWeight(0.0 if self.role is Role.CLIENT else ctx.config.weight, messenger)
        self.shards = ShardService(ctx, members, self.mailbox)
        self.units = UnitService(ctx, members, archive) if ctx.spec.sharding == "full" else None
        """The units of a sharded run; None: every member holds the whole model."""
        self.gate = OwnershipGate(members, self.shards)
        self.regions = RegionService(ctx, members)
        self.region_sync = RegionSync(ctx, members, self.shards)
        self.unit_sync = None if self.units is None else UnitSync(ctx, members, self.units)
        self.target = TargetService(ctx, members, self.steps, self.shards.states, self.control)
        self.questions = QuestionService(ctx, members)
        self.pacer = Pacer(ctx.spec.round, self.shards, ctx.events)
        follows = self.units is None
        self.checkpoints = LocalCheckpoints(
            ctx, archive, members, self.shards, self.run_step, self.target.own_tokens, follows=follows
        )
        self.reach = AnnouncedReach(ctx, members)
        self.advertise = AdvertiseService(ctx, members, self.shards, self.checkpoints.keys)
        self.checkpoints.on_published(self.advertise.look_again)
        self.former = FormerMembers(ctx, members, self.checkpoints)
        self.returning = ReturnService(ctx, members, self.shards, self.gate)
        self.moving = MoveService(ctx, members, self.shards, self.regions, self.region_sync, self.gate, self.weight)
        self.came_late = False
        """Others had trained the run before this peer came."""
        self._agreement = Agreement(ctx.config.membership.announce_s)
        members.member_changed.add(self._on_member_changed)
        self.shards.looked.add(lambda _: self._on_looked())
        self._came_or_went = False

    def local_trainer(self, local: LocalCopy, news: News) -> LocalTrainer:
        """The books of the side that trains; `news`: what comes from here."""
        may_differ = not self.spec.round.synchronous  # otherwise all members push all shards after the same number of steps
        streaming = may_differ and self.spec.round.streaming
        return LocalTrainer(local, news, streaming=streaming, came_late=may_differ and self.came_late)

    async def take_part(self, nursery: trio.Nursery) -> None:
        """Own shards and train from now on; every shard is held. What else a member does runs in `nursery`."""
        self.presence.joined()
        await nursery.start(self.shards.run_forever)
        await self.members.announcer.announce_now()
        await self.greet()
        self.shards.on_members_changed()
        if self.units is not None and self.unit_sync is not None:  # a region that holds the model together
            await nursery.start(self.units.run_forever)
            nursery.start_soon(self.unit_sync.run_forever)
        else:
            nursery.start_soon(self.region_sync.run_forever)
            nursery.start_soon(self.returning.run_forever)
            nursery.start_soon(self.moving.run_forever)
            nursery.start_soon(self.checkpoints.run_forever)
        nursery.start_soon(self.former.run_forever)
        nursery.start_soon(self.control.run_forever)
        nursery.start_soon(self.target.run_forever)
        nursery.start_soon(self.questions.run_forever)
        nursery.start_soon(log_clock, self.ctx)

    async def greet(self) -> None:
        """Exchange announcements with members. Gossip takes a second to find its mesh; those that give up shards to this peer,
        or ask what admits it, should know at once."""
        async with trio.open_nursery() as exchanges:
            nearest_first = sorted(self.members.table.counted(), key=lambda member: not self.members.table.is_here(member))
            for member in nearest_first[:MAX_GREETED]:
                exchanges.start_soon(self.members.exchange_with, member.peer_id)

    # what can be read at any time

    @property
    def presence(self) -> Presence:
        return self.gate.presence

    @property
    def role(self) -> Role:
        return self.ctx.config.role

    @property
    def progress(self) -> Progress:
        return self.steps.progress

    @property
    def region(self) -> str:
        """Label of the region that this peer is in; empty before it has chosen one."""
        return self.shards.region

    @property
    def local_steps(self) -> int:
        """Local steps of this peer to its next push, as things are now."""
        return self.pacer.local_steps

    def compacts(self) -> bool:
        """Whether changes are handed in compactly. Alone, they become the next version bit for bit; and where training waits for
        each round, nothing is held meanwhile.
        """
        return not self.spec.round.synchronous and not self.members.roster.alone()

    def is_across(self, peer: PeerId) -> bool:
        """Whether `peer` is a member of another region."""
        member = self.members.table.get(peer)
        return member is not None and member.announcement.region != self.region

    # for the trainer

    def contribute(self, changes: Sequence[LocalChange]) -> None:
        """Hand in local changes, at most one per settled shard."""
        for change in changes:
            self.shards.contribute(change)

    def push_last(self) -> None:
        """What is handed in from now on is the last that this peer pushes."""
        self.pacer.push_last(self._others(), self.messenger.bandwidth())

    def report(self, progress: Progress) -> None:
        """The newest from the training thread. What others act on is announced at once."""
        before, self.steps.progress = self.steps.progress, progress
        if progress.changes_what_others_do(before):
            self.members.announcer.announce_soon()
        self._update_local_steps()

    def run_step(self) -> int:
        """The step that the run has come to."""
        return self.steps.of_run(self.members)

    def common_parameters(self) -> Tensor:
        """The region's common copy, flat: 1-D fp32."""
        return torch.cat([self.shards.replicas[shard].reference for shard in range(self.plan.n_shards)])

    def common_digest(self) -> str:
        """One digest over those of all shards, in hex."""
        whole = hashlib.sha256()
        for shard in sorted(self.shards.replicas):
            whole.update(self.shards.replicas[shard].chain.digest)
        return whole.hexdigest()

    async def wait_for_members(self, n: int) -> None:
        """Until the run has `n` members that hold the model, this peer included."""
        while sum(a.ready for a in self.members.roster.everyone()) < n:
            await self.members.changed.wait()

    def all_done(self) -> bool:
        """Every member has trained all it wanted to, and all of this region hold the same model: see `core.agreement`."""
        state = state_of(self.shards.marks())
        return self._agreement.look(self.has_finished(), state, self.region, self._others(), trio.current_time())

    def has_finished(self) -> bool:
        """This peer has trained all that it wants to now, which is nothing for a helper, and none of it is on its way."""
        return (self.progress.done or self.progress.paused or not self.role.trains) and self.nothing_pending()

    def nothing_pending(self) -> bool:
        """Nothing that this peer trained, or collected as an owner, has still to come into an update."""
        return all(r.life.push.is_idle and (r.round is None or not r.round.waiting) for r in self.shards.replicas.values())

    # inner steps

    def _others(self) -> list[Announcement]:
        return self.members.roster.others()

    def _on_member_changed(self, change: Changed) -> None:
        if change.after is None:
            self.regions.forget(change.peer_id)
        if change.after is Liveness.DEAD and not self.ctx.reachability.is_cut_off():
            self.events.error("member.dead", f"{change.peer_id} does not answer and is taken for dead", peer=change.peer_id)
        self._came_or_went = True

    def _on_looked(self) -> None:
        """Once for all that came or went in a moment: of hundreds it takes a while to look at the steps of all."""
        if self._came_or_went:
            self._came_or_went = False
            self._update_local_steps()

    def _update_local_steps(self) -> None:
        if self.units is not None:  # every step is one of the whole group
            return
        self.pacer.update(self.steps.own(), self.progress.step_s, self._others(), self.messenger.bandwidth())
