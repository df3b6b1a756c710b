"""What a training loop tells of itself, and what it leaves: events, the status, the model's file, its loss on held-out text."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from legion_p2p.errors import NotSavedError, StoreError
from legion_p2p.observe.events import Events
from legion_p2p.observe.status import Status
from legion_p2p.services.run.status import status_of
from legion_p2p.train.bridge import PeerThread
from legion_p2p.train.companions import write_companions
from legion_p2p.train.compute import Compute
from legion_p2p.train.corpus import Corpus
from legion_p2p.train.evaluation import evaluate
from legion_p2p.train.language_model import LanguageModel
from legion_p2p.train.outcome import Outcome
from legion_p2p.train.parameters import trainable
from legion_p2p.train.saving import save_model
from legion_p2p.train.side_file import WEIGHTS

STEP_EVENT_EVERY_S = 0.5
STATUS_EVERY_S = 0.5
AVERAGE, BEST = "average.safetensors", "best.safetensors"


class LoopReport:
    """Of one loop, in a sharded run or in another."""

    def __init__(self, thread: PeerThread, compute: Compute, events: Events, on_status: Callable[[Status], None] | None) -> None:
        """`on_status`: called with the status every STATUS_EVERY_S."""
        self.text_problem = ""
        """Why the text could not be read any more."""
        self._thread = thread
        self._compute = compute
        self._events = events
        self._on_status = on_status
        self._shown_at = self._noted_at = -math.inf

    def status(self) -> Status:
        return self._thread.call(status_of, self._thread.engine)

    def show(self, *, force: bool = False) -> None:
        """Give the status to `on_status`, if it is time, or `force`."""
        now = time.monotonic()
        if self._on_status is not None and (force or now - self._shown_at >= STATUS_EVERY_S):
            self._shown_at = now
            self._on_status(self.status())

    def stepped(self, step: int, tokens: int, loss: float | None, mfu: float | None, speed: Mapping[str, float]) -> None:
        """A step was made: an event, if it is time, and the status."""
        now = time.monotonic()
        if now - self._noted_at >= STEP_EVENT_EVERY_S or step == 1:
            self._noted_at = now
            shown = None if loss is None or not math.isfinite(loss) else round(loss, 4)
            self._events.emit("step", step=step, tokens=tokens, loss=shown, mfu=mfu, **speed)
        self.show()

    def evaluate(self, corpus: Corpus, n_windows: int) -> float | None:
        """The loss on held-out text; None where that could not be read."""
        try:
            return evaluate(self._compute.model, corpus, n_windows, self._compute.device, self._compute.precise())
        except StoreError as bad:
            self.text_problem = str(bad)
            return None

    def evaluated(self, step: int, tokens: int, val_loss: float | None) -> None:
        """An evaluation while training has come to this."""
        if val_loss is not None:
            self._events.emit("eval", step=step, tokens=tokens, val_loss=round(val_loss, 5))

    def save(self, out: Path | None, corpus: Corpus, digest: str, step: int) -> tuple[str, str]:
        """Write the model, with what others need to load it. Where it is, and what is wrong with that; empty: nothing."""
        if out is None:
            return "", ""
        engine = self._thread.engine
        metadata = {"run": engine.id, "digest": digest, "step": str(step)}
        saved_to, problem = save_or_tell(self._compute.model, out, metadata, self._events)
        if saved_to and engine.spec.transformers:
            write_companions(out, engine.spec, corpus.tokenizer)
        return saved_to, problem

    def save_beside(self, out: Path | None, name: str, step: int, what: str) -> str:
        """Write what the model holds now to the file `name`, beside the common model; where it is. Empty: nowhere."""
        if out is None:
            return ""
        metadata = {"run": self._thread.engine.id, "step": str(step), "of": what}
        return save_or_tell(self._compute.model, out, metadata, self._events, name)[0]

    def finished(self, made: Outcome, status: Status) -> Outcome:
        """The loop has ended with `status`: what it `made`, completed by what was sent and received."""
        self._events.emit(
            "run.finished",
            reason=made.reason,
            step=made.steps,
            tokens=made.tokens,
            val_loss=made.val_loss,
            average_val_loss=made.average_val_loss,
            best_val_loss=made.best_val_loss,
            digest=made.digest,
            sent_bytes=status.sent_bytes,
            received_bytes=status.received_bytes,
            region=status.region,
            bytes_in_region=status.bytes_in_region,
            bytes_across=status.bytes_across,
            rounds=status.rounds,
            blocked_fraction=round(made.blocked_fraction, 5),
        )
        self.show(force=True)
        return msgspec.structs.replace(
            made,
            sent_bytes=status.sent_bytes,
            received_bytes=status.received_bytes,
            text_problem=self.text_problem,
            connected=tuple(self._thread.call(self._thread.engine.messenger.connected)),
        )


def save_or_tell(
    model: LanguageModel, out: Path, metadata: Mapping[str, str], events: Events, name: str = WEIGHTS
) -> tuple[str, str]:
    """Where the model is, and what is wrong with that; empty: nothing. What is wrong is an event, too."""
    try:
        # A tied output matrix is the embedding: it is stored once.
        return str(save_model(list(trainable(model.module)), out, metadata, name)), ""
    except NotSavedError as bad:
        events.error("model.not_saved", str(bad))
        return "", str(bad)
