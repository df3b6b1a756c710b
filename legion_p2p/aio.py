"""`join` and `create` for code under trio: the peer lives in the caller's own loop, and training in a worker thread.

async with legion.aio.join("my-run", initial_peers=[...]) as run:
    opt = run.optimizer(torch.optim.AdamW(model.parameters()), model)
    await trio.to_thread.run_sync(train, opt)
    await run.finish(together=True)
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import torch
import trio
from torch import nn

from legion_p2p.config import NewRun, Peer, RunChoice
from legion_p2p.core.run import RunSpec
from legion_p2p.observe.events import Event
from legion_p2p.observe.status import MemberStatus, Status
from legion_p2p.peer import open_peer
from legion_p2p.train.arguments import Model
from legion_p2p.train.bridge import PeerInLoop
from legion_p2p.train.checkpoint_tools import CHECKPOINT_TOOLS
from legion_p2p.train.control import Control
from legion_p2p.train.entering import creation_of, fit_of
from legion_p2p.train.optimizer import Optimizer
from legion_p2p.train.parameters import ModelView
from legion_p2p.train.run import Run as RunFromThreads
from legion_p2p.train.run import create_arguments, join_arguments, kept_events
from legion_p2p.train.sharding.model import ShardedModel

__all__ = ["Run", "create", "join"]


@asynccontextmanager
async def join(
    run: str, model: Model | None = None, *, initial_peers: Iterable[str] = (), peer: Peer = Peer()
) -> "AsyncIterator[Run]":
    """Join a run, for as long as the block lasts. Arguments and errors are those of `legion_p2p.join`.

    Leaving the block leaves the run in order, also when cancelled.
    """
    async with _opened(*join_arguments(run, model, initial_peers, peer)) as joined:
        yield joined


@asynccontextmanager
async def create(
    new_run: NewRun, model: Model, *, initial_peers: Iterable[str] = (), peer: Peer = Peer(), or_join: bool = False
) -> "AsyncIterator[Run]":
    """Create a run around a model, for as long as the block lasts. Arguments and errors are those of `legion_p2p.create`.

    Leaving the block leaves the run in order, also when cancelled.
    """
    async with _opened(*create_arguments(new_run, model, initial_peers, peer, or_join)) as created:
        yield created


@asynccontextmanager
async def _opened(entry: RunChoice, peer: Peer, own: ModelView | None) -> "AsyncIterator[Run]":
    events, kept = kept_events()
    creation = None if entry.new_run is None or own is None else creation_of(entry.new_run, own)
    opened = open_peer(
        creation or entry.run,
        peer,
        initial_peers=entry.initial_peers,
        create_or_join=entry.create_or_join,
        params=fit_of(entry, None if own is None else own.fit),
        events=events,
        tools=CHECKPOINT_TOOLS,
    )
    async with opened as entered:
        run = RunFromThreads(PeerInLoop(entered), kept)
        try:
            yield Run(run)
        finally:
            run.close()


class Run:
    """This peer's part in a run: what `legion_p2p.Run` is, for the task of trio that opened it.

    Made by `join` and `create`. What would wait for others is async here; everything else returns at once.
    """

    def __init__(self, run: RunFromThreads) -> None:
        self._run = run

    @property
    def id(self) -> str:
        """The run's id, which no other run has."""
        return self._run.id

    @property
    def name(self) -> str:
        """The run's name, which other runs may have too."""
        return self._run.name

    @property
    def spec(self) -> RunSpec:
        """The run's specification: how all members average, and the parameters that are trained."""
        return self._run.spec

    @property
    def step(self) -> int:
        """Steps of the run, by the count of most of its members: what a learning-rate schedule of the whole run goes by."""
        return self._run.step

    def optimizer(
        self, inner: torch.optim.Optimizer | Sequence[torch.optim.Optimizer], model: Model, *, tokens_per_step: int = 1
    ) -> Optimizer:
        """Wrap `inner`, so that its steps train `model` together with the run. Its `step` belongs into a worker thread.

        Raises: IncompatibleModelError, naming the first parameter that differs; UsageError.
        """
        return self._run.optimizer(inner, model, tokens_per_step=tokens_per_step)

    def shard(self, model: nn.Module, *, tokens_per_step: int = 1, accumulate: int = 1, keep: bool = False) -> ShardedModel:
        """Train `model` in a sharded run: see `legion_p2p.Run.shard`. To be called, and trained with, in a worker thread.

        Raises: IncompatibleModelError, naming the first parameter that differs; UsageError, where the run is not sharded.
        """
        return self._run.shard(model, tokens_per_step=tokens_per_step, accumulate=accumulate, keep=keep)

    @property
    def control(self) -> Control:
        """Pauses this peer, limits it, or ends its training, from any thread."""
        return self._run.control

    @property
    def should_stop(self) -> bool:
        """The user of this peer has ended training here, or the peer has left: a loop ends."""
        return self._run.should_stop

    def status(self) -> Status:
        """What the peer knows now: the record that `legion-ctl status` and the live view show as well."""
        return self._run.status()

    def members(self) -> tuple[MemberStatus, ...]:
        """The members of the run that this peer knows, itself included."""
        return self._run.members()

    def addresses(self) -> tuple[str, ...]:
        """Where others reach this peer: what they give as `initial_peers`."""
        return self._run.addresses()

    def events(self) -> tuple[Event, ...]:
        """What has happened, the newest last. `Peer(on_event=...)` is called with each as it happens."""
        return self._run.events()

    async def finish(self, *, together: bool = False, timeout_s: float | None = None) -> str:
        """End training: push the rest; where `together`, serve on until every member is done. The common model's digest."""
        finish = partial(self._run.finish, together=together, timeout_s=timeout_s)
        # The stubs that libp2p brings are of a trio without abandon_on_cancel.
        return await trio.to_thread.run_sync(finish, abandon_on_cancel=True)  # type: ignore[call-arg]
