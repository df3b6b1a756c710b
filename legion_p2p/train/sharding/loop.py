"""What `legion-peer` does in a sharded run, between joining and leaving."""

import hashlib
import math
import time
from collections.abc import Callable
from pathlib import Path

from legion_p2p.config import Training
from legion_p2p.core.control import Wish
from legion_p2p.errors import DecodeError, NotSavedError, StoreError
from legion_p2p.observe.events import Events
from legion_p2p.observe.status import Status
from legion_p2p.services.run.status import status_of
from legion_p2p.tensor.flatten import fp32_bytes
from legion_p2p.train.bridge import PeerThread
from legion_p2p.train.companions import write_companions
from legion_p2p.train.compute import Compute
from legion_p2p.train.control import Control
from legion_p2p.train.corpus import Corpus
from legion_p2p.train.data import ChunkedWindows
from legion_p2p.train.evaluation import EVAL_WINDOWS, FINAL_EVAL_WINDOWS, evaluate
from legion_p2p.train.outcome import Outcome
from legion_p2p.train.parameters import trainable
from legion_p2p.train.resume import restore_state, training_state
from legion_p2p.train.saving import save_model
from legion_p2p.train.sharding.model import ShardedModel
from legion_p2p.train.sharing import Make, share_text

EVENT_EVERY_S = 0.5
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
        self._on_status = on_status
        self._text_problem = ""
        self._evaluated_at = time.monotonic()
        self._shown_at = self._noted_at = -math.inf

    def run(self, corpus: Corpus, reader: Make[ChunkedWindows], out: Path | None) -> Outcome:
        """Train, save and evaluate."""
        spec, model = self._engine.spec, self._compute.model
        data = share_text(self._thread, self._engine, reader)
        self._go_on(data)
        tokens = spec.inner.batch * model.context
        sharded = ShardedModel(self._thread, model.module, tokens_per_step=tokens, accumulate=self._job.accumulate)
        while self._job.wait_for_members and not self._ends():
            if self._thread.call(lambda: len(sharded.training())) >= self._job.wait_for_members:
                break
            self._show()
            time.sleep(0.05)
        reason = self._train(sharded, data, corpus)
        sharded.finish()
        while reason in FINISHED and self._job.finish_together and not self._ends() and not sharded.all_done:
            self._show()
            time.sleep(0.2)
        return self._conclude(sharded, corpus, out, reason)

    def _ends(self) -> bool:
        """The user wants no more training."""
        return self._control.leaving or self._engine.control.wish.ends

    def _go_on(self, data: ChunkedWindows) -> None:
        """Read on where this peer stopped, if it resumes; and let checkpoints say where it is from now on."""
        engine = self._engine
        if engine.restored is not None:
            try:
                restore_state(engine.restored.state, engine.me, data)
            except DecodeError as bad:
                self._events.emit("data.begins_anew", reason=str(bad))
        assert engine.units is not None
        engine.units.saver.trainer_state = lambda: training_state(engine.me, data)

    def _train(self, sharded: ShardedModel, data: ChunkedWindows, corpus: Corpus) -> str:
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
                self._text_problem = str(bad)
                return "data"
            value = self._compute.backward(x, y)
            smoothed = value if smoothed is None else 0.9 * smoothed + 0.1 * value
            epoch, chunks = data.announcement()
            sharded.note(loss=smoothed, epoch=epoch, chunks=chunks, target_steps=job.steps or None)
            sharded.step()
            self._note_step(sharded, smoothed)
            self._show()
            if job.eval_every_s and time.monotonic() - self._evaluated_at >= job.eval_every_s:
                self._evaluated_at = time.monotonic()
                val_loss = self._evaluate(corpus, EVAL_WINDOWS)
                if val_loss is not None:
                    self._events.emit("eval", step=sharded.n_steps, tokens=sharded.tokens, val_loss=round(val_loss, 5))
        if self._engine.target.reached and not self._control.leaving:
            return "target"
        return "finished" if self._engine.control.wish is Wish.FINISH and not self._control.leaving else "stopped"

    def _conclude(self, sharded: ShardedModel, corpus: Corpus, out: Path | None, reason: str) -> Outcome:
        spec, module = self._engine.spec, self._compute.model.module
        digest = saved_to = problem = ""
        if out is not None:
            sharded.gather()
            whole = hashlib.sha256()
            for _, parameter in trainable(module):
                whole.update(fp32_bytes(parameter))
            digest = whole.hexdigest()
            try:
                metadata = {"run": self._engine.id, "digest": digest, "step": str(sharded.n_steps)}
                saved_to = str(save_model(list(trainable(module)), out, metadata))
            except NotSavedError as bad:
                problem = str(bad)
                self._events.error("model.not_saved", problem)
            if saved_to and spec.transformers:
                write_companions(out, spec, b"" if corpus.prepared is None else corpus.prepared.tokenizer)
        val_loss = self._evaluate(corpus, FINAL_EVAL_WINDOWS) if reason in FINISHED else None
        status = self._thread.call(status_of, self._engine)
        blocked = sharded.blocked_fraction
        self._events.emit(
            "run.finished", reason=reason, step=sharded.n_steps, tokens=sharded.tokens, val_loss=val_loss, digest=digest,
            sent_bytes=status.sent_bytes, received_bytes=status.received_bytes, region=status.region,
            bytes_in_region=status.bytes_in_region, bytes_across=status.bytes_across, rounds=status.rounds,
            blocked_fraction=round(blocked, 5),
        )  # fmt: skip
        self._show(force=True)
        return Outcome(
            sharded.n_steps, sharded.tokens, val_loss, digest, reason, status.sent_bytes, status.received_bytes, blocked,
            saved_to, problem, self._text_problem, tuple(self._thread.call(self._engine.messenger.connected)),
        )  # fmt: skip

    def _note_step(self, sharded: ShardedModel, loss: float) -> None:
        now = time.monotonic()
        if now - self._noted_at >= EVENT_EVERY_S or sharded.n_steps == 1:
            self._noted_at = now
            shown = round(loss, 4) if math.isfinite(loss) else None
            self._events.emit(
                "step", step=sharded.n_steps, tokens=sharded.tokens, loss=shown, mfu=None, **sharded.speed()
            )  # fmt: skip

    def _evaluate(self, corpus: Corpus, n_windows: int) -> float | None:
        try:
            return evaluate(self._compute.model, corpus, n_windows, self._compute.device, self._compute.precise())
        except StoreError as bad:
            self._text_problem = str(bad)
            return None

    def _show(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if self._on_status is not None and (force or now - self._shown_at >= EVENT_EVERY_S):
            self._shown_at = now
            self._on_status(self._thread.call(status_of, self._engine))
