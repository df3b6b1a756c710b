"""What the training libraries have in common."""

import math
from typing import Any

from torch import Tensor

from legion_p2p.errors import UsageError
from legion_p2p.train.optimizer import Optimizer


def check_processes(what: str, n_processes: int) -> None:
    """Raises: UsageError, where a library trains in several processes."""
    if n_processes > 1:
        raise UsageError(f"{what} has {n_processes} processes, which average their gradients: in a run each peer is one process")


def note_loss(optimizer: Optimizer, loss: Any) -> None:
    """Tell the other members a loss. One that is not finite is not told: it would spoil their figures, and ends no training."""
    value = float(loss.detach() if isinstance(loss, Tensor) else loss)
    if math.isfinite(value):
        optimizer.note(loss=value)
