"""What `legion-peer` does between joining and leaving, in a run whose members hold the whole model."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from legion_p2p.config import Training
from legion_p2p.core.control import Wish
from legion_p2p.core.eta import EtaEstimator
from legion_p2p.core.learning_rate import learning_rate
from legion_p2p.errors import StoreError
from legion_p2p.observe.events import Events
from legion_p2p.observe.memory import is_out_of_memory
from legion_p2p.observe.status import Status
from legion_p2p.train.best_common import BestCommon, is_better
from legion_p2p.train.bridge import PeerThread
from legion_p2p.train.common_average import CommonAverage
from legion_p2p.train.compute import Compute, memory_advice
from legion_p2p.train.control import Control
from legion_p2p.train.corpus import Corpus
from legion_p2p.train.described import shape_of
from legion_p2p.train.evaluation import EVAL_WINDOWS, FINAL_EVAL_WINDOWS, load_flat
from legion_p2p.train.examiner import Examiner
from legion_p2p.train.flops import Utilisation, flops_per_token, peak_flops
from legion_p2p.train.inner import inner_optimizer
from legion_p2p.train.loop_report import AVERAGE, BEST, LoopReport
from legion_p2p.train.optimizer import Optimizer
from legion_p2p.train.outcome import Outcome
from legion_p2p.train.rank_work import RankWork
from legion_p2p.train.resume import read_on
from legion_p2p.train.sharing import Make, TextReader

TARGET_TOGETHER_S = 120.0  # at a run's target all end with the same model; one that never ends must not hold the others up
STOP_FLUSH_S = 0.5  # what an orderly leave grants the last push
FINISH_FLUSH_S = 30.0  # the same where training is over
UNFINISHED = ("stopped", "data", "memory")
"""Reasons to leave at once, without a last evaluation, and without waiting for others."""


class TrainingLoop:
    """One job in one run."""

    def __init__(
        self,
        thread: PeerThread,
        compute: Compute,
        job: Training,
        events: Events,
        control: Control,
        on_status: Callable[[Status], None] | None,
        ranks: RankWork | None = None,
    ) -> None:
        """`ranks`: other processes that compute parts of the batches."""
        engine = thread.engine
        spec, model = engine.spec, compute.model
        inner = inner_optimizer(spec.inner, model.module)
        self.opt = Optimizer.beside(thread, inner, model.module, tokens_per_step=spec.inner.batch * model.context, obeys=False)
        self._thread = thread
        self._engine = engine
        self._spec = spec
        self._compute = compute
        self._backward = compute.backward if ranks is None else partial(ranks.step, compute)
        self._job = job
        self._events = events
        self._control = control
        self._report = LoopReport(thread, compute, events, on_status)
        self.examiner: Examiner | None = None
        """Answers multiple-choice questions with the common model; None: nobody asked for that."""
        self._memory_problem = ""
        self._average = CommonAverage(self.opt.common_parameters) if job.average else None
        self._best = BestCommon() if job.keep_best else None
        self._run_step = 0
        self._eta = EtaEstimator()
        self._evaluated_at = time.monotonic()
        shape = shape_of(spec)
        per_token = flops_per_token(model.module, shape.n_layer, shape.width, shape.context)
        peak = peak_flops(compute.device, job.precision, job.peak_tflops)
        n_devices = 1 if ranks is None else ranks.size
        self._use = Utilisation(per_token, None if peak is None else n_devices * peak)

    def run(self, corpus: Corpus, reader: Make[TextReader], out: Path | None) -> Outcome:
        """Train, save and evaluate."""
        opt, engine = self.opt, self._engine
        data = opt.share(reader)
        engine.checkpoints.trainer_state = read_on(engine, data, self._events)
        self._wait_for_members()
        self._run_step = self._thread.call(engine.run_step)
        self._evaluated_at = time.monotonic()
        try:
            reason = self._train(data, corpus)
        except (MemoryError, RuntimeError) as bad:
            if not is_out_of_memory(bad):
                raise
            self._memory_problem = memory_advice(bad, self._job, self._compute.device, self._spec.inner.batch, opt.steps)
            reason = "memory"
        opt.zero_grad()
        if reason in UNFINISHED:
            opt.flush(STOP_FLUSH_S, last=True)
            opt.report(training=False, done=True)
        else:
            self._finish()
        return self._conclude(corpus, out, reason)

    def _wait_for_members(self) -> None:
        while self._job.wait_for_members and not self._ends():
            if sum(m.ready for m in self.opt.status.members) >= self._job.wait_for_members:
                return
            self._report.show()
            time.sleep(0.05)

    def _train(self, data: TextReader, corpus: Corpus) -> str:
        job, opt, inner, began = self._job, self.opt, self._spec.inner, time.monotonic()
        deadline = began + 60 * job.minutes if job.minutes else math.inf
        smoothed: float | None = None
        while not self._ends() and not self._report.text_problem:
            if opt.wish is Wish.PAUSE:
                opt.rest()
                self._report.show()
                if time.monotonic() >= deadline:
                    return "minutes"
                continue
            if job.steps and opt.steps >= job.steps:
                return "steps"
            if time.monotonic() >= deadline:
                return "minutes"
            rate = self._learning_rate()
            for group in opt.param_groups:
                group["lr"] = rate
            try:
                x, y = next(data)
            except StoreError as bad:
                self._report.text_problem = str(bad)
                break
            value = self._backward(x, y)
            if inner.clip:
                torch.nn.utils.clip_grad_norm_(self._compute.model.module.parameters(), inner.clip)
            if math.isfinite(value):  # divergence is reported elsewhere, and one such value would spoil all later ones
                smoothed = value if smoothed is None else 0.9 * smoothed + 0.1 * value
            told = self._remaining(began, deadline)
            opt.note(loss=smoothed, run_step=self._run_step + opt.steps + 1, mfu=self._mfu(), **told)
            opt.step()
            opt.zero_grad()
            if self._average is not None:
                self._average.stepped(opt.steps, self._engine.local_steps)
            self._report.stepped(opt.steps, opt.tokens, smoothed, self._mfu(), opt.speed())
            if job.eval_every_s and time.monotonic() - self._evaluated_at >= job.eval_every_s:
                self._evaluate_common(corpus)
            if self.examiner is not None and (mine := self.examiner.due()):
                with self._common_model():
                    self.examiner.answer(mine, lambda: self._ends() or time.monotonic() >= deadline)
        if self._report.text_problem:
            return "data"
        if self._target_reached():
            return "target"
        return "finished" if opt.wish is Wish.FINISH and not self._control.leaving else "stopped"

    def _learning_rate(self) -> float:
        """By the run's own count, where that is ahead of this peer's: one that is slower than the others ends when they do."""
        engine, own = self._engine, self.opt.steps
        step = max(self._run_step + own, engine.pacer.run_step)
        done = engine.target.watch.target.done(step, engine.target.seen.tokens)
        return learning_rate(self._spec.inner, own, step, done)

    def _mfu(self) -> float | None:
        return self._use.mfu(self.opt.speed()["tokens_per_s"])

    def _target_reached(self) -> bool:
        return self.opt.target_reached and not self._control.leaving

    def _ends(self) -> bool:
        """Whether its user wants it to train no more."""
        return self._control.leaving or self.opt.wish.ends

    def _remaining(self, began: float, deadline: float) -> dict[str, Any]:
        """How long until what the user asked for is done: a range as soon as enough steps were seen, before that about."""
        now = time.monotonic()
        least_s = most_s = max(0.0, deadline - now)
        self._eta.count(self.opt.steps, now)
        if self._job.steps:
            found = self._eta.left(self._job.steps)
            if found is not None:
                least_s, most_s = min(least_s, found.least_s), min(most_s, found.most_s)
            elif self.opt.steps > 5:
                average_s = (now - began) / self.opt.steps * (self._job.steps - self.opt.steps)
                least_s, most_s = min(least_s, max(0.0, average_s)), math.inf
        return {
            "target_steps": self._job.steps or None,
            "remaining_s": None if math.isinf(least_s) else least_s,
            "remaining_most_s": None if math.isinf(most_s) else most_s,
        }

    def _finish(self) -> None:
        opt = self.opt
        opt.flush(FINISH_FLUSH_S, last=True)
        opt.report(training=False, done=True)
        until = time.monotonic() + TARGET_TOGETHER_S if self._target_reached() else 0.0
        while time.monotonic() < until and not self._control.leaving and not opt.all_done:
            opt.wait_briefly()
            self._report.show()
        while self._job.finish_together and not self._ends() and not opt.all_done:
            opt.wait_briefly()
            self._report.show()

    def _conclude(self, corpus: Corpus, out: Path | None, reason: str) -> Outcome:
        opt, report = self.opt, self._report
        flat = opt.common_parameters()
        digest = opt.common_digest()
        status = opt.status
        load_flat(self._compute.model.module, flat)
        saved_to, save_problem = report.save(out, corpus, digest, opt.steps)
        val_loss = None if reason in UNFINISHED else report.evaluate(corpus, FINAL_EVAL_WINDOWS)
        average_loss, average_saved_to, best_loss, best_saved_to = None, "", None, ""
        average, best = self._average, self._best
        if average is not None and reason not in UNFINISHED:
            average.look()
            of = opt.steps, f"the average of {average.n_looks} versions"
            average_loss, average_saved_to = self._compare(average.value, val_loss, corpus, out, AVERAGE, of)
        if best is not None and reason not in UNFINISHED:
            of = best.step, "the common model that evaluations found best"
            best_loss, best_saved_to = self._compare(best.value, val_loss, corpus, out, BEST, of)
        load_flat(self._compute.model.module, flat)
        made = Outcome(
            opt.steps,
            opt.tokens,
            val_loss,
            digest,
            reason,
            blocked_fraction=opt.blocked_fraction,
            average_val_loss=average_loss,
            average_saved_to=average_saved_to,
            best_val_loss=best_loss,
            best_saved_to=best_saved_to,
            saved_to=saved_to,
            save_problem=save_problem,
            memory_problem=self._memory_problem,
            mfu=self._mfu(),
        )
        return report.finished(made, status)

    def _compare(
        self, flat: Tensor | None, val_loss: float | None, corpus: Corpus, out: Path | None, name: str, of: tuple[int, str]
    ) -> tuple[float | None, str]:
        """The loss of `flat` on held-out text, and where it was saved as `name`, if it is better than the common model's.

        `of`: the step that it is of, and what it is, for the file. None: there is no such model.
        """
        if flat is None:
            return None, ""
        load_flat(self._compute.model.module, flat)
        loss = self._report.evaluate(corpus, FINAL_EVAL_WINDOWS)
        return loss, self._report.save_beside(out, name, *of) if is_better(loss, val_loss) else ""

    def _evaluate_common(self, corpus: Corpus) -> None:
        """The loss of the common model on held-out text."""
        with self._common_model() as flat:
            val_loss = self._report.evaluate(corpus, EVAL_WINDOWS)
        if self._best is not None:
            self._best.evaluated(val_loss, flat, self.opt.steps)
        self._evaluated_at = time.monotonic()
        self._report.evaluated(self.opt.steps, self.opt.tokens, val_loss)

    @contextlib.contextmanager
    def _common_model(self) -> Iterator[Tensor]:
        """The model has the region's common parameters, which are given flat; then this peer's own again."""
        opt, module = self.opt, self._compute.model.module
        mine = opt.local.view.snapshot()
        common = opt.common_parameters()
        load_flat(module, common)
        try:
            yield common
        finally:
            load_flat(module, mine)
