"""One peer's part in one run: joins or founds it, runs the services, answers requests, leaves in order.

The engine knows nothing of libp2p or of threads: a network, an offload and a mailbox are handed in, so the same engine runs over
sockets (`peer.py`) and in virtual time (`sim`).
"""

import dataclasses
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import trio
from torch import Tensor

from legion_p2p.concurrency.nurseries import open_flat_nursery
from legion_p2p.config import PeerConfig
from legion_p2p.core.identity import PeerId
from legion_p2p.core.manifest import block_key, checkpoint_key
from legion_p2p.core.membership import Changed, Liveness
from legion_p2p.core.plan import ParamSpec, check_fit
from legion_p2p.core.run import RunSpec, SignedSpec, run_id, sign_spec
from legion_p2p.errors import CodecError, IncompatibleModelError, JoinError, RunExistsError, UnknownRunError
from legion_p2p.observe.events import HANDING_OVER, Events
from legion_p2p.observe.status import Status
from legion_p2p.services.checkpoint.writer import CheckpointService
from legion_p2p.services.context import PeerContext
from legion_p2p.services.inter_region.sync import RegionSync
from legion_p2p.services.membership.regions import RegionService
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.ports import Archive, Offload
from legion_p2p.services.run import status as status_of
from legion_p2p.services.run.advertise import AdvertiseService
from legion_p2p.services.run.answering import Answering
from legion_p2p.services.run.discovery import SEARCH_S, FoundRun, find_run
from legion_p2p.services.run.pacing import Pacer
from legion_p2p.services.run.participant import Network
from legion_p2p.services.run.resume import Restored, catch_up, gather, restore
from legion_p2p.services.run.state_sync import StateSync, keep
from legion_p2p.services.shards.mailbox import Mailbox
from legion_p2p.services.shards.service import ShardService
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest

MAX_PROVIDED = 8  # checkpoints under which a peer is found in the DHT: each is renewed again and again
HAND_OVER_S = 60.0  # to give away what only this peer has: 7 MB at 1 Mbit/s. With a small model it takes a few round trips
FINISH_S = 0.5  # for the disk
GOODBYE_S = 0.75
LEAVE_S = HAND_OVER_S + FINISH_S + GOODBYE_S  # an orderly leave takes at most this long
MAX_TOLD = 16  # members that are told at once that this one leaves
TELL_AFTER_S = 1.0  # of handing over, until people hear how long it takes
TELL_EVERY_S = 3.0
MEMBERS_S = 30.0  # to hear of anybody who holds the model
RETURN_S = 1.0  # who is on the way back first hears who stayed, and that the others who were away own nothing either
FOUND_SEARCH_S = 3.0  # to notice that a run of the name exists already


Params = Sequence[ParamSpec] | Callable[[RunSpec], Sequence[ParamSpec]] | None
"""Parameters of the model that shall train: given, or made once the run's specification is known, or not checked."""


@dataclass(frozen=True)
class RunCreation:
    """A run to found: all of its specification but the founder, and the initial parameters (1-D fp32)."""

    spec: RunSpec
    parameters: Tensor


