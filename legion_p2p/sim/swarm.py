"""Whole peers in a virtual world: the engine of `services` over the network of `sim.network`, each training a toy model, or a
real one whose steps take a given virtual time.

Every peer pulls its parameters towards a target of its own, so the common model should approach the mean of the targets: a swarm
that loses contributions, or counts some twice, ends somewhere else. An hour takes seconds under trio's autojump clock.
"""

import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import msgspec
import torch
import trio
from torch import Tensor

from legion_p2p.config import PeerConfig, Weight
from legion_p2p.core.identity import Identity
from legion_p2p.core.roles import Role
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.observe.events import Event
from legion_p2p.services.ports import IN_MEMORY, BytesShelf
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.joiner import RunCreation, creating, joining
from legion_p2p.services.run.lobby import PeerParts
from legion_p2p.sim.network import World
from legion_p2p.sim.swarm_peer import SimPeer, TrainingTap
from legion_p2p.store.archive import Archive
from legion_p2p.store.blocks import BlockStore
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.local import LocalCopy
from legion_p2p.train.parameters import param_specs

T = TypeVar("T")


async def inline(fn: Callable[..., T], *args: Any) -> T:
    """The Offload port without threads: under an autojump clock waiting for a thread would look like idleness."""
    await trio.lowlevel.checkpoint()
    return fn(*args)


def identity_of(seed: int, name: str) -> Identity:
    """Who the peer of this name is in a swarm of this seed."""
    return Identity(hashlib.sha256(f"{seed}/{name}".encode()).digest())


def pull(peer: "SimPeer") -> None:
    """The local step of the toy: towards the peer's own target."""
    with torch.no_grad():
        peer.theta.add_(peer.rate * (peer.target - peer.theta))


