"""The torch optimizer that trains in a swarm: the user's own one inside, the peer beside it.

`step()` lets the inner optimizer step, applies the updates that have arrived from the swarm, and every so many steps hands over
the local change. It never waits for the network, except in a synchronous run, where it waits for the round by choice.
"""

import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from legion_p2p.config import NewRun, Peer, RunChoice
from legion_p2p.config.fields import argument
from legion_p2p.config.old_names import OPTIMIZER_ARGUMENTS, explains
from legion_p2p.core.control import Wish
from legion_p2p.core.cpu_share import CpuShare
from legion_p2p.core.plan import check_fit
from legion_p2p.core.roles import Role
from legion_p2p.core.wire import MAX_COUNT
from legion_p2p.errors import ClosedError, UsageError
from legion_p2p.observe.machine import n_processors
from legion_p2p.observe.status import Status
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.progress import Progress
from legion_p2p.services.run.status import status_of
from legion_p2p.services.shards.local_trainer import LocalTrainer
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.local import LocalCopy
from legion_p2p.train.arguments import Model, checked_inner, model_view, must_hold, must_train
from legion_p2p.train.bridge import PeerAccess
from legion_p2p.train.control import Control
from legion_p2p.train.entering import creation_of, enter, entry_of
from legion_p2p.train.guard import InnerGuard
from legion_p2p.train.inner_list import as_one
from legion_p2p.train.live_parameters import check_free, claim, give_back
from legion_p2p.train.notices import DivergedMembers
from legion_p2p.train.parameters import ModelView, Named
from legion_p2p.train.ranks import RankGroup, RankState, SameModel, collective
from legion_p2p.train.sharing import Make, Reader, SharedReader, share_text
from legion_p2p.train.step_clock import StepClock
from legion_p2p.train.swarm_exchange import SwarmExchange
from legion_p2p.train.values import MAX_TOKENS_PER_STEP, deadline_after, is_over, loss_in, progressed, whole

FINISH_FLUSH_S = 30.0  # for the last push, where the user ends training
OF_THE_PEER = frozenset({"_thread", "_exchange", "_trainer", "_clock", "_extra", "_reader", "local", "synchronous"})
"""What only the rank has that has the peer."""
LEAVE_FLUSH_S = 0.5  # the same where they want it to end at once


