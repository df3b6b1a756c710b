"""What a peer's part in a run consists of, and what it says of itself at any time. What it does there: engine.py."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import trio
from torch import Tensor

from legion_p2p.config import AUTO_WEIGHT, PeerConfig
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.placement import SmoothedWeight, weight_of
from legion_p2p.core.plan import ShardPlan
from legion_p2p.core.run import RunSpec, SignedSpec
from legion_p2p.errors import JoinError
from legion_p2p.observe.events import Events
from legion_p2p.services.checkpoint.serve import ProvideService
from legion_p2p.services.checkpoint.writer import CheckpointService
from legion_p2p.services.context import PeerContext
from legion_p2p.services.inter_region.sync import RegionSync
from legion_p2p.services.inter_region.traffic import RegionalMessenger
from legion_p2p.services.membership.regions import RegionService
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.ports import Archive, Discovery, Gossip, Messenger, Offload
from legion_p2p.services.run.advertise import AdvertiseService
from legion_p2p.services.run.pacing import Pacer
from legion_p2p.services.run.resume import Restored
from legion_p2p.services.shards.mailbox import Mailbox
from legion_p2p.services.shards.replica import LocalChange
from legion_p2p.services.shards.service import ShardService
from legion_p2p.services.upload_slots import UploadSlotService


class Network(Protocol):
    """What an engine runs on."""

    identity: Identity
    messenger: Messenger
    discovery: Discovery
    gossip: Gossip

    def addresses(self) -> tuple[str, ...]: ...


class Progress(msgspec.Struct, frozen=True):
    """What the training thread says of itself. Replaced as a whole, never changed."""

    step: int = 0
    tokens: int = 0
    tokens_per_s: float = 0.0
    step_s: float = 0.0
    loss: float | None = None
    training: bool = False
    done: bool = False
    epoch: int = 0
    chunks: bytes = b""
    blocked_fraction: float = 0.0
    target_steps: int | None = None
    remaining_s: float | None = None
    state: str = ""
    run_step: int = 0
    """Of the run, where the trainer counts that; else the peer does, by `step`."""


class Participant:
    """The services of a peer in a run, and what can be read of them at any time."""

    def __init__(
        self,
        network: Network,
        offload: Offload,
        mailbox: Mailbox,
        events: Events,
        config: PeerConfig,
        rng: random.Random,
        wall_time: Callable[[], float],
        archive: Archive | None = None,
        disk: Offload | None = None,
    ) -> None:
        self.network = network
        self.me: PeerId = network.identity.peer_id
        self.messenger = RegionalMessenger(network.messenger, self._is_across)
        self.mailbox = mailbox
        self.events = events
        self.config = config
        self.progress = Progress()
        self.restored: Restored | None = None
        """What this peer resumed from; None where it founded or joined."""
        self.trainer_state: Callable[[], Mapping[str, Any]] = dict
        """What the training thread needs to go on after a restart, as checkpoints keep it. Called in the peer's thread."""
        self.checkpoints: CheckpointService | None = None
        self.spec: RunSpec | None = None
        self.run = ""
        self.ready = False
        self._offload = offload
        self._archive = archive
        self._disk = disk or offload
        self.upload_slots = UploadSlotService(self.messenger)
        self._provider = None if archive is None else ProvideService(archive, offload, self.upload_slots)
        self._began_at_step = 0
        self._rng = rng
        self._wall_time = wall_time
        self._started = wall_time()
        self._signed_spec: SignedSpec | None = None
        self._members: MemberService | None = None
        self._shards: ShardService | None = None
        self._ctx: PeerContext | None = None
        self._crossing: RegionSync | None = None
        self._regions: RegionService | None = None
        self._smoothed = SmoothedWeight()
        self._moving = trio.Lock()
        self._advertise: AdvertiseService | None = None
        self._pacer: Pacer | None = None
        self.leaving = False
        self._left = False
        self._agreed: tuple[bytes, float] | None = None
        """The marks on which all agree, being done, and since when."""

    @property
    def in_run(self) -> bool:
        """It knows the run's specification, and takes part or is about to."""
        return self.spec is not None and self._shards is not None

    @property
    def weight(self) -> float:
        """What it announces: 1 while nothing is measured and nobody has set it."""
        set_to = self.config.weight
        return set_to if set_to != AUTO_WEIGHT else self._smoothed.value or 1.0

    def weigh(self) -> None:
        """Once per announcement period: take in what the upload carries now."""
        upload_bps = self.messenger.bandwidth().known_upload_bps
        if upload_bps is not None:
            self._smoothed.add(weight_of(upload_bps))

    def uptime_s(self) -> float:
        """Since this object was made."""
        return self._wall_time() - self._started

    # for the trainer

    @property
    def members(self) -> MemberService:
        if self._members is None:
            raise JoinError("not in a run yet")
        return self._members

    @property
    def shards(self) -> ShardService:
        if self._shards is None:
            raise JoinError("not in a run yet")
        return self._shards

    @property
    def regions(self) -> RegionService:
        if self._regions is None:
            raise JoinError("not in a run yet")
        return self._regions

    @property
    def crossing(self) -> RegionSync:
        if self._crossing is None:
            raise JoinError("not in a run yet")
        return self._crossing

    @property
    def region(self) -> str:
        """Label of the region that this peer is in."""
        return self._shards.region if self._shards is not None else ""

    @property
    def plan(self) -> ShardPlan:
        return self.shards.plan

    @property
    def local_steps(self) -> int:
        """Steps to the next push, for this peer now."""
        return 1 if self._pacer is None else self._pacer.local_steps

    def _is_across(self, peer: PeerId) -> bool:
        member = None if self._members is None else self._members.table.get(peer)
        return member is not None and member.announcement.region != self.region

    def contribute(self, changes: Sequence[LocalChange]) -> None:
        """Hand in local changes, at most one per settled shard."""
        for change in changes:
            self.shards.contribute(change)

    def push_last(self) -> None:
        """What is handed in from now on is the last that this peer pushes."""
        if self._pacer is not None:
            self._pacer.push_last([m.announcement for m in self.members.table.counted()], self.messenger.bandwidth())

    def report(self, progress: Progress) -> None:
        """The newest from the training thread; changes of training and done are announced at once."""
        before, self.progress = self.progress, progress
        if (before.training, before.done, before.epoch, before.chunks) != (
            progress.training,
            progress.done,
            progress.epoch,
            progress.chunks,
        ):
            self.members.announce_soon()
        self._update_local_steps()

    def run_step(self) -> int:
        """Steps of the run: what it had come to when this peer began and its steps since; or what most of the others say, if that
        is more. Not what the one says that says most: newcomers take it over, and would pass a lie on for ever.
        """
        others = [m.announcement.run_step for m in self.members.table.counted() if m.announcement.ready]
        return max(self.own_run_step(), statistics.median_low(others) if others else 0)

    def own_run_step(self) -> int:
        return max(self.progress.run_step, self._began_at_step + self.progress.step)

    def common_parameters(self) -> Tensor:
        """The region's common copy, flat: 1-D fp32."""
        import torch

        return torch.cat([self.shards.replicas[shard].reference for shard in range(self.plan.n_shards)])

    def common_digest(self) -> str:
        """One digest over those of all shards, in hex."""
        import hashlib

        whole = hashlib.sha256()
        for shard in sorted(self.shards.replicas):
            whole.update(self.shards.replicas[shard].chain.digest)
        return whole.hexdigest()

    async def wait_for_members(self, n: int) -> None:
        """Until the run has `n` members that hold the model, this peer included."""
        while sum(a.ready for a in self.members.everyone()) < n:
            await self.members.changed.wait()

    def all_done(self) -> bool:
        """Every member has trained all it wanted to, and those of this region held the same versions for an announcement's time.

        Members on probation or on their way back count as well: what they have still to push would change the model. One look is
        not enough: an announcement may be older than what its sender has been sent since.
        """
        others = [member.announcement for member in self.members.table.counted()]
        marks = self.shards.marks()
        agreed = self.progress.done and self.nothing_pending()
        agreed = agreed and all(a.done and (a.marks == marks or a.region != self.region) for a in others)
        now = trio.current_time()
        if not agreed or self._agreed is None or self._agreed[0] != marks:
            self._agreed = (marks, now) if agreed else None
        if self._agreed is None:
            return False
        return not others or now - self._agreed[1] >= self.config.membership.announce_s

    def nothing_pending(self) -> bool:
        return self._shards is None or all(
            r.pending is None and r.offered is None and (r.round is None or not r.round.waiting)
            for r in self._shards.replicas.values()
        )

    def _update_local_steps(self) -> None:
        if self._pacer is not None:
            others = [member.announcement for member in self.members.table.counted()]
            self._pacer.update(self.own_run_step(), self.progress.step_s, others, self.messenger.bandwidth())
