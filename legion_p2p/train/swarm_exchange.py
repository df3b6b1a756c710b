"""Between the training thread and its peer: local changes go out, updates come in."""

import time
from collections.abc import Callable, Sequence

import torch

from legion_p2p.services.run.active_run import ActiveRun
from legion_p2p.services.shards.local_trainer import LocalTrainer
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.local import LocalCopy
from legion_p2p.train.bridge import PeerAccess
from legion_p2p.train.inner_guard import InnerGuard
from legion_p2p.train.notices import show, text_of_divergence
from legion_p2p.train.values import is_over

WAIT_SLICE_S = 0.2  # so that Ctrl+C gets through while waiting
REFUSALS = 2  # in a row, after which divergence is told: one is a batch that was out of line


class SwarmExchange:
    """What one training thread hands in, and what it takes in."""

    def __init__(
        self,
        thread: PeerAccess,
        trainer: LocalTrainer,
        local: LocalCopy,
        inner: torch.optim.Optimizer,
        guard: InnerGuard,
        on_trouble: Callable[[str], None],
    ) -> None:
        """`on_trouble`: told in words that training has diverged, and with "" that it has recovered."""
        self._thread = thread
        self._trainer = trainer
        self._local = local
        self._inner = inner
        self._guard = guard
        self._on_trouble = on_trouble
        self._has_diverged = False

    @property
    def engine(self) -> ActiveRun:
        return self._thread.engine

    @property
    def view(self) -> FlatView:
        """The parameters that are trained."""
        return self._local.view

    @property
    def is_open(self) -> bool:
        """The peer is in the run."""
        return self._thread.alive and self.engine.mailbox.closed is None

    def check_open(self) -> None:
        """Raises: ClosedError, from the failure that made the peer leave."""
        self._thread.check_may_wait()
        if self.is_open:
            return
        self._thread.post(lambda: None)  # raises for a fork, by name
        raise self._thread.closed("the network's thread has ended") from self._thread.cause

    def push(self, shards: Sequence[int] | None = None, *, compactly: bool = False) -> None:
        """Hand in the changes of `shards` (all) whose last one is settled; the others' go on growing until the next time."""
        warming_up = getattr(self._inner, "warming_up", False)
        changes = self._trainer.hand_in(shards, warming_up=warming_up, compactly=compactly)
        if changes:
            self._thread.post(self.engine.contribute, changes)

    def push_last(self, tokens: int) -> None:
        """No training follows: the next push is the last. Whatever moved the parameters without a step counts as one of `tokens`,
        so that it is pushed too."""
        self._thread.post(self.engine.push_last)
        if self._trainer.moved_unseen:
            self._trainer.stepped(tokens)

    def push_rest(self) -> None:
        """Hand in what is left, if nothing is on its way."""
        if not self._trainer.busy and not self._trainer.all_handed_in:
            self.push()

    def flush(self, deadline: float | None) -> bool:
        """Push what is left and wait until an update contains it; False where the deadline passed or the peer left first."""
        while self.is_open:
            self.apply_updates()
            if not self._trainer.busy:
                if self._trainer.all_handed_in:
                    return True
                self.push()
            if is_over(deadline):
                return False
            self.wait_once(deadline)
        return False

    def wait_for_round(self) -> None:
        """Wait until all that is on its way is settled. Raises: ClosedError."""
        while self._trainer.busy:
            self.wait_once()
            self.check_open()

    def wait_once(self, deadline: float | None = None) -> None:
        """Wait for an update for up to WAIT_SLICE_S, and take it in."""
        if self._thread.alive:  # not in a forked process, where the mailbox's lock may be held for ever
            left_s = WAIT_SLICE_S if deadline is None else min(WAIT_SLICE_S, max(0.0, deadline - time.monotonic()))
            self.engine.mailbox.wait(left_s)
            self.apply_updates()

    def apply_updates(self) -> None:
        """Take in what has come."""
        self._local.follow_types()
        if self._trainer.take_in():
            self._guard.updated()
        if self._trainer.refusals >= REFUSALS and not self._has_diverged:
            self._has_diverged = True
            text = text_of_divergence(self._inner)
            self.engine.events.error("training.diverged", text)
            show(self.engine.events, text)
            self._on_trouble(text)
        elif self._has_diverged and not self._trainer.refusals:
            self._has_diverged = False
            self._on_trouble("")
