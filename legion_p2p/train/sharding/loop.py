"""What `legion-peer` does in a sharded run, between joining and leaving."""

import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path

from legion_p2p.config import Training
from legion_p2p.core.control import Wish
from legion_p2p.errors import StoreError
from legion_p2p.observe.events import Events
from legion_p2p.observe.status import Status
from legion_p2p.tensor.flatten import fp32_bytes
from legion_p2p.train.bridge import PeerThread
from legion_p2p.train.compute import Compute
from legion_p2p.train.control import Control
from legion_p2p.train.corpus import Corpus
from legion_p2p.train.evaluation import EVAL_WINDOWS, FINAL_EVAL_WINDOWS
from legion_p2p.train.loop_report import LoopReport
from legion_p2p.train.outcome import Outcome
from legion_p2p.train.parameters import trainable
from legion_p2p.train.resume import read_on
from legion_p2p.train.sharding.model import IN_PLACE_S, ShardedModel
from legion_p2p.train.sharing import Make, TextReader, share_text

FINISHED = ("steps", "minutes", "finished", "target")


class ShardedLoop:
    """One job in a sharded run."""

    def __init__(
        self, thread: PeerThread, compute: Compute, job: Training, events: Events, control: Control,
        on_status: Callable[[Status], None] | None,
    ) -> None:  # fmt: skip
        self._thread = thread
        self._engine = thread.engine
        self._compute = compute
        self._job = job
        self._events = events
        self._control = control
        self._report = LoopReport(thread, compute, events, on_status)
        self._evaluated_at = time.monotonic()

    def run(self, corpus: Corpus, reader: Make[TextReader], out: Path | None) -> Outcome:
        """Train, save and evaluate."""
        spec, model = self._engine.spec, self._compute.model
        data = share_text(self._thread, self._engine, reader)
        assert self._engine.units is not None
        self._engine.units.saver.trainer_state = read_on(self._engine, data, self._events)
        tokens = spec.inner.batch * model.context
        sharded = ShardedModel(self._thread, model.module, tokens_per_step=tokens, accumulate=self._job.accumulate)
        if self._job.wait_for_members:
            self._wait_until(lambda: len(sharded.training()) >= self._job.wait_for_members, math.inf)
            self._wait_until(sharded.is_in_place, IN_PLACE_S)
        reason = self._train(sharded, data, corpus)
        sharded.finish()
        while reason in FINISHED and self._job.finish_together and not self._ends() and not sharded.all_done:
            self._report.show()
            time.sleep(0.2)
        return self._conclude(sharded, corpus, out, reason)

    def _wait_until(self, is_so: Callable[[], bool], timeout_s: float) -> None:
        """`is_so` is asked in the network's thread. What the user wants ends the wait, too."""
        deadline = time.monotonic() + timeout_s
        while not self._ends() and time.monotonic() < deadline and not self._thread.call(is_so):
            self._report.show()
            time.sleep(0.05)

    def _ends(self) -> bool:
        """The user wants no more training."""
        return self._control.leaving or self._engine.control.wish.ends

    def _train(self, sharded: ShardedModel, data: TextReader, corpus: Corpus) -> str:
        job, began = self._job, time.monotonic()
        deadline = began + 60 * job.minutes if job.minutes else math.inf
        smoothed: float | None = None
        while not self._ends():
            if job.steps and sharded.n_steps >= job.steps:
                return "steps"
            if time.monotonic() >= deadline:
                return "minutes"
            try:
                x, y = next(data)
            except StoreError as bad:
                self._report.text_problem = str(bad)
                return "data"
            value = self._compute.backward(x, y)
            smoothed = value if smoothed is None else 0.9 * smoothed + 0.1 * value
            epoch, chunks = data.announcement()
            sharded.note(loss=smoothed, epoch=epoch, chunks=chunks, target_steps=job.steps or None)
            sharded.step()
            self._report.stepped(sharded.n_steps, sharded.tokens, smoothed, None, sharded.speed())
            if job.eval_every_s and time.monotonic() - self._evaluated_at >= job.eval_every_s:
                self._evaluated_at = time.monotonic()
                self._report.evaluated(sharded.n_steps, sharded.tokens, self._report.evaluate(corpus, EVAL_WINDOWS))
        if self._engine.target.reached and not self._control.leaving:
            return "target"
        return "finished" if self._engine.control.wish is Wish.FINISH and not self._control.leaving else "stopped"

    def _conclude(self, sharded: ShardedModel, corpus: Corpus, out: Path | None, reason: str) -> Outcome:
        digest = ""
        if out is not None:
            sharded.gather()
            whole = hashlib.sha256()
            for _, parameter in trainable(self._compute.model.module):
                whole.update(fp32_bytes(parameter))
            digest = whole.hexdigest()
        saved_to, save_problem = self._report.save(out, corpus, digest, sharded.n_steps)
        val_loss = self._report.evaluate(corpus, FINAL_EVAL_WINDOWS) if reason in FINISHED else None
        made = Outcome(
            sharded.n_steps,
            sharded.tokens,
            val_loss,
            digest,
            reason,
            blocked_fraction=sharded.blocked_fraction,
            saved_to=saved_to,
            save_problem=save_problem,
        )
        return self._report.finished(made, self._report.status())
