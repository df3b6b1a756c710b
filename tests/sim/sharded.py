"""A group of peers in a sharded run, in virtual time: real services over the simulated network, each training a toy model."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import msgspec
import torch
import trio
from torch import Tensor

from legion_p2p.config import DEFAULT_REGION, PeerConfig
from legion_p2p.core.identity import Identity
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import InnerSpec, RunSpec
from legion_p2p.observe.events import Event, Events
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.joiner import RunCreation, creating, joining
from legion_p2p.services.run.lobby import PeerParts
from legion_p2p.services.run.progress import Progress
from legion_p2p.services.shards.mailbox import Mailbox
from legion_p2p.sim.network import World
from legion_p2p.sim.station import SimNetwork
from legion_p2p.sim.swarm import inline
from legion_p2p.store.archive import Archive
from legion_p2p.store.blocks import BlockStore

PARAMS = (
    ParamSpec("embedding.weight", (40, 8)),
    *(ParamSpec(f"blocks.{i}.weight", (8, 10)) for i in range(6)),
    ParamSpec("norm.weight", (8,)),
)
NUMEL = sum(p.numel for p in PARAMS)
INNER = InnerSpec(learning_rate=0.01, warmup_steps=0, clip=0.0)
ROUND = RoundSpec(push_codec="fp32", update_codec="fp32", quorum=1.0)
SPEC = RunSpec("group", "", PARAMS, ROUND, INNER, sharding="full")

Gradient = Callable[[Tensor, str, int], Tensor]
"""(flat weights, name of the member, step) -> flat gradient."""


class Member:
    """One peer of the group."""

    def __init__(self, name: str, network: SimNetwork, region: str = DEFAULT_REGION) -> None:
        self.name = name
        self.region = region
        self.network = network
        self.events = Events(wall_time=trio.current_time)
        self.log: list[Event] = []
        self.events.add_sink(self.log.append)
        self.scope = trio.CancelScope()
        self.joined = trio.Event()
        self.ended = trio.Event()
        self.engine: ActiveRun
        self.step = 0
        self.included: list[bool] = []

    @property
    def id(self) -> str:
        return self.network.identity.peer_id

    @property
    def units(self):
        assert self.engine.units is not None
        return self.engine.units

    def events_named(self, name: str) -> list[Event]:
        return [event for event in self.log if event.name == name]

    async def begin(self, n_members: int, at: int = 0) -> None:
        """Say that it trains, and wait until so many of its region do."""
        self.step = at
        self.engine.report(Progress(training=True, run_step=at))
        await self.engine.greet()
        while len(self.units.table.training_since()) < n_members:
            await self.engine.members.changed.wait()

    async def pulled(self) -> Tensor:
        """All weights of this step, flat."""
        table, flat = self.units.table, torch.empty(NUMEL)
        for unit in table.units:
            weights, at = await self.units.client.pull(unit.index, self.step), 0
            for piece in unit.pieces:
                start = table.plan.starts[piece.param]
                flat[start + piece.start : start + piece.end] = weights[at : at + piece.numel]
                at += piece.numel
        return flat

    async def train_step(self, gradient_of: Gradient, tokens: int = 1) -> None:
        """Pull everything, push everything, backwards and all at once."""
        table = self.units.table
        gradient = gradient_of(await self.pulled(), self.name, self.step)

        async def push(index: int) -> None:
            unit = table.units[index]
            parts = [gradient[table.plan.starts[p.param] + p.start : table.plan.starts[p.param] + p.end] for p in unit.pieces]
            stepped = await self.units.client.push(index, self.step, tokens, torch.cat(parts))
            self.included.append(stepped.included)

        async with trio.open_nursery() as nursery:
            for unit in reversed(table.units):
                nursery.start_soon(push, unit.index)
        self.step += 1


class Group:
    """Several members, and the weights that they begin with."""

    def __init__(self, spec: RunSpec = SPEC, seed: int = 0, stores: Path | None = None) -> None:
        """`stores`: a folder for the members' stores; without it they have none."""
        self.stores = stores
        self.quota_bytes: int | None = None
        """Of each store that is opened from now on."""
        self.world = World(seed)
        self.spec = spec
        self.start = torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed))
        self.members: dict[str, Member] = {}

    async def add(self, name: str, *, creates: bool | None = None, region: str = DEFAULT_REGION) -> Member:
        member = Member(name, self.world.join(Identity(name.encode().ljust(32, b"."))), region)
        creates = not self.members if creates is None else creates
        self.members[name] = member
        self.nursery.start_soon(self._live, member, creates)
        await member.joined.wait()
        return member

    async def _live(self, member: Member, creates: bool) -> None:
        store = None if self.stores is None else BlockStore(self.stores / member.name, quota_bytes=self.quota_bytes)
        archive = None if store is None else Archive(store, member.network.identity)
        parts = self._parts(member, archive)
        with member.scope:
            entering = creating(parts, RunCreation(self.spec, self.start)) if creates else joining(parts, "group", PARAMS)
            try:
                async with entering as engine:
                    member.engine = engine
                    member.joined.set()
                    await trio.sleep_forever()
            finally:
                if archive is not None:
                    archive.close()
        member.network.close()
        member.ended.set()

    def joining(self, name: str) -> AbstractAsyncContextManager[ActiveRun]:
        """The way of a further peer into the run."""
        member = Member(name, self.world.join(Identity(name.encode().ljust(32, b"."))))
        return joining(self._parts(member, None), "group", PARAMS)

    def _parts(self, member: Member, archive: Archive | None) -> PeerParts:
        return PeerParts(
            member.network, offload=inline, mailbox=Mailbox(), events=member.events, config=PeerConfig(region=member.region),
            rng=random.Random(member.name), wall_time=lambda: 1.7e9 + trio.current_time(),
            archive=archive,
        )  # fmt: skip

    async def kill(self, name: str) -> None:
        """As by SIGKILL."""
        member = self.members.pop(name)
        self.world.kill(member.network.identity.peer_id)
        member.engine.presence.leave()
        member.scope.cancel()
        await member.ended.wait()

    async def leave(self, name: str) -> None:
        """In order."""
        member = self.members.pop(name)
        member.scope.cancel()
        await member.ended.wait()

    async def settled(self, timeout_s: float = 60.0) -> None:
        """Wait until every unit is where it should be: at its owner and its standby, in one version."""
        with trio.fail_after(timeout_s):
            while not self.is_settled():  # noqa: ASYNC110
                await trio.sleep(0.1)

    def is_settled(self) -> bool:
        regions = {member.region for member in self.members.values()}
        return all(self._is_region_settled(region) for region in regions)

    def _is_region_settled(self, region: str) -> bool:
        living = {member.id: member.units.table for member in self.members.values() if member.region == region}
        for table in living.values():
            for unit in table.units:
                should = table.ownership(unit.index)
                roles = {peer: t.held[unit.index].role for peer, t in living.items() if unit.index in t.held}
                wanted = {should.owner: "owner"} | ({should.standby: "standby"} if should.standby else {})
                if roles != wanted:
                    return False
                if should.standby and living[should.owner].held[unit.index].standby != should.standby:
                    return False
        return True

    def of_region(self, region: str) -> list[Member]:
        return [member for member in self.members.values() if member.region == region]

    def digests(self, region: str = DEFAULT_REGION) -> dict[int, set[tuple[int, bytes]]]:
        """Version and digest of each unit, at all in a region that hold it."""
        found: dict[int, set[tuple[int, bytes]]] = {}
        for member in self.of_region(region):
            for held in member.units.table.held.values():
                found.setdefault(held.index, set()).add((held.version, held.digest))
        return found


@asynccontextmanager
async def group_of(*names: str, spec: RunSpec = SPEC, seed: int = 0, stores: Path | None = None) -> AsyncIterator[Group]:
    """A group in which these have joined, and every unit is in its place."""
    async with _group(Group(spec, seed, stores)) as group:
        for name in names:
            await group.add(name)
        await group.settled()
        yield group


@asynccontextmanager
async def resumed_group(name: str, stores: Path) -> AsyncIterator[Group]:
    """A group of one, which goes on from its store."""
    async with _group(Group(stores=stores)) as group:
        await group.add(name, creates=False)
        yield group


@asynccontextmanager
async def _group(group: Group) -> AsyncIterator[Group]:
    async with group.world, trio.open_nursery() as group.nursery:
        yield group
        for member in group.members.values():
            member.network.die()
        group.nursery.cancel_scope.cancel()


def with_codec(name: str, quorum: float = 1.0) -> RunSpec:
    """The run, with another codec."""
    rounds = msgspec.structs.replace(ROUND, push_codec=name, update_codec=name, quorum=quorum)
    return msgspec.structs.replace(SPEC, round=rounds)
