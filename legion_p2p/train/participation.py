"""The training thread's part in a run: it counts steps, hands in changes, takes in updates, reports, and obeys the user.

Of several ranks, rank 0 has it; the others follow.
"""

import time
import weakref
from typing import Any

import torch

from legion_p2p.core.control import Wish
from legion_p2p.core.cpu_share import CpuShare
from legion_p2p.core.wire import MAX_COUNT
from legion_p2p.errors import ClosedError, UsageError
from legion_p2p.observe.machine import n_processors
from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.run.progress import Progress
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.local import LocalCopy
from legion_p2p.train.bridge import PeerAccess
from legion_p2p.train.inner_guard import InnerGuard
from legion_p2p.train.live_parameters import claim, give_back
from legion_p2p.train.notices import DivergedMembers
from legion_p2p.train.sharing import Make, Reader, SharedReader, share_text
from legion_p2p.train.step_clock import StepClock
from legion_p2p.train.swarm_exchange import SwarmExchange
from legion_p2p.train.values import is_over, progressed

FINISH_FLUSH_S = 30.0  # for the last push, where the user ends training
LEAVE_FLUSH_S = 0.5  # the same where they want it to end at once


class Participation:
    """The training thread's part in a run, from the first step to the last push."""

    def __init__(
        self, thread: PeerAccess, view: FlatView, inner: torch.optim.Optimizer, guard: InnerGuard, n_tokens: int, *, obeys: bool
    ) -> None:
        """`n_tokens`: weight of a step. `obeys`: `stepped` does what the peer's user asks; False: the caller looks at `wish`."""
        engine = thread.engine
        plan, rounds = engine.plan, engine.spec.round
        exact = all(kind == torch.float32 for kind in view.types())
        self.thread = thread
        self.n_tokens = n_tokens
        self.synchronous = rounds.synchronous
        self.local = LocalCopy(
            view, [plan.bounds(shard) for shard in range(plan.n_shards)], exact, rounds.mixing, engine.ctx.keep
        )
        self.trainer = engine.local_trainer(self.local, engine.mailbox)
        self.clock = StepClock(time.perf_counter())
        self.reader: SharedReader | None = None
        self.has_ended = False
        """Its user has ended training, and what was trained is handed in."""
        self._obeys = obeys
        self._guard = guard
        self.progress = Progress()
        self._cpu: CpuShare | None = None
        weak = weakref.proxy(self)  # not `self`: an optimizer that is dropped goes at once, not at the next garbage collection
        self.exchange = SwarmExchange(
            thread, self.trainer, self.local, inner, guard, lambda trouble: weak.report(trouble=trouble)
        )
        self.exchange.apply_updates()
        self._first_step = thread.call(engine.run_step)
        others = DivergedMembers(engine.me, engine.events)
        thread.call(engine.members.announcements.add, others.heard)
        claim(self.exchange)

    @property
    def engine(self) -> ActiveRun:
        return self.thread.engine

    @property
    def wish(self) -> Wish:
        """What the peer's user wants training to do now."""
        return self.engine.control.wish

    @property
    def has_to_stop(self) -> bool:
        return self.has_ended or not self.thread.alive

    # steps

    def begin_step(self) -> None:
        """Raises: ClosedError."""
        if self.has_ended:
            raise ClosedError("training here has ended, as this peer's user asked: a loop looks at should_stop after each step")
        self.exchange.check_open()
        if not self.trainer.steps:
            self._first_step = self.thread.call(self.engine.run_step)

    def stepped(self, loss: float | None) -> None:
        """The inner optimizer has stepped: take in what has come, and hand in what is due."""
        began = time.perf_counter()
        self.trainer.stepped(self.n_tokens)
        self.exchange.apply_updates()
        if due := self.trainer.due(self.engine.local_steps):
            self.exchange.push(due, compactly=self.engine.compacts())
            if self.synchronous:
                self.exchange.wait_for_round()
        if loss is not None:
            self.note(loss=loss)
        if self.reader is not None:
            epoch, chunks = self.reader.announcement()
            self.note(epoch=epoch, chunks=chunks)
        self._account(began)
        if self._obeys:
            self._obey()
        self._keep_to_share()

    def run_step(self) -> int:
        """The run's step when this peer made its first step, and its own steps since."""
        return self.last_run_step if self.trainer.steps else self.thread.call(self.engine.run_step)

    @property
    def last_run_step(self) -> int:
        """The same, without asking where no step is made yet."""
        return self._first_step + self.trainer.steps

    def _account(self, began: float) -> None:
        now = time.perf_counter()
        self.clock.stepped(began, now)
        if self.clock.report_is_due(now) or self.trainer.steps == 1:
            self.report()

    def _obey(self) -> None:
        """Do what the peer's user asks of training."""
        while self.wish is Wish.PAUSE:
            self.rest()
        if self.wish.ends and not self.has_ended:
            self.has_ended = True
            self.exchange.push_last(self.n_tokens)
            self.exchange.flush(time.monotonic() + (LEAVE_FLUSH_S if self.wish is Wish.LEAVE else FINISH_FLUSH_S))
            self.report(training=False, done=True)
            if self.wish is Wish.LEAVE:
                self.thread.close()

    def _keep_to_share(self) -> None:
        """Wait where this process has taken more of the processors than its user allows."""
        share = self.engine.control.max_cpu
        if share is None:
            self._cpu = None
            return
        if self._cpu is None or self._cpu.share != share:
            self._cpu = CpuShare(share, n_processors())
        wait_s = self._cpu.wait_s(time.process_time(), time.monotonic())
        deadline = time.monotonic() + wait_s
        while wait_s and self.wish is Wish.TRAIN and not is_over(deadline) and self.engine.mailbox.closed is None:
            self.exchange.wait_once(deadline)

    # what others are told

    def note(self, **more: Any) -> None:
        """Fields of Progress that only the loop knows. They are told with the next report."""
        self.progress = progressed(self.progress, more)

    def report(self, **changes: Any) -> None:
        """Tell the network's thread what this one has done, now."""
        now = time.perf_counter()
        trainer, step_s = self.trainer, self.clock.step_s
        rate = self.n_tokens / step_s if step_s else trainer.tokens / self.clock.elapsed_s(now)
        base = {"step": trainer.steps, "tokens": min(trainer.tokens, MAX_COUNT), "tokens_per_s": rate, "step_s": step_s}
        base["blocked_fraction"] = self.clock.blocked_fraction(now)
        base["training"] = trainer.steps > 0
        self.note(**base | changes)
        self.thread.post(self.engine.report, self.progress)

    def share(self, make: Make[Reader]) -> Reader:
        """A reader whose place in the text goes with this peer's announcements. Raises: ClosedError."""
        self.exchange.check_open()
        reader = share_text(self.thread, self.engine, make)
        self.reader = reader
        return reader

    # waiting

    def rest(self) -> None:
        """Let a slice of a pause pass: what was trained is handed in, and what comes is taken in."""
        began = time.perf_counter()
        if not self.progress.paused:
            self.report(paused=True)
        self.exchange.push_rest()
        self.wait_briefly()
        self.exchange.check_open()
        self.clock.paused(time.perf_counter() - began)
        if self.wish is not Wish.PAUSE:
            self.report(paused=False)

    def wait_briefly(self) -> None:
        """Let up to WAIT_SLICE_S pass, taking in what comes."""
        self.exchange.wait_once()
        if self.engine.mailbox.closed is None:
            time.sleep(0.02)

    def wait_for_members(self, n: int, timeout_s: Any, deadline: float | None) -> None:
        """Wait until `n` members train, or are about to. Raises: UsageError, past the deadline; ClosedError."""
        self.exchange.check_open()
        self.report(training=True)
        while (have := self.thread.call(self._count_training)) < n:
            if deadline is not None and time.monotonic() > deadline:
                self.report()
                raise UsageError(f"{have} members after {timeout_s} s, waited for {n}")
            self.exchange.wait_once()
            time.sleep(0.02)
            self.exchange.check_open()

    def _count_training(self) -> int:
        return sum(a.ready and a.role.trains and (a.training or a.done) for a in self.engine.members.roster.everyone())

    # the end

    def flush(self, deadline: float | None, *, last: bool) -> bool:
        """Push what was trained and wait until an update contains it; False where the deadline passed first."""
        if last:
            self.exchange.push_last(self.n_tokens)
        return self.exchange.flush(deadline)

    def forget_changes(self) -> None:
        """Take the parameters back to where the run and the last push have left them. Raises: ClosedError."""
        self.exchange.check_open()
        self.exchange.apply_updates()
        self.local.take_back()
        self._guard.updated()

    def finish(self, deadline: float | None, *, together: bool) -> str:
        """Push the rest; where `together`, serve on until every member is done. The common model's digest."""
        self.flush(deadline, last=True)
        self.report(training=False, done=True)
        while together and self.thread.alive and not self.thread.call(self.engine.all_done) and not is_over(deadline):
            self.exchange.wait_once(deadline)
        self.exchange.apply_updates()
        return self.thread.call(self.engine.common_digest)

    def leave(self) -> None:
        """Hand in what was trained, and leave in the background."""
        if self.exchange.is_open:
            self.exchange.push_last(self.n_tokens)
            self.exchange.push()
        give_back(self.exchange)
        self.thread.close()
