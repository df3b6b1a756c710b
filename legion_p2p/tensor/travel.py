"""How far a copy goes by its own training between two syncs with other regions.

No sync may move it much further than that: see `tensor.sync_step.reach`.
"""

from torch import Tensor

from legion_p2p.tensor.sync_step import norm

FADING = 0.5  # of the distance, from one sync to the next: one quiet interval does not say that the copy stands still


class Travel:
    """The distance of one copy, as a norm."""

    def __init__(self, every: int) -> None:
        """`every`: versions between two syncs."""
        self.every = every
        self._from: Tensor | None = None  # where the copy was left, and at which version
        self._version = 0
        self._recent = 0.0

    def distance(self, own: Tensor, version: int) -> float:
        """How far the copy, which is at `own` now, goes by itself between two syncs."""
        if self._from is not None:
            times = max(1.0, (version - self._version) / (2 * self.every))  # a sync without an answer holds up `look`
            self._recent = max(self._recent, norm(own - self._from) / times)
        return self._recent

    def left(self, own: Tensor, after: Tensor, version: int) -> None:
        """A sync has moved the copy from `own` to `after`."""
        self.distance(own, version)
        self._recent *= FADING
        self._from, self._version = after, version

    def is_out_of_date(self, version: int) -> bool:
        """There has been no sync for long: call `look`."""
        return self._from is None or version >= self._version + 2 * self.every

    def look(self, own: Tensor, version: int) -> None:
        """Measure again from here on."""
        self.left(own, own, version)
