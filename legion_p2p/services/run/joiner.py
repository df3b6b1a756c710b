"""Entering a run: by finding it, by creating it, or by going on with what this peer's disk has of it.

    create                                  -> a run of that name must not exist; its first member holds the initial parameters
    join a run that somebody in reach is in -> its specification; its members; the model, from them; then take part
    join a run that is stored here          -> the model, from the disk; what the others have newer; then take part
    nobody in reach knows the run           -> go on with what is stored; if nothing is, an error: never a second run by accident

The peer knows nothing of libp2p or of threads: a network, an offload and a mailbox are handed in, so the same peer runs over
sockets (`peer.py`) and in virtual time (`sim`).
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import torch
import trio
from torch import Tensor

from legion_p2p.concurrency.nurseries import open_flat_nursery
from legion_p2p.core.identity import PeerId
from legion_p2p.core.run import RunSpec, SignedSpec, sign_spec
from legion_p2p.errors import DecodeError, JoinError, RunExistsError, StoreError, UnknownRunError, UsageError
from legion_p2p.services.inter_region.region_founding import RegionFounder
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.assembly import assembled
from legion_p2p.services.run.dispatch import answer, answer_before
from legion_p2p.services.run.fitting import Params, check_model, make_ready
from legion_p2p.services.run.leaving import leave
from legion_p2p.services.run.lobby import Lobby, PeerParts
from legion_p2p.services.run.resume import Restored, catch_up, gather, restore
from legion_p2p.services.run.returning import let_others_go_on
from legion_p2p.services.run.run_discovery import SEARCH_S, FoundRun, find_run
from legion_p2p.services.run.state_sync import StateSync
from legion_p2p.services.sharding.saver import FlatMoments, read_moments
from legion_p2p.tensor.flatten import digest

MEMBERS_S = 30.0  # to hear of any member that holds the model
REST_S = 1.0  # for other members, once one that holds the model has answered: a live one mostly needs half of that
SHORT_SEARCH_S = 3.0  # to notice that a run of the name exists already, or that somebody is in the run that is stored here


@dataclass(eq=False)
class RunCreation:
    """A run to create: all of its specification but the creator, and the initial parameters (1-D fp32)."""

    spec: RunSpec
    parameters: Tensor | None
    """None once the run has been created, so that a caller that keeps this need not hold the model a second time."""

    def take_parameters(self) -> Tensor:
        """The initial parameters, for the run that is created with them. Raises: UsageError, the second time."""
        taken, self.parameters = self.parameters, None
        if taken is None:
            raise UsageError(f"run {self.spec.name!r} was created already: describe a new one")
        return taken


@asynccontextmanager
async def creating(parts: PeerParts, creation: RunCreation) -> AsyncIterator[ActiveRun]:
    """Create a run, and be in it for as long as the block lasts; leave in order at the end, also when cancelled.

    Raises: RunExistsError, if others have one of this name; UsageError.
    """
    async with _in_run(parts, lambda joiner: joiner.create(creation)) as run:
        yield run


@asynccontextmanager
async def joining(
    parts: PeerParts, run: str, params: Params = None, *, search_s: float = SEARCH_S, start: Tensor | None = None
) -> AsyncIterator[ActiveRun]:
    """Join the run of this name or id, or go on with it where it is stored; leave in order at the end, also when cancelled.

    `search_s`: for how long to look for it. `start`: parameters that the run may have started from (1-D fp32): shards that are
    still at them are not fetched.

    Raises: UnknownRunError; AmbiguousRunError; IncompatibleModelError; JoinError, if nobody has the model; StoreError.
    """
    async with _in_run(parts, lambda joiner: joiner.join(run, params, search_s, start)) as entered:
        yield entered


@asynccontextmanager
async def _in_run(parts: PeerParts, enter: "Callable[[Joiner], Awaitable[ActiveRun]]") -> AsyncIterator[ActiveRun]:
    async with open_flat_nursery(parts.mailbox.fail) as nursery:
        joiner = Joiner(Lobby(parts), nursery)
        try:
            yield await enter(joiner)
        finally:
            with trio.CancelScope(shield=True):
                await joiner.leave()
            nursery.cancel_scope.cancel()


class Joiner:
    """Brings one peer into one run. What the run consists of runs in `nursery`."""

    def __init__(self, lobby: Lobby, nursery: trio.Nursery) -> None:
        self._lobby = lobby
        self._parts = lobby.parts
        self._network = lobby.parts.network
        self._events = lobby.parts.events
        self._disk = lobby.parts.disk or lobby.parts.offload
        self._nursery = nursery
        self._run: ActiveRun | None = None
        """The run that was entered: it has to be left, even if joining failed half-way."""
        answer_before(lobby)

    async def create(self, creation: RunCreation) -> ActiveRun:
        """Create a run. Raises: RunExistsError, if others have one of this name; UsageError."""
        nonce = f"{self._parts.rng.getrandbits(64):016x}"
        spec = msgspec.structs.replace(creation.spec, creator=self._network.identity.peer_id, nonce=nonce)
        if self._network.messenger.connected():
            try:
                known = await self._find(spec.name, SHORT_SEARCH_S)
            except UnknownRunError:
                pass
            else:
                raise RunExistsError(
                    f"a run named {spec.name!r} exists (id {known.id}): join it with --run {spec.name}, or choose another name"
                )
        parameters = creation.take_parameters()
        run = self._enter(sign_spec(spec, self._network.identity), spec)
        run.shards.move(await run.regions.first())
        await self._nursery.start(run.members.run_forever)
        if run.units is not None:
            await run.units.found(parameters)
            await run.checkpoints.open(run.signed)
            await self._take_part(run)
            self._events.emit("run.created", run=run.id, name=spec.name)
            return run
        for shard in range(run.plan.n_shards):
            start, end = run.plan.bounds(shard)
            reference = parameters[start:end].clone()
            run.shards.hold(shard, reference, 0, await self._parts.offload(digest, reference))
        await run.checkpoints.open(run.signed)
        await self._take_part(run)
        self._events.emit("run.created", run=run.id, name=spec.name)
        return run

    async def join(self, name: str, params: Params = None, search_s: float = SEARCH_S, start: Tensor | None = None) -> ActiveRun:
        """Join the run of this name, NAME@CREATOR or id, with those that are in it and with what is stored of it here.

        Raises: UnknownRunError; AmbiguousRunError; IncompatibleModelError; JoinError, if nobody has the model; StoreError.
        """
        restored = await self._stored(name)
        if restored is not None:  # no long search for what is here already, and none at all where nobody can be asked
            search_s = SHORT_SEARCH_S if self._network.messenger.connected() else 0.0
        try:
            found = await self._find(name, search_s, "" if restored is None else str(restored.stored.manifest.run))
        except UnknownRunError as unknown:
            if restored is None:
                raise UnknownRunError(
                    name, unknown.n_contacts, unknown.known, await self._losses(name), unknown.unreachable
                ) from None
            return await self._resume(restored, (), params)
        if restored is not None and found.id != str(restored.stored.manifest.run):
            restored = await self._stored(found.id)
        if restored is not None and found.spec.sharding == "none":
            return await self._resume(restored, found.contacts, params)
        return await self._join(found, params, start)

    async def leave(self) -> None:
        """Leave the run that was entered, if there is one: see leaving.py."""
        if self._run is not None:
            await leave(self._run)

    async def _find(self, name: str, search_s: float, known: str = "") -> FoundRun:
        network = self._network
        return await find_run(name, network.messenger, network.discovery, self._events, search_s=search_s, preferred=known)

    async def _stored(self, name: str) -> Restored | None:
        """The run of this name or id as this peer's archive has it."""
        archive, (name, _, creator) = self._parts.archive, name.partition("@")
        restored = None if archive is None else await restore(archive, self._disk, name, self._events)
        return restored if restored is None or creator in ("", restored.stored.spec.creator) else None

    async def _losses(self, name: str) -> str:
        archive = self._parts.archive
        return "" if archive is None else await self._disk(archive.losses, name.partition("@")[0])

    async def _join(self, found: FoundRun, params: Params, start: Tensor | None) -> ActiveRun:
        await self._parts.offload(check_model, params, found.spec)
        run = self._enter(found.signed, found.spec)
        await self._nursery.start(run.members.run_forever)
        async with open_flat_nursery() as nursery:
            nursery.start_soon(self._parts.offload, make_ready, params, found.spec)
            await self._meet(run, found.contacts)
            if not run.members.access.admission.is_open:  # a member that has not seen the token gives nothing
                await run.greet()
            run.shards.move(await run.regions.first())
            await run.members.enter()
            run.members.announcer.announce_soon()
            if run.units is None:
                sync = StateSync(run.ctx, run.members, run.region, run.checkpoints.store)
                fetched = await sync.fetch(start)
        if run.units is not None:
            return await self._join_sharded(run)
        if any(f.chain.version for f in fetched):
            run.came_late = True
            _ramp_pushes(run)
        for f in fetched:
            run.shards.hold_chain(f.shard, f.reference, f.chain)
        run.steps.began_at = run.run_step()
        run.target.began_tokens = run.target.run_tokens() - run.shards.states.round_log.counted_tokens
        await run.checkpoints.open(run.signed)
        await run.checkpoints.adopt(fetched, run.steps.began_at)
        is_second = sum(member.announcement.ready for member in run.members.table.counted()) == 1
        if is_second:
            run.shards.on_members_changed()
            await run.shards.sync_all()  # as soon as this peer is ready half of the shards are its own: it must be in step then
        await let_others_go_on(run.ctx, run.members, run.shards)
        await self._take_part(run)
        if not is_second:
            await run.shards.sync_all()  # versions that appeared while the rest was being fetched
        self._events.emit(
            "run.joined", run=run.id, name=run.spec.name, n_donors=len(sync.donors), n_shards=len(fetched),
            n_from_checkpoints=sum(f.stored is not None for f in fetched),
        )  # fmt: skip
        return run

    async def _meet(self, run: ActiveRun, contacts: Sequence[PeerId]) -> None:
        """Return when a member that holds the model is known, and the others that were asked have answered, or had REST_S more.

        Raises: JoinError.
        """
        async with trio.open_nursery() as asking:
            for contact in contacts:
                asking.start_soon(run.members.exchange_with, contact)
            with trio.move_on_after(MEMBERS_S) as scope:
                while not any(m.announcement.ready for m in run.members.table.counted()):
                    await run.members.changed.wait()
            asking.cancel_scope.deadline = trio.current_time() + REST_S
        if scope.cancelled_caught:
            raise JoinError(f"run {run.spec.name!r} is known, but no member that holds the model answered in {MEMBERS_S:.0f} s")

    async def _resume(self, restored: Restored, contacts: Sequence[PeerId], params: Params) -> ActiveRun:
        """Go on with a run from where this peer's archive has it; where others are further, from there."""
        stored = restored.stored
        await self._parts.offload(check_model, params, stored.spec)
        await self._parts.offload(make_ready, params, stored.spec)
        run = self._enter(stored.signed, stored.spec, restored)
        run.steps.began_at = restored.step
        run.target.began_tokens = restored.run_tokens
        if run.units is not None:
            return await self._resume_sharded(run, restored)
        for shard, (reference, chain) in enumerate(restored.shards):
            run.shards.hold_chain(shard, reference, chain)
        self._events.emit(
            "run.resuming", run=run.id, name=run.spec.name, manifest=str(stored.cid), step=restored.step,
            version=max(chain.version for _, chain in restored.shards),
        )  # fmt: skip
        await self._nursery.start(run.members.run_forever)
        self._nursery.start_soon(run.advertise.run_forever)  # the others that resume must find this peer before it is ready
        async with trio.open_nursery() as asking:
            for contact in contacts:
                asking.start_soon(run.members.exchange_with, contact)
        run.shards.move(await run.regions.first())
        await run.members.enter()
        run.members.announcer.announce_soon()
        goes_on = await gather(restored, await run.checkpoints.remembered(), run.members, run.ctx.config.checkpoints.gather_s)
        run.shards.on_members_changed()
        await catch_up(restored, run.members, run.shards, self._events)
        await let_others_go_on(run.ctx, run.members, run.shards)
        if goes_on:
            _ramp_pushes(run)
        run.steps.began_at = run.run_step()
        run.target.began_tokens = run.target.run_tokens() - run.shards.states.round_log.counted_tokens
        await run.take_part(self._nursery)
        self._events.emit("run.resumed", run=run.id, name=run.spec.name, step=run.steps.began_at)
        return run

    async def _take_part(self, run: ActiveRun) -> None:
        await run.take_part(self._nursery)
        self._nursery.start_soon(run.advertise.run_forever)

    async def _resume_sharded(self, run: ActiveRun, restored: Restored) -> ActiveRun:
        """Nobody else is in the run: this peer owns every unit, and gives them away as others come."""
        run.shards.move(await run.regions.first())
        await self._nursery.start(run.members.run_forever)
        assert run.units is not None
        moments = await self._moments(restored)
        await run.units.found(torch.cat([reference for reference, _ in restored.shards]), restored.step, moments)
        await self._take_part(run)
        self._events.emit("run.resumed", run=run.id, name=run.spec.name, step=restored.step)
        return run

    async def _moments(self, restored: Restored) -> FlatMoments | None:
        """What the optimizer remembered; None where the checkpoint does not say it, and the optimizer begins cold."""
        assert self._parts.archive is not None
        try:
            return await read_moments(self._parts.archive, self._disk, restored.state)
        except (StoreError, DecodeError) as bad:
            self._events.error("checkpoint.moments_lost", f"{restored.stored.cid}: {bad}; the optimizer begins cold")
            return None

    async def _join_sharded(self, run: ActiveRun) -> ActiveRun:
        """Nothing is fetched: units come as this peer is to own them, and weights as it uses them. Only the first of a region
        fetches the model, from another one.

        Raises: JoinError, where the network is too slow, or the model does not come.
        """
        assert run.units is not None and run.unit_sync is not None
        founder = RegionFounder(run.ctx, run.members, run.units, run.unit_sync)
        if founder.is_needed:
            await founder.found()
        else:
            await run.greet()  # a member gives others than those of its region little at a time: the rate of that says nothing
            await run.units.client.check_network()
        run.steps.began_at = run.units.table.announced_step()
        await run.checkpoints.open(run.signed)
        await self._take_part(run)
        self._events.emit("run.joined", run=run.id, name=run.spec.name, n_donors=0, n_shards=0, n_from_checkpoints=0)
        return run

    def _enter(self, signed: SignedSpec, spec: RunSpec, restored: Restored | None = None) -> ActiveRun:
        """From here on this peer answers as a member of the run. Raises: IncompatibleModelError; JoinError."""
        self._run = run = assembled(self._lobby, signed, spec, restored)
        answer(run)
        return run


def _ramp_pushes(run: ActiveRun) -> None:
    """The moments of its inner optimizer are cold: its first pushes count less, unless the run averages exactly."""
    run.shards.states.ramp_pushes = 0 if run.spec.round.synchronous else run.ctx.config.rounds.ramp_pushes