class Engine(Answering):
    """A member of a run. Made by `running`."""

    # joining and leaving

    async def found(self, founding: RunCreation, nursery: trio.Nursery) -> None:
        """Found a run. Raises: RunExistsError, if others have one of this name; UsageError."""
        spec = msgspec.structs.replace(founding.spec, founder=self.me, nonce=f"{self._rng.getrandbits(64):016x}")
        if self.messenger.connected():
            try:
                known = await find_run(spec.name, self.messenger, self.network.discovery, self.events, search_s=FOUND_SEARCH_S)
            except UnknownRunError:
                pass
            else:
                raise RunExistsError(
                    f"a run named {spec.name!r} exists (id {known.id}): join it with --run {spec.name}, or choose another name"
                )
        self._enter(sign_spec(spec, self.network.identity), spec)
        self.shards.move(await self.regions.first())
        await nursery.start(self.members.run_forever)
        plan = spec.plan()
        for shard in range(plan.n_shards):
            start, end = plan.bounds(shard)
            reference = founding.parameters[start:end].clone()
            self.shards.hold(shard, reference, 0, await self._offload(digest, reference))
        await self._open_archive()
        await self._start(nursery)
        self.events.emit("run.founded", run=self.run, name=spec.name)

    async def find(self, run: str, search_s: float = SEARCH_S) -> FoundRun:
        """Look for a run. Raises: UnknownRunError; AmbiguousRunError."""
        return await find_run(run, self.messenger, self.network.discovery, self.events, search_s=search_s)

    async def join(self, found: FoundRun, params: Params, nursery: trio.Nursery, start: Tensor | None = None) -> None:
        """Join a run that was found. Shards that are still at `start` (1-D fp32, all parameters) are not fetched.

        Raises: IncompatibleModelError; JoinError, if nobody has the model.
        """
        if params is not None:
            check_fit(params(found.spec) if callable(params) else params, found.spec.params)
        self._enter(found.signed, found.spec)
        await nursery.start(self.members.run_forever)
        for contact in found.contacts:
            await self.members.exchange_with(contact)
        with trio.move_on_after(MEMBERS_S) as scope:
            while not any(m.announcement.ready for m in self.members.table.counted()):
                await self.members.changed.wait()
        if scope.cancelled_caught:
            raise JoinError(f"run {found.spec.name!r} is known, but no member that holds the model answered in {MEMBERS_S:.0f} s")
        self.shards.move(await self.regions.first())
        self.members.announce_soon()
        assert self._ctx is not None
        newcomer = StateSync(self._ctx, self.members, self.region, self._archive)
        fetched = await newcomer.fetch(start)
        if any(f.chain.version for f in fetched):
            self.shards.ramp_pushes = self.config.rounds.ramp_pushes
        for f in fetched:
            self.shards.hold_chain(f.shard, f.reference, f.chain)
        self._began_at_step = self.run_step()
        if self._archive is not None:
            await self._open_archive()
            await self._disk(keep, self._archive, fetched, self._began_at_step)
        await self._start(nursery)
        await self.shards.sync_all()  # versions that appeared while the rest was being fetched
        self.events.emit(
            "run.joined", run=self.run, name=found.spec.name, n_donors=len(newcomer.donors), n_shards=len(fetched),
            n_from_checkpoints=sum(f.stored is not None for f in fetched),
        )  # fmt: skip

    async def stored(self, run: str) -> Restored | None:
        """The run of this name or id as this peer's archive has it. Raises: StoreError."""
        return None if self._archive is None else await restore(self._archive, self._disk, run, self.events)

    async def resume(self, restored: Restored, contacts: Sequence[PeerId], params: Params, nursery: trio.Nursery) -> None:
        """Go on with a run from where this peer's archive has it; where others are further, from there.

        Raises: IncompatibleModelError.
        """
        assert self._archive is not None
        stored = restored.stored
        if params is not None:
            check_fit(params(stored.spec) if callable(params) else params, stored.spec.params)
        self._enter(stored.signed, stored.spec)
        self.restored = restored
        self._began_at_step = restored.step
        for shard, (reference, chain) in enumerate(restored.shards):
            self.shards.hold_chain(shard, reference, chain)
        self.events.emit(
            "run.resuming", run=self.run, name=stored.spec.name, manifest=str(stored.cid), step=restored.step,
            version=max(chain.version for _, chain in restored.shards),
        )  # fmt: skip
        await nursery.start(self.members.run_forever)
        assert self._advertise is not None
        nursery.start_soon(self._advertise.run_forever)
        for contact in contacts:
            await self.members.exchange_with(contact)
        self.shards.move(await self.regions.first())
        self.members.announce_soon()
        goes_on = await gather(restored, self._archive, self._disk, self.members, self.config.checkpoints.gather_s)
        self.shards.on_members_changed()
        await catch_up(restored, self.members, self.shards, self.events)
        if goes_on:
            self.shards.ramp_pushes = self.config.rounds.ramp_pushes
        self._began_at_step = self.run_step()
        self.restored = dataclasses.replace(restored, shards=())  # their memory is needed, the state is the trainer's
        await self._start(nursery)
        self.events.emit("run.resumed", run=self.run, name=stored.spec.name, step=self._began_at_step)

    async def _open_archive(self) -> None:
        if self._archive is not None:
            assert self._signed_spec is not None
            await self._disk(self._archive.open, self._signed_spec)

    async def leave(self) -> None:
        """Leave in order: give away what only this peer has, for at most HAND_OVER_S, write down what is queued, say goodbye."""
        if self.leaving or self._members is None:
            return
        self.leaving = True
        self.mailbox.close("this peer has left the run")
        if self._shards is not None and self.ready:
            with trio.move_on_after(HAND_OVER_S):
                await self._hand_over()
        self._left = True
        if self.checkpoints is not None:
            with trio.move_on_after(FINISH_S):
                await self.checkpoints.finish()
        with trio.move_on_after(GOODBYE_S):
            await self._members.leave(GOODBYE_S)
            if self._advertise is not None:
                await self._advertise.withdraw_all()
        self.events.emit("run.left", run=self.run)

    async def _hand_over(self) -> None:
        """Own nothing, and have all that only an owner has at the next ones."""
        self.ready = False
        self.members.announce_soon()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_of_hand_over)
            nursery.start_soon(self.members.announce_now)
            for member in self.members.in_region()[:MAX_TOLD]:  # an heir should not have to wait for gossip
                nursery.start_soon(self.members.exchange_with, member.peer_id)
            self.shards.on_members_changed()
            await self.shards.hand_over_all()
            await self.crossing.carrying.finish_all()
            nursery.cancel_scope.cancel()

    async def _tell_of_hand_over(self) -> None:
        """Where it takes longer than a moment, say how long."""
        began = trio.current_time()
        await trio.sleep(TELL_AFTER_S)
        _, all_bytes = self.shards.to_hand_over
        ends_at, seen_bytes = math.inf, -1
        while True:
            now = trio.current_time()
            n_shards, left_bytes = self.shards.to_hand_over
            done_bps = 8 * (all_bytes - left_bytes) / (now - began)
            bandwidth = self.messenger.bandwidth()
            upload_bps = bandwidth.upload_bps or bandwidth.upload_limit_bps or done_bps
            if upload_bps and (left_bytes != seen_bytes or ends_at == math.inf):
                ends_at, seen_bytes = now + 8 * left_bytes / upload_bps, left_bytes
            remaining_s = None if ends_at == math.inf else round(max(0.0, ends_at - now), 1)
            self.events.emit(HANDING_OVER, n_shards=n_shards, left_bytes=left_bytes, remaining_s=remaining_s)
            await trio.sleep(TELL_EVERY_S)

    def _enter(self, signed: SignedSpec, spec: RunSpec) -> None:
        try:
            for name in spec.round.codecs():
                codec.get(name)
        except CodecError as unknown:
            raise IncompatibleModelError(f"run {spec.name!r} needs another version of this program: {unknown}") from unknown
        self._signed_spec = signed
        self.spec = spec
        self.run = run_id(signed)
        network = self.network
        self._ctx = ctx = PeerContext(
            run=self.run,
            spec=spec,
            identity=network.identity,
            config=self.config,
            messenger=self.messenger,
            discovery=network.discovery,
            gossip=network.gossip,
            offload=self._offload,
            disk=self._disk,
            upload_slots=self.upload_slots,
            events=self.events,
            rng=self._rng,
            wall_time=self._wall_time,
        )
        self._members = members = MemberService(ctx, lambda: status_of.describe(self))
        members.listeners.append(self._on_member_changed)
        self._shards = ShardService(ctx, members, self.mailbox)
        self._regions = RegionService(ctx, members)
        self._crossing = RegionSync(ctx, members, self._shards)
        self._pacer = Pacer(spec.round, self._shards, self.events)
        self._advertise = AdvertiseService(ctx, members, self._shards, self._checkpoint_keys)

    def _checkpoint_keys(self) -> set[str]:
        kept = () if self._archive is None else self._archive.kept[:MAX_PROVIDED]
        return {checkpoint_key(self.run), *map(block_key, kept)} if kept else set()

    async def _start(self, nursery: trio.Nursery) -> None:
        assert self._advertise is not None
        self.ready = True
        await nursery.start(self.shards.run_forever)
        await self.members.announce_now()
        # Gossip takes a second to find its mesh; those who give up shards to us should know now.
        async with trio.open_nursery() as meeting:
            for member in self.members.table.counted()[:16]:
                meeting.start_soon(self.members.exchange_with, member.peer_id)
        self.shards.on_members_changed()
        if self.restored is None:
            nursery.start_soon(self._advertise.run_forever)
        nursery.start_soon(self.crossing.run_forever)
        nursery.start_soon(self._return_when_away)
        nursery.start_soon(self._stay_near)
        if self._archive is not None:
            assert self._ctx is not None
            self.checkpoints = CheckpointService(
                self._ctx, self._archive, self.members, self.shards, self.run_step, lambda: self.trainer_state()
            )
            nursery.start_soon(self.checkpoints.run_forever)

    async def _return_when_away(self) -> None:
        """Whoever was away comes back as a newcomer: first follow, then own."""
        while True:
            if self.members.was_away:
                self.members.was_away = False
                if not any(m.announcement.ready for m in self.members.in_region()):
                    continue
                self.events.emit("run.rejoining", run=self.run)
                async with self._moving:
                    await self._suspend()
                    await trio.sleep(RETURN_S)
                    await self.shards.sync_all()
                    self.members.table.incarnation += 1  # those who took us for dead believe this one
                    self._resume()
                self.events.emit("run.rejoined", run=self.run)
                continue
            await self.members.away.wait()

    async def _stay_near(self) -> None:
        """Measure where this peer is, and follow when another region has become its own."""
        while True:
            label = await self.regions.next_look()
            self.weigh()
            if label != self.region:
                await self._move(label)

    async def _move(self, label: str) -> None:
        """Leave this region for another one: hand over what is owned, take over what is common there, and only then own again."""
        async with self._moving:
            before = self.region
            await self._suspend()
            self.shards.move(label)
            self.crossing.forget()
            self.members.announce_soon()
            self.shards.on_members_changed()
            await self.shards.adopt_region()
            self._resume()
        self.events.emit("region.moved", before=before, after=label)

    async def _suspend(self) -> None:
        """Own nothing."""
        self.ready = False
        self.members.announce_soon()
        self.shards.on_members_changed()
        await self.shards.own_nothing()

    def _resume(self) -> None:
        """Own again."""
        self.ready = not self.leaving
        self.members.announce_soon()
        self.shards.on_members_changed()

    def _on_member_changed(self, change: Changed) -> None:
        if change.after is None and self._regions is not None:
            self._regions.forget(change.peer_id)
        if change.after is Liveness.DEAD:
            self.events.error("member.dead", f"{change.peer_id} does not answer and is taken for dead", peer=change.peer_id)
        self._update_local_steps()

    def status(self) -> Status:
        """What this peer knows now."""
        return status_of.status(self)