class Optimizer(torch.optim.Optimizer):
    """A torch optimizer that trains `model` together with all other members of a run.

        opt = legion.Optimizer(torch.optim.AdamW(model.parameters(), lr=3e-4), model, run="my-run", initial_peers=[...])

    It is used like the optimizer inside it: step(), zero_grad(), closures, state_dict(), hooks and lr schedulers are the inner
    optimizer's. Joining replaces the model's parameters by the run's. Where `run` is a NewRun, it is created instead, and this
    model's parameters are its start.

    Args:
        inner: the optimizer that makes the local steps, or a list of several. It holds all trainable parameters of `model`.
        model: a module, or its (name, parameter) pairs. The parameters that require gradients are the run's.
        run: name or id of the run to join; or a NewRun("name"), to create it.
        initial_peers: addresses of any peers or bootstrap nodes, or "@file"; one that answers is enough.
        peer: how this peer behaves on the network; the default suits a machine at home.
        tokens_per_step: weight of one local step relative to those of other members, such as tokens in a batch; of several
            ranks, that of one rank's batch.

    Several ranks of torch.distributed are one peer: each makes this optimizer around its DistributedDataParallel or FSDP2 model,
    and all call the same methods in the same order. Rank 0 has the peer: see docs/several-gpus.md.

    Raises: NoContactError, if no initial peer answers; UnknownRunError; RunExistsError; IncompatibleModelError, naming the first
    parameter that differs; UsageError, naming the argument.
    """

    inner: torch.optim.Optimizer

    @explains(OPTIMIZER_ARGUMENTS)
    def __init__(
        self,
        inner: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        model: Model,
        run: str | NewRun,
        *,
        initial_peers: Iterable[str] = (),
        peer: Peer = Peer(),
        tokens_per_step: int = 1,
    ) -> None:
        entry = entry_of("Optimizer", run, initial_peers)
        argument("Optimizer(peer=...)", Peer, peer)
        must_train(Role(peer.role))
        one = as_one(checked_inner(inner))
        own = model_view(model)
        check_wrappable(one, FlatView(own.trained))
        tokens = whole(tokens_per_step, "tokens_per_step", 1, MAX_TOKENS_PER_STEP)
        self._ranks = RankGroup.of_this_job()
        # No super().__init__: it would copy the groups, and the inner optimizer should stay the one that holds them.
        self.inner = one
        self._tokens_per_step = tokens
        if self._ranks is not None:
            own.fixed()  # while all ranks are here
            self._same_model = SameModel(own)
            self._guard = InnerGuard(one, self._same_model.view, own.name_of)
        self._join(entry, peer, own)

    @collective
    def _join(self, entry: RunChoice, peer: Peer, own: ModelView) -> None:
        creation = None if entry.new_run is None else creation_of(entry.new_run, own, self.inner, self._view_of)
        thread = enter(entry, peer, creation=creation, params=own.fit)
        try:
            if self._ranks is not None:
                self._guard.release()
            self._attach(self.inner, own, thread, self._tokens_per_step)
        except BaseException:  # Ctrl+C as well: the peer would stay in the run
            thread.close()
            raise

    @classmethod
    def beside(
        cls,
        thread: PeerAccess,
        inner: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        model: Model,
        tokens_per_step: int = 1,
        obeys: bool = True,
    ) -> "Optimizer":
        """One for a peer that is in its run already, which leaves with it.

        `obeys`: `step()` does what the peer's user asks meanwhile; False: the caller looks at `wish` itself.

        Raises: IncompatibleModelError; UsageError.
        """
        must_train(thread.engine.role)
        one = as_one(checked_inner(inner))
        own = model_view(model)
        spec = thread.engine.spec
        check_fit(own.fit(spec), spec.params)
        opt = cls.__new__(cls)
        opt._ranks = None
        opt._attach(one, own, thread, tokens_per_step)
        opt._obeys = obeys
        return opt

    def _attach(self, inner: torch.optim.Optimizer, own: ModelView, thread: PeerAccess, tokens_per_step: int) -> None:
        view = self._view_of(own.in_run(thread.engine.spec.round.untrained))
        self.inner = inner
        check_wrappable(inner, view)
        self.tokens_per_step = tokens_per_step
        self._clock = StepClock(time.perf_counter())
        self._extra = Progress()
        self._obeys = True
        self._has_ended = False
        self._cpu: CpuShare | None = None
        self._reader: SharedReader | None = None
        self._thread = thread
        engine = self._thread.engine
        plan = engine.plan
        rounds = engine.spec.round
        exact = all(kind == torch.float32 for kind in view.types())
        self.local = LocalCopy(
            view, [plan.bounds(shard) for shard in range(plan.n_shards)], exact, rounds.mixing, engine.ctx.keep
        )
        self.synchronous = rounds.synchronous
        self._trainer = LocalTrainer(self.local, engine.mailbox, streaming=rounds.streaming and not rounds.synchronous)
        self._guard = InnerGuard(inner, view, own.name_of)
        weak = weakref.proxy(self)  # not `self`: an optimizer that is dropped goes at once, not at the next garbage collection
        self._exchange = SwarmExchange(
            thread, self._trainer, self.local, inner, self._guard, lambda trouble: weak.report(trouble=trouble)
        )
        self._exchange.apply_updates()
        self._first_step = self._thread.call(engine.run_step)
        others = DivergedMembers(engine.me, engine.events)
        self._thread.call(engine.members.announcements.add, others.heard)
        claim(self._exchange)
        # A notebook's cell that runs again drops the previous optimizer: its peer leaves.
        self._dropped = weakref.finalize(self, _leave, thread, self._guard)
        self._dropped.atexit = False  # which the bridge sees to, and it waits

    # torch.optim.Optimizer, by way of the inner one

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.inner.param_groups = groups

    @property
    def state(self) -> Any:
        return self.inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self.inner.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        return self.inner.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.inner.defaults = defaults

    def __getattr__(self, name: str) -> Any:
        # The hook tables and flags that torch keeps on an optimizer live on the inner one.
        if name in ("inner", "_guard", "_ranks"):
            raise AttributeError(name)
        if self._ranks is not None and name in OF_THE_PEER:
            raise UsageError(f"rank 0 has the peer, and this is rank {self._ranks.rank}: what it knows is asked for there")
        return self._guard.attribute(name)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # A fused inner optimizer would take the scale from attributes that GradScaler sets on this one, and not find them.
        return False

    def __getstate__(self) -> dict[str, Any]:
        raise UsageError("a swarm optimizer cannot be copied or pickled, because it has a live peer: use its state_dict()")

    def __repr__(self) -> str:
        return f"legion_p2p.Optimizer({self.inner!r})"

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        raise UsageError("the parameters of a run are fixed: give all of them to the inner optimizer before wrapping it")

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)

    def register_step_pre_hook(self, hook: Any) -> Any:
        return self.inner.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> Any:
        return self.inner.register_step_post_hook(hook)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One local step; then take in what has come, and hand in the local change where it is time.

        Where the peer's user has paused it (legion-ctl, `run.control`), it returns when training goes on.

        Raises: ClosedError, if the peer has left, from the failure that made it leave, or if its user has ended training and the
        loop did not look at `should_stop`; UsageError, if something moves the parameters that the run does not see: see
        `train.guard`.
        """
        if self._ranks is None:
            self._begin_step()
        result = self._guard.step(closure)
        self._stepped(None if closure is None else loss_in(result))
        return result

    def _begin_step(self) -> None:
        if self._has_ended:
            raise ClosedError("training here has ended, as this peer's user asked: a loop looks at should_stop after each step")
        self._exchange.check_open()
        if not self.steps:
            self._first_step = self._thread.call(self._engine.run_step)

    @collective
    def _stepped(self, loss: float | None) -> None:
        """The inner optimizer has stepped."""
        if self._ranks is not None:
            self._begin_step()
        began = time.perf_counter()
        self._trainer.stepped(self._n_tokens)
        self._exchange.apply_updates()
        if due := self._trainer.due(self._engine.local_steps):
            self._exchange.push(due, compactly=self._engine.compacts())
            if self.synchronous:
                self._exchange.wait_for_round()
        if loss is not None:
            self.note(loss=loss)
        if self._reader is not None:
            epoch, chunks = self._reader.announcement()
            self.note(epoch=epoch, chunks=chunks)
        self._account(began)
        if self._obeys:
            self._obey()
        self._keep_to_share()

    # what a training loop may use

    @property
    def tokens_per_step(self) -> int:
        """Weight of one local step relative to those of other members. A loop whose batches differ sets it before each step."""
        return self._tokens_per_step

    @tokens_per_step.setter
    def tokens_per_step(self, tokens: Any) -> None:
        self._tokens_per_step = whole(tokens, "tokens_per_step", 1, MAX_TOKENS_PER_STEP)

    @property
    def _n_tokens(self) -> int:
        """Those of a step of all ranks."""
        return self._tokens_per_step * (1 if self._ranks is None else self._ranks.size)

    @property
    def steps(self) -> int:
        """Local steps made."""
        return self._trainer.steps if self._ranks is None or self._ranks.leads else self._ranks.state.steps

    @property
    def run_step(self) -> int:
        """The run's step, for schedules: what the run had come to when this peer made its first step, and its own steps since."""
        if self._ranks is not None and not self._ranks.leads:
            return self._ranks.state.run_step
        return self._first_step + self.steps if self.steps else self._thread.call(self._engine.run_step)

    @property
    def tokens(self) -> int:
        return self._trainer.tokens if self._ranks is None or self._ranks.leads else self._ranks.state.tokens

    @property
    def last_failure(self) -> str | None:
        """Why the last contribution that failed did."""
        return self._trainer.last_failure

    @property
    def status(self) -> Status:
        """What the peer knows now."""
        return self._thread.call(status_of, self._engine)

    @property
    def blocked_s(self) -> float:
        """Seconds that step() has spent on the swarm instead of training."""
        return self._clock.blocked_s

    @property
    def blocked_fraction(self) -> float:
        """Share of the wall time that step() spent on the swarm instead of training."""
        return self._clock.blocked_fraction(time.perf_counter())

    def note(self, *, loss: Any = None, **more: Any) -> None:
        """Tell the swarm's displays what only the loop knows: the loss (a number, or a tensor of one), and for trainers any other
        field of Progress.

        Of several ranks, that of rank 0 counts. Raises: UsageError, if it is no finite number.
        """
        if self._ranks is not None and not self._ranks.leads:
            return
        if loss is not None:
            more["loss"] = loss
        self._extra = progressed(self._extra, more)

    def share(self, make: Make[Reader]) -> Reader:
        """A reader of text that leaves to other members what they read: each reads its own part, and no two the same.

            data = opt.share(lambda me, members: StreamedWindows(sources, tokenizer, 512, 8, me, members))

        `make` is given this peer's id, and a function that tells which peers train. What the reader has taken goes with this
        peer's announcements from the next step() on. Raises: ClosedError.
        """
        self._exchange.check_open()
        reader = share_text(self._thread, self._engine, make)
        self._reader = reader
        return reader

    def speed(self) -> dict[str, float]:
        """Tokens and seconds per step, smoothed."""
        return self._clock.speed(self._n_tokens)

    @property
    def control(self) -> Control:
        """Pauses this peer, limits it, or ends its training, from any thread."""
        control = Control()
        control.attach(self._thread)
        return control

    @property
    def wish(self) -> Wish:
        """What the peer's user wants training to do now: see `legion_p2p.core.control`."""
        return self._engine.control.wish

    @property
    def should_stop(self) -> bool:
        """Its user has ended training here, and `step()` has handed in what was trained; or the peer has left: a loop ends."""
        return self._has_to_stop() if self._ranks is None else self._ranks.state.should_stop

    def _has_to_stop(self) -> bool:
        return self._has_ended or not self._thread.alive

    @property
    def target_reached(self) -> bool:
        """The run has come to the target of its specification, and ends."""
        return self._engine.target.reached if self._ranks is None else self._ranks.state.target_reached

    @collective
    def rest(self) -> None:
        """Let up to WAIT_SLICE_S of a pause pass: what was trained is handed in, and what comes is taken in."""
        began = time.perf_counter()
        if not self._extra.paused:
            self.report(paused=True)
        self._exchange.push_rest()
        self.wait_briefly()
        self._exchange.check_open()
        self._clock.paused(time.perf_counter() - began)
        if self.wish is not Wish.PAUSE:
            self.report(paused=False)

    @collective
    def wait_briefly(self) -> None:
        """Let up to WAIT_SLICE_S pass, taking in what comes."""
        self._exchange.wait_once()
        if self._engine.mailbox.closed is None:
            time.sleep(0.02)

    @collective
    def wait_for_members(self, n: Any, timeout_s: Any = None) -> None:
        """Wait until the run has `n` members that train, or are about to, as this one says from now on.

        From here on the others' rounds wait for this peer, so that not even the first one closes without it.

        Raises: UsageError after `timeout_s`; ClosedError.
        """
        n, deadline = whole(n, "n", 1), deadline_after(timeout_s)
        self._exchange.check_open()
        self.report(training=True)
        while (have := self._thread.call(self._count_training)) < n:
            if deadline is not None and time.monotonic() > deadline:
                self.report()
                raise UsageError(f"{have} members after {timeout_s} s, waited for {n}")
            self._exchange.wait_once()
            time.sleep(0.02)
            self._exchange.check_open()

    @collective
    def flush(self, timeout_s: Any = None, *, last: bool = False) -> bool:
        """Push what was trained since the last push and wait until an update contains it; False after `timeout_s`.

        `last`: no training follows, so what compression left out before goes with it as far as the connection allows; and what
        moved the parameters without a step goes with it, too.
        """
        deadline = deadline_after(timeout_s)
        if last:
            self._exchange.push_last(self._n_tokens)
        return self._exchange.flush(deadline)

    @collective
    def forget_changes(self) -> None:
        """Take the parameters back to where the run and this peer's last push have left them: for weights that were loaded, from
        an old checkpoint for example, into a model that is in a run already. Steps that were not pushed yet are lost.

        Raises: ClosedError.
        """
        self._exchange.check_open()
        self._exchange.apply_updates()
        self.local.take_back()
        self._guard.updated()

    @collective
    def finish(self, *, together: bool = False, timeout_s: Any = None) -> str:
        """End training: push the rest; where `together`, serve on until every member is done. The common model's digest.

        `timeout_s` bounds all of it: what is not done then stays as it is.
        """
        deadline = deadline_after(timeout_s)
        self._exchange.push_last(self._n_tokens)
        self._exchange.flush(deadline)
        self.report(training=False, done=True)
        while together and self._thread.alive and not self._thread.call(self._engine.all_done) and not is_over(deadline):
            self._exchange.wait_once(deadline)
        self._exchange.apply_updates()
        return self.common_digest()

    @property
    def all_done(self) -> bool:
        """Every member has trained all it wanted to, and all hold the same versions."""
        return self._thread.call(self._engine.all_done)

    @collective
    def common_digest(self) -> str:
        """Digest of the region's common model: equal at two peers means equal bits."""
        return self._thread.call(self._engine.common_digest)

    def common_parameters(self) -> Tensor:
        """The region's common model, flat: 1-D fp32 on the CPU."""
        return self._thread.call(self._engine.common_parameters)

    def report(self, **changes: Any) -> None:
        """Tell the network's thread what this one has done, now."""
        step_s = self._clock.step_s
        rate = self._n_tokens / step_s if step_s else self.tokens / self._clock.elapsed_s(time.perf_counter())
        base = {"step": self.steps, "tokens": min(self.tokens, MAX_COUNT), "tokens_per_s": rate, "step_s": step_s}
        base["blocked_fraction"] = self.blocked_fraction
        base["training"] = self.steps > 0
        self._extra = progressed(self._extra, base | changes)
        self._thread.post(self._engine.report, self._extra)

    def close(self) -> None:
        """Leave the run in order, which takes less than 2 s where the model is small. What was trained since the last push, and
        large shards that go to their next owners, are sent in the background; the end of the script waits for that. The inner
        optimizer goes on without a swarm.
        """
        if self._ranks is None:
            self._leave_run()
        else:
            with suppress(ClosedError):  # other ranks may be gone
                self._leave_run()
        self._guard.release()

    @collective
    def _leave_run(self) -> None:
        if self._exchange.is_open:
            self._exchange.push_last(self._n_tokens)
            self._exchange.push()
        give_back(self._exchange)
        self._thread.close()

    def __enter__(self) -> "Optimizer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # inner steps

    def _obey(self) -> None:
        """Do what the peer's user asks of training."""
        while self.wish is Wish.PAUSE:
            self.rest()
        if self.wish.ends and not self._has_ended:
            self._has_ended = True
            self._exchange.push_last(self._n_tokens)
            self._exchange.flush(time.monotonic() + (LEAVE_FLUSH_S if self.wish is Wish.LEAVE else FINISH_FLUSH_S))
            self.report(training=False, done=True)
            if self.wish is Wish.LEAVE:
                self._thread.close()

    def _keep_to_share(self) -> None:
        """Wait where this process has taken more of the processors than its user allows."""
        share = self._engine.control.max_cpu
        if share is None:
            self._cpu = None
            return
        if self._cpu is None or self._cpu.share != share:
            self._cpu = CpuShare(share, n_processors())
        wait_s = self._cpu.wait_s(time.process_time(), time.monotonic())
        deadline = time.monotonic() + wait_s
        while wait_s and self.wish is Wish.TRAIN and not is_over(deadline) and self._engine.mailbox.closed is None:
            self._exchange.wait_once(deadline)

    def _view_of(self, named: Named) -> FlatView:
        return FlatView(named) if self._ranks is None else self._ranks.view(named)

    def _rank_state(self) -> RankState:
        run_step = self._first_step + self.steps
        return RankState(self.steps, self.tokens, run_step, self._has_to_stop(), self._engine.target.reached)

    @property
    def _engine(self) -> ActiveRun:
        return self._thread.engine

    def _count_training(self) -> int:
        return sum(a.ready and a.role.trains and (a.training or a.done) for a in self._engine.members.roster.everyone())

    def _account(self, began: float) -> None:
        now = time.perf_counter()
        self._clock.stepped(began, now)
        if self._clock.report_is_due(now) or self.steps == 1:
            self.report()


def check_wrappable(inner: Any, view: FlatView) -> None:
    """Check that `inner` can train the parameters of `view` in a run, and nobody else does.

    Raises: UsageError.
    """
    if isinstance(inner, Optimizer):
        raise UsageError("this optimizer is in a run already: wrapped again, each of its changes would count twice")
    check_free(view)
    must_hold(inner, view)


def _leave(thread: PeerAccess, guard: InnerGuard) -> None:
    """In the background: code that drops an optimizer should not wait for that."""
    guard.release()
    thread.close(0.0)
