"""An average of the common model over the last part of what was seen of it.

At a rate that does not fall, the common model trembles around what it has learnt, and the mean of its last versions is better
than any of them. The nth look at it counts OVER / n: that is a mean over about the last 1 / OVER of all looks, however long the
run is (power-function averages: Karras et al., 2312.02696, section 3.1).

A look copies the model. There is one for each round of this peer, and fewer where they would take more than MAX_SHARE of the
time.
"""

import time
from collections.abc import Callable

from torch import Tensor

OVER = 16  # 8 is worse by 0.5 to 1 %, three optimizers: docs/records/learning.md
MAX_SHARE = 0.02


class CommonAverage:
    """Of one peer's looks at the common model. Not thread-safe: it belongs to the training thread."""

    def __init__(self, look: Callable[[], Tensor], now: Callable[[], float] = time.monotonic) -> None:
        """`look`: a copy of the common model, flat."""
        self.value: Tensor | None = None
        """None: it was not looked at yet."""
        self.n_looks = 0
        self._look = look
        self._now = now
        self._looked_at_step = 0
        self._not_before = 0.0

    def stepped(self, step: int, local_steps: int) -> None:
        """This peer has made so many steps; a round of it takes `local_steps`."""
        began = self._now()
        if step - self._looked_at_step < local_steps or began < self._not_before:
            return
        self.look()
        self._looked_at_step = step
        ended = self._now()
        self._not_before = ended + (ended - began) / MAX_SHARE

    def look(self) -> None:
        """Take the common model in as it is now."""
        seen = self._look()
        self.n_looks += 1
        if self.value is None:
            self.value = seen
        else:
            self.value.lerp_(seen, min(1.0, OVER / self.n_looks))
