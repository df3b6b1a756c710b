"""The common model as it was when an evaluation found it best, beside what it is at the end.

It can end worse than it was: where it learns its text by heart, where members leave one after another while the rate is still
high, or where training diverges. Evaluations while training see few windows, so both are compared again on many.
"""

import math

from torch import Tensor


def is_better(loss: float | None, than: float | None) -> bool:
    """Whether a loss is lower than another. None: it was not measured, so nobody knows. What is no number is worse than any."""
    if loss is None or than is None or not math.isfinite(loss):
        return False
    return math.isnan(than) or loss < than


class BestCommon:
    """Of one peer's evaluations. Holds one copy of the model."""

    def __init__(self) -> None:
        self.value: Tensor | None = None
        """Flat; None: nothing was evaluated yet."""
        self.loss: float | None = None
        self.step = 0
        """Of this peer, when it was evaluated."""

    def evaluated(self, loss: float | None, flat: Tensor, step: int) -> None:
        """An evaluation of `flat` found this loss; None: the text could not be read. `flat` is kept as it is, not copied."""
        if is_better(loss, math.inf if self.loss is None else self.loss):
            self.value, self.loss, self.step = flat, loss, step
