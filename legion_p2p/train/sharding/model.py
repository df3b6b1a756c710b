"""A model in a sharded run: its weights come as they are needed, and its gradients go as they arise."""

import time
from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import trio
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from legion_p2p.core.control import Wish
from legion_p2p.core.messages.sharding import UnitStepped
from legion_p2p.core.plan import ParamSpec, check_fit
from legion_p2p.core.sharding.pull_schedule import BlockSchedule
from legion_p2p.core.wire import MAX_COUNT
from legion_p2p.errors import UsageError
from legion_p2p.observe.memory import give_back_freed_memory
from legion_p2p.services.run.progress import Progress
from legion_p2p.train.bridge import PeerAccess
from legion_p2p.train.parameters import ModelView
from legion_p2p.train.sharding.exchange import POLL_S, UnitExchange
from legion_p2p.train.sharding.model_blocks import check_uses, storages_of
from legion_p2p.train.step_clock import StepClock
from legion_p2p.train.values import progressed

IN_PLACE_S = 120.0  # for units to come to their owners; after that training begins, and they move meanwhile
MAX_PUSHES = 3  # blocks whose gradients are on their way: more only take memory, at this member and at owners


class ShardedModel:
    """Trains a module in a sharded run: made by `Run.shard`.

        sharded = run.shard(model)
        for x, y in batches:
            loss_of(model, x, y).backward()
            sharded.step()

    The module's parameters have values only while they are at work. The owners of the run's units run the optimizer that the
    run's specification names, so there is none here.
    """

    def __init__(
        self, thread: PeerAccess, model: nn.Module, *, tokens_per_step: int = 1, accumulate: int = 1, keep: bool = False
    ) -> None:
        """Raises: IncompatibleModelError, where the model does not fit the run; UsageError."""
        give_back_freed_memory()
        engine = thread.engine
        if engine.units is None:
            raise UsageError(f"run {engine.spec.name!r} is not sharded: run.optimizer(inner, model) trains in it")
        if not isinstance(model, nn.Module):
            raise UsageError("shard(model): give a torch.nn.Module, which has blocks")
        own = ModelView(model)
        check_fit(tuple(ParamSpec(name, tuple(tensor.shape)) for name, tensor in own.trained), engine.spec.params)
        plan = engine.units.table.plan
        check_uses(model, own, plan)
        self._thread = thread
        self._engine = engine
        self._units = engine.units
        self._exchange = UnitExchange(thread, engine.units)
        self._tokens_per_step = tokens_per_step
        self._accumulate = accumulate
        self.storages_of = storages_of(model, own, plan)
        self._rest = self.storages_of[0] if not self.storages_of[0].block.name else None
        self._blocks = self.storages_of[1:] if self._rest else self.storages_of
        self._schedule = BlockSchedule(len(self._blocks), keep=keep)
        self._pulled: dict[int, Future[Sequence[Tensor]]] = {}
        self._rest_pulled: Future[Sequence[Tensor]] | None = None
        self._pushing: deque[Future[Sequence[UnitStepped]]] = deque()
        self._newest = 0
        self._n_included = self._n_pushed = 0
        self._n_passes = [0] * len(self.storages_of)
        """Backward passes of each storage in this step that have given it all of its gradients."""
        self._missing = [len(storage.parameters) for storage in self.storages_of]
        """Parameters of each storage that this backward pass has given no gradient yet."""
        self._progress = Progress()
        self._clock = StepClock(time.perf_counter())
        self.step_of_run = self._exchange.run(engine.units.client.newest_step)
        """Steps that the run has made."""
        self.n_steps = 0
        """Steps that this peer was in."""
        self._hook(model)
        self.report(training=True, run_step=self.step_of_run)
        self._exchange.run(engine.greet)  # from here on the owners wait for this peer's gradients

    # what a training loop calls

    def wait_for_members(self, n: int) -> None:
        """Wait until `n` members train, this one included, and have what they are to hold: from the first step on all of them
        are in, and the one that made the model no longer holds more of it than the others: it waits until that is given away."""

        async def wait() -> None:
            while len(self._units.table.training_since()) < n:
                await self._engine.members.changed.wait()
            with trio.move_on_after(IN_PLACE_S):
                while not self.is_in_place():  # noqa: ASYNC110
                    await trio.sleep(0.1)

        self._exchange.run(wait)

    def step(self) -> bool:
        """End the step: wait until every unit has made it; where gradients are clipped, until it is settled what it is made with.
        True, where all of them have this peer's gradients in it.

        Where the peer's user has paused it (legion-ctl, `run.control`), it returns when training goes on.

        Raises: ClosedError; NetworkError, where a unit is lost; UsageError, where no backward pass went before.
        """
        passes = max(self._n_passes)
        if not passes and not any(p.grad is not None for storage in self.storages_of for p in storage.parameters):
            raise UsageError("step() without a backward pass before it")
        for i in reversed(range(len(self.storages_of))):
            if self._n_passes[i] < self._accumulate:
                self._push(i)
        while self._pushing:
            self._await_push()
        included = self._n_included == self._n_pushed
        self._n_included = self._n_pushed = 0
        self._free_all()
        self.step_of_run = max(self.step_of_run + 1, self._newest)
        self.n_steps += 1
        self._note_step()
        if self._thread.call(self._units.saver.is_due):
            self.save()
        while self._engine.control.wish is Wish.PAUSE:
            self._pause_briefly()
        return included

    def _pause_briefly(self) -> None:
        """Let a moment of a pause pass. Nobody waits for this peer meanwhile; it goes on with the step that the others are at."""
        if not self._progress.paused:
            self.report(paused=True, training=False)
        time.sleep(POLL_S)
        if self._engine.control.wish is not Wish.PAUSE:
            self.step_of_run = self._exchange.run(self._units.client.newest_step)
            self._clock.paused(0.0)
            self.report(paused=False, training=True, run_step=self.step_of_run)

    def save(self) -> None:
        """Write a checkpoint into this peer's store, if it has one: the others wait meanwhile."""
        self._exchange.run(lambda: self._units.saver.save(self.step_of_run))

    def finish(self, *, together: bool = False) -> None:
        """End training: write a last checkpoint, after which the others wait for this peer no longer. Where `together`, serve on
        until every member is done."""
        self.save()
        self.report(training=False, done=True)
        while together and self._thread.alive and not self.all_done:
            time.sleep(POLL_S)

    @property
    def all_done(self) -> bool:
        """Every member has trained all it wanted to."""
        return self._thread.call(self._engine.all_done)

    def note(self, **more: Any) -> None:
        """Tell the displays what only the loop knows, such as `loss`."""
        self._progress = progressed(self._progress, more)

    def gather(self) -> None:
        """Pull all weights, so that the module is a whole one until the next step: to save or to evaluate it. Takes the memory of
        all of its parameters."""
        for storage in self.storages_of:
            storage.fill(self._exchange.wait(self._exchange.pull(storage.units, self.step_of_run, exact=True)))
        self._schedule.gathered()
        self._pulled.clear()

    def is_in_place(self) -> bool:
        """Every unit that this peer holds is where it belongs. In the network's thread."""
        return self._units.table.is_in_place()

    def training(self) -> Collection[str]:
        """The members that train now. In the network's thread."""
        return self._units.table.training_since()

    @property
    def tokens(self) -> int:
        """The weight of all steps of this peer."""
        return self._tokens_per_step * self.n_steps

    def speed(self) -> dict[str, float]:
        """Tokens and seconds per step, smoothed."""
        return self._clock.speed(self._tokens_per_step)

    @property
    def blocked_fraction(self) -> float:
        """Share of the time that this peer has waited for others."""
        return min(1.0, self._exchange.waited_s / self._clock.elapsed_s(time.perf_counter()))

    @property
    def step_s(self) -> float:
        """Seconds for a step, smoothed; 0 before the second."""
        return self._clock.step_s

    # hooks

    def _hook(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(lambda module, args: self._pull_rest())
        for i, storage in enumerate(self._blocks):
            module = model.get_submodule(storage.block.name.removesuffix("."))
            module.register_forward_pre_hook(partial(self._before_forward, i))
            module.register_forward_hook(partial(self._after_forward, i))
        for i, storage in enumerate(self.storages_of):
            for parameter in storage.parameters:
                parameter.register_post_accumulate_grad_hook(partial(self._on_gradient, i))  # type: ignore[no-untyped-call]

    def _before_forward(self, i: int, module: nn.Module, args: Any) -> None:
        self._pull_rest()
        self._begin_pulls(self._schedule.before_forward(i))
        self._ensure(i)

    def _after_forward(self, i: int, module: nn.Module, args: Any, output: Any) -> None:
        tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
        for tensor in tensors:
            tensor.register_hook(partial(self._before_backward, i))  # type: ignore[no-untyped-call]
        if self._schedule.after_forward(i, has_backward=bool(tensors)):
            self._blocks[i].free()

    def _before_backward(self, i: int, gradient: Tensor) -> None:
        self._begin_pulls(self._schedule.before_backward(i))
        self._ensure(i)

    def _on_gradient(self, index: int, parameter: Tensor) -> None:
        self._missing[index] -= 1
        if self._missing[index]:
            return
        storage = self.storages_of[index]
        self._missing[index] = len(storage.parameters)
        self._n_passes[index] += 1
        if storage is not self._rest:
            i = index - len(self.storages_of) + len(self._blocks)
            if self._schedule.after_backward(i):
                storage.free()
        if self._n_passes[index] == self._accumulate:
            self._push(index)
        if min(self._n_passes) == max(self._n_passes):
            self._schedule.after_micro_batch()

    # weights

    def _pull_rest(self) -> None:
        if self._rest is None or self._rest.is_here:
            return
        self._rest.fill(self._exchange.wait(self._exchange.pull(self._rest.units, self.step_of_run)))

    def _begin_pulls(self, blocks: Sequence[int]) -> None:
        for i in blocks:
            self._pulled[i] = self._exchange.pull(self._blocks[i].units, self.step_of_run)

    def _ensure(self, i: int) -> None:
        pulled = self._pulled.pop(i, None)
        if pulled is not None:
            self._blocks[i].fill(self._exchange.wait(pulled))

    def _free_all(self) -> None:
        for i in self._schedule.after_step():
            pulled = self._pulled.pop(i, None)
            if pulled is not None:
                pulled.cancel()
            self._blocks[i].free()
        if self._rest is not None:
            self._rest.free()
        self._n_passes = [0] * len(self.storages_of)
        self._missing = [len(storage.parameters) for storage in self.storages_of]

    # gradients

    def _push(self, index: int) -> None:
        storage = self.storages_of[index]
        while len(self._pushing) >= MAX_PUSHES:
            self._await_push()
        self._n_passes[index] = self._accumulate
        gradients = storage.take_gradients()
        self._pushing.append(self._exchange.push(storage.units, self.step_of_run, self._tokens_per_step, gradients))

    def _await_push(self) -> None:
        for stepped in self._exchange.wait(self._pushing.popleft()):
            self._n_pushed += 1
            self._n_included += stepped.included
            self._newest = max(self._newest, stepped.version)

    # progress

    def _note_step(self) -> None:
        now = time.perf_counter()
        self._clock.stepped(now, now)
        if self._clock.report_is_due(now):
            self.report()

    def report(self, **changes: Any) -> None:
        """Tell the network's thread what this one has done, now."""
        base: dict[str, Any] = {} if self._progress.done or self._progress.paused else {"training": True}
        if self.n_steps:
            base |= {"step": self.n_steps, "tokens": min(self.tokens, MAX_COUNT), "run_step": self.step_of_run, **self.speed()}
            base["blocked_fraction"] = self.blocked_fraction
        self._progress = progressed(self._progress, base | changes)
        self._thread.post(self._engine.report, self._progress)
