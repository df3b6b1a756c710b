"""One peer of a simulated swarm: its run, and the toy that it trains in virtual time."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import msgspec
import torch
import trio
from torch import Tensor

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.identity import PeerId
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.observe.events import Event, Events
from legion_p2p.observe.status import Status
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.progress import Progress
from legion_p2p.services.run.status import status_of
from legion_p2p.services.shards.local_trainer import LocalTrainer
from legion_p2p.services.shards.mailbox import Delivery, Mailbox, Settled
from legion_p2p.services.shards.replica import LocalChange
from legion_p2p.sim.station import SimNetwork
from legion_p2p.store.archive import Archive
from legion_p2p.tensor.flatten import FlatView

BEGAN_AT = 1.7e9  # wall time when virtual time is 0: clocks that are wrong by hours are still after 1970


class TrainingTap(Protocol):
    """Hears what passes between the training sides of peers and their runs."""

    def took_in(self, peer: "SimPeer", deliveries: Collection[Delivery]) -> None:
        """It is about to take these versions into its parameters."""

    def handed_in(self, peer: "SimPeer", changes: Sequence[LocalChange]) -> None:
        """It has given these changes to the run."""


class Setting(Protocol):
    """What all peers of a swarm have in common (swarm.py: `Swarm`)."""

    shape: tuple[int, ...]
    round: RoundSpec
    model: Callable[[str], FlatView] | None
    local_step: "Callable[[SimPeer], None]"
    on_event: "Callable[[SimPeer, Event], None] | None"
    tap: TrainingTap | None


class SimPeer:
    """One peer: its engine, and what it trains."""

    def __init__(self, swarm: Setting, name: str, network: SimNetwork, target: Tensor, step_s: float) -> None:
        self.name = name
        self.network = network
        self.events = Events(wall_time=trio.current_time)
        self.log: list[Event] = []
        on_event = swarm.on_event
        self.events.add_sink(self.log.append if on_event is None else lambda event: on_event(self, event))
        self.engine: ActiveRun
        self.target = target
        self.step_s = step_s
        self.rate = 0.005
        self.theta = torch.nn.Parameter(torch.zeros_like(target))
        self.view = FlatView([("w", self.theta.view(swarm.shape))]) if swarm.model is None else swarm.model(name)
        self._news = Notify()
        self.mailbox = Mailbox(on_news=self._news.notify)
        self.blocked_s = 0.0
        """How long it has waited for rounds, in a synchronous run."""
        self.local_trainer: LocalTrainer
        self.training = True
        self.loss: float | None = None
        """The loss that it reports."""
        self.warming_up = False
        """As an inner optimizer tells of itself."""
        self.hung = False
        """The training loop stands still, while the network lives on."""
        self.max_steps: int | None = None
        self.clock_off_s = 0.0
        """How far its clock is ahead of everybody else's; more from one moment to the next: it was suspended."""
        self.clock_set_s = 0.0
        """By how much its wall clock has been set."""
        self.stores = False
        self.archive: Archive | None = None
        """Where it keeps checkpoints, if it does."""
        self.joined = trio.Event()
        self.scope = trio.CancelScope()
        self.training_scope = trio.CancelScope()
        self.ended = trio.Event()
        self._swarm = swarm

    @property
    def id(self) -> PeerId:
        return self.network.identity.peer_id

    def drain(self) -> tuple[Collection[Delivery], Collection[Settled]]:
        """The news for its training side: see `Mailbox`."""
        deliveries, settled = self.mailbox.drain()
        if deliveries and self._swarm.tap is not None:
            self._swarm.tap.took_in(self, deliveries)
        return deliveries, settled

    def contribute(self, changes: Sequence[LocalChange]) -> None:
        """Give changes to the run."""
        if changes and self._swarm.tap is not None:
            self._swarm.tap.handed_in(self, changes)
        self.engine.contribute(changes)

    def status(self) -> Status:
        return status_of(self.engine)

    def wall_time(self) -> float:
        return BEGAN_AT + self.running_clock() + self.clock_set_s

    def running_clock(self) -> float:
        """Runs on while its machine sleeps; nobody sets it."""
        return trio.current_time() + self.clock_off_s

    def versions(self) -> list[int]:
        return [self.engine.shards.replicas[s].chain.version for s in range(self.engine.plan.n_shards)]

    def digests(self) -> list[bytes]:
        return [self.engine.shards.replicas[s].chain.digest for s in range(self.engine.plan.n_shards)]

    def events_named(self, name: str) -> list[Event]:
        return [event for event in self.log if event.name == name]

    async def train_forever(self) -> None:
        """Step by step in virtual time, as the optimizer does in a training thread."""
        engine, local_trainer = self.engine, self.local_trainer
        local_trainer.take_in()
        while True:
            await trio.sleep(self.step_s)
            if self.hung:
                continue
            local_trainer.take_in()
            if not self.training or (self.max_steps is not None and local_trainer.steps >= self.max_steps):
                done = self.max_steps is not None and local_trainer.steps >= self.max_steps and not local_trainer.busy
                if done and not local_trainer.all_handed_in:
                    self.contribute(local_trainer.hand_in())
                    done = False
                if engine.progress.training or engine.progress.done != done:
                    engine.report(msgspec.structs.replace(engine.progress, training=not done and self.training, done=done))
                continue
            self._swarm.local_step(self)
            local_trainer.stepped(1)
            if local_trainer.steps == 1 or local_trainer.steps % 20 == 0:
                progress = Progress(
                    local_trainer.steps, local_trainer.tokens, 1 / self.step_s, self.step_s, loss=self.loss, training=True
                )
                engine.report(progress)
            if due := local_trainer.due(engine.local_steps):
                self.contribute(local_trainer.hand_in(due, warming_up=self.warming_up, compactly=engine.compacts()))
                if self._swarm.round.synchronous:
                    began = trio.current_time()
                    while local_trainer.busy:
                        await self._news.wait()
                        local_trainer.take_in()
                    self.blocked_s += trio.current_time() - began