@asynccontextmanager
async def running(
    network: Network,
    *,
    run: str = "",
    founding: RunCreation | None = None,
    params: Params = None,
    offload: Offload,
    mailbox: Mailbox,
    events: Events,
    config: PeerConfig,
    rng: random.Random,
    wall_time: Callable[[], float] = time.time,
    search_s: float = SEARCH_S,
    start: Tensor | None = None,
    early: Callable[[Engine], None] | None = None,
    archive: Archive | None = None,
    disk: Offload | None = None,
) -> AsyncIterator[Engine]:
    """Join `run`, or found `founding`, over `network`; leave in order at the end, also when cancelled.

    `early` is called with the engine before it joins, for those who want to watch. `archive`: where checkpoints are kept, through
    `disk`; a run that nobody in reach has, but the archive, goes on from there.
    """
    engine = Engine(network, offload, mailbox, events, config, rng, wall_time, archive, disk)
    if early is not None:
        early(engine)
    engine.messenger.serve(engine.handle)
    async with open_flat_nursery() as nursery:
        try:
            if founding is not None:
                await engine.found(founding, nursery)
            else:
                await _enter_run(engine, run, params, nursery, search_s, start)
            yield engine
        finally:
            with trio.CancelScope(shield=True):
                await engine.leave()
            nursery.cancel_scope.cancel()


async def _enter_run(
    engine: Engine, run: str, params: Params, nursery: trio.Nursery, search_s: float, start: Tensor | None
) -> None:
    """Into the run by this name: with those who are in it, and with what is stored of it here."""
    restored = await engine.stored(run)
    if restored is not None:  # what is here already need not be searched for long, and not at all where nobody can be asked
        search_s = FOUND_SEARCH_S if engine.network.messenger.connected() else 0.0
    try:
        found = await engine.find(run, search_s)
    except UnknownRunError:
        if restored is None:
            raise
        await engine.resume(restored, (), params, nursery)
        return
    if restored is not None and found.id != str(restored.stored.manifest.run):
        restored = await engine.stored(found.id)
    if restored is not None:
        await engine.resume(restored, found.contacts, params, nursery)
    else:
        await engine.join(found, params, nursery, start)
