"""A LightningModule in a run: a callback, and no other change.

from legion_p2p.integrations.lightning import LegionCallback

trainer = lightning.Trainer(callbacks=[LegionCallback("my-run", initial_peers=[...])])
trainer.fit(module, loader)
"""

import time
from collections.abc import Iterable
from typing import Any

from legion_p2p.config import NewRun, Peer
from legion_p2p.errors import UsageError
from legion_p2p.integrations.common import check_processes, note_loss
from legion_p2p.train.optimizer import Optimizer

try:
    import lightning.pytorch as pl
except ImportError as bad:
    raise ImportError('this module needs lightning: pip install "legion_p2p[lightning]"') from bad

NOTE_EVERY_S = 1.0  # a GPU is waited for each time


class LegionCallback(pl.Callback):
    """From the first training step on, the module's optimizer trains together with the run; at the end the rest is pushed, and
    the peer leaves.

    The module gets the run's parameters after Lightning has restored a checkpoint, so `ckpt_path` brings back the optimizer's
    moments and the schedule, and the run the parameters. Those of a NewRun start as the checkpoint has them.

    Args:
        run: name or id of the run to join; or a NewRun("name"), to create it.
        initial_peers, peer, tokens_per_step: as of `legion_p2p.Optimizer`.
        together: stay at the end until every member is done, so that all end with the same model.
    """

    def __init__(
        self,
        run: str | NewRun,
        *,
        initial_peers: Iterable[str] = (),
        peer: Peer = Peer(),
        tokens_per_step: int = 1,
        together: bool = False,
    ) -> None:
        self.run = run
        self.initial_peers = initial_peers
        self.peer = peer
        self.tokens_per_step = tokens_per_step
        self.together = together
        self._note_at = 0.0
        self.optimizer: Optimizer | None = None
        """The one that is in the run, while training lasts: its status, its run_step."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the run, or create it. Raises: UsageError; as `legion_p2p.Optimizer`."""
        check_processes("this Trainer", trainer.world_size)
        inner = trainer.strategy.optimizers
        if len(inner) != 1:
            raise UsageError(f"configure_optimizers() returns {len(inner)} optimizers, and a run needs one")
        self.optimizer = Optimizer(
            inner[0], pl_module, self.run,
            initial_peers=self.initial_peers, peer=self.peer, tokens_per_step=self.tokens_per_step,
        )  # fmt: skip
        trainer.strategy.optimizers = [self.optimizer]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if self.optimizer is not None and loss is not None and time.monotonic() >= self._note_at:
            self._note_at = time.monotonic() + NOTE_EVERY_S
            note_loss(self.optimizer, loss)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.optimizer is not None:
            self.optimizer.finish(together=self.together)
            self._leave(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._leave(trainer)

    def _leave(self, trainer: pl.Trainer) -> None:
        optimizer, self.optimizer = self.optimizer, None
        if optimizer is not None:
            trainer.strategy.optimizers = [optimizer.inner]
            optimizer.close()