class Swarm:
    """Peers of one run in one world. An async context manager."""

    def __init__(  # noqa: PLR0913 (a test names what it changes)
        self,
        *,
        seed: int = 0,
        numel: int = 64,
        shape: tuple[int, ...] = (),
        round: RoundSpec | None = None,
        config: PeerConfig | None = None,
        world: World | None = None,
        step_s: float = 0.1,
        stores: Path | None = None,
        start: Tensor | None = None,
        local_step: Callable[[SimPeer], None] = pull,
        model: Callable[[str], FlatView] | None = None,
        specified: Callable[[RunSpec], RunSpec] = lambda spec: spec,
        on_event: "Callable[[SimPeer, Event], None] | None" = None,
        on_failure: "Callable[[SimPeer, Exception], None] | None" = None,
        shelf: BytesShelf = IN_MEMORY,
        tap: TrainingTap | None = None,
    ) -> None:
        """`stores`: a folder in which every peer keeps checkpoints, under its name. `start`: the initial parameters, 1-D fp32 of
        `numel`, zeros otherwise. `shape`: of the one parameter, because what has one dimension is sent dense beside sparse
        codecs. `local_step`: changes `peer.theta` in place. `model`: gives by the name of a peer the parameters that it trains
        instead; `local_step` then changes those, and `start` is as long as they are. `specified`: changes the run's specification
        before it is created. `on_event`: gets the events of all peers, which then keep none in their `log`. `on_failure`: told
        what ended a peer, which otherwise ends the swarm. `shelf`: what every peer holds its log of updates in. `tap`: hears what
        passes between training and run."""
        self.specified = specified
        self.on_event = on_event
        self.on_failure = on_failure
        self.shelf = shelf
        self.tap = tap
        self.start_at = torch.zeros(numel, dtype=torch.float32, device="cpu") if start is None else start
        self.local_step = local_step
        self.model = model
        self.world = world or World(seed)
        self.peers: dict[str, SimPeer] = {}
        self.numel = numel
        self.shape = shape or (numel,)
        self.step_s = step_s
        self.round = round or RoundSpec(
            local_steps=10, push_codec="fp32", update_codec="fp32", aggregation="mean", shard_elements=16
        )
        self.config = config or PeerConfig()
        self.stores = stores
        self._seed = seed
        self._manager: Any = None

    async def __aenter__(self) -> "Swarm":
        await self.world.__aenter__()
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        for peer in self.peers.values():
            peer.network.die()  # all at once: nobody is left to say goodbye to
        self._nursery.cancel_scope.cancel()
        try:
            swallowed: bool | None = await self._manager.__aexit__(kind, error, trace)
            return swallowed
        finally:
            await self.world.__aexit__(None, None, None)

    def identity(self, name: str) -> Identity:
        return identity_of(self._seed, name)

    def target(self, name: str) -> Tensor:
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big"))
        return torch.randn(self.numel, generator=generator, dtype=torch.float32, device="cpu")

    async def add(self, name: str, **how: Any) -> SimPeer:
        """`start`, and wait until it is in the run."""
        peer = self.start(name, **how)
        await peer.joined.wait()
        return peer

    def start(  # noqa: PLR0913 (a test names what it changes)
        self,
        name: str,
        *,
        step_s: float | None = None,
        weight: Weight = 1.0,
        training: bool = True,
        creates: bool | None = None,
        clock_off_s: float = 0.0,
        region: str = "",
        role: str = "auto",
        relay: bool = False,
        token: bytes = b"",
        stores: bool | None = None,
    ) -> SimPeer:
        """Start a peer without waiting for it; the first one creates the run."""
        network = self.world.join(self.identity(name))
        peer = SimPeer(self, name, network, self.target(name), step_s or self.step_s)
        peer.training = training and Role(role).trains
        peer.clock_off_s = clock_off_s
        peer.stores = self.stores is not None if stores is None else stores
        creates = not self.peers if creates is None else creates
        self.peers[name] = peer
        config = msgspec.structs.replace(
            self.config, weight=weight, role=Role(role), region=region or self.config.region, volunteer_relay=relay, token=token
        )
        self._nursery.start_soon(self._run, peer, creates, config)
        return peer

    async def kill(self, name: str) -> None:
        """As by SIGKILL: no goodbye."""
        peer = self.peers.pop(name)
        self.world.kill(peer.id)
        if peer.joined.is_set():
            peer.engine.presence.leave()  # so that it does nothing on the way out
        peer.scope.cancel()
        await peer.ended.wait()

    async def leave(self, name: str) -> None:
        """In order."""
        peer = self.peers.pop(name)
        peer.training_scope.cancel()

    async def until(self, condition: Callable[[], bool], timeout_s: float, what: str = "") -> float:
        """Wait in virtual time; the seconds it took. Raises: AssertionError after `timeout_s`."""
        began = trio.current_time()
        while not condition():
            if trio.current_time() - began > timeout_s:
                raise AssertionError(f"not within {timeout_s} virtual seconds: {what or condition}")
            await trio.sleep(0.05)
        return trio.current_time() - began

    def living(self) -> Sequence[SimPeer]:
        return [peer for peer in self.peers.values() if peer.joined.is_set() and not peer.ended.is_set()]

    def agree(self) -> bool:
        """All peers hold the same bytes of all shards."""
        return len({tuple(peer.digests()) for peer in self.living()}) == 1

    def owners_agree(self) -> bool:
        """All peers say the same of who owns what, and every shard has one owner that knows it."""
        views = set()
        for peer in self.living():
            shards = peer.engine.shards
            views.add(tuple(shards.ownership(s).owner for s in range(peer.engine.plan.n_shards)))
        if len(views) != 1:
            return False
        by_id = {peer.id: peer for peer in self.living()}
        return all(o in by_id and by_id[o].engine.shards.replicas[s].round is not None for s, o in enumerate(views.pop()))

    def stop_training(self) -> None:
        for peer in self.peers.values():
            peer.max_steps = peer.local_trainer.steps if peer.joined.is_set() else 0

    async def settle(self, timeout_s: float = 60.0) -> None:
        """Stop training, let everything arrive, and check that all hold the same."""
        self.stop_training()
        # Every one is asked every time: each counts for how long the others have agreed with it.
        await self.until(lambda: {peer.engine.all_done() for peer in self.living()} == {True}, timeout_s, "all done and equal")

    async def _run(self, peer: SimPeer, creates: bool, config: PeerConfig) -> None:
        try:
            await self._live(peer, creates, config)
        except Exception as failed:
            if self.on_failure is None:
                raise
            peer.network.close()
            if self.peers.get(peer.name) is peer:
                del self.peers[peer.name]
            self.on_failure(peer, failed)
        finally:
            peer.ended.set()

    async def _live(self, peer: SimPeer, creates: bool, config: PeerConfig) -> None:
        with peer.scope:
            async with self._opened(peer, creates, config) as engine:
                peer.engine = engine
                plan = engine.plan
                local = LocalCopy(
                    peer.view, [plan.bounds(s) for s in range(plan.n_shards)], True, self.round.mixing, engine.ctx.keep
                )
                peer.local_trainer = engine.local_trainer(local, peer)
                peer.joined.set()
                with peer.training_scope:
                    await peer.train_forever()
        peer.network.close()

    @asynccontextmanager
    async def _opened(self, peer: SimPeer, creates: bool, config: PeerConfig) -> AsyncIterator[ActiveRun]:
        params = param_specs(peer.view)
        archive = None
        if peer.stores and self.stores is not None:
            archive = peer.archive = Archive(BlockStore(self.stores / peer.name), peer.network.identity)
        parts = PeerParts(
            peer.network,
            offload=inline,
            mailbox=peer.mailbox,
            events=peer.events,
            config=config,
            rng=random.Random(f"{self._seed}/{peer.name}"),
            wall_time=peer.wall_time,
            running_clock=peer.running_clock,
            archive=archive,
            shelf=self.shelf,
        )
        try:
            if creates:
                entering = creating(parts, RunCreation(self.specified(RunSpec("sim", "", params, self.round)), self.start_at))
            else:
                entering = joining(parts, "sim", params)
            async with entering as run:
                yield run
        finally:
            if archive is not None:
                archive.close()
