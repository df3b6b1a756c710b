"""The share of the shards that this peer offers to own."""

from legion_p2p.config import AUTO_WEIGHT, Weight
from legion_p2p.core.placement import MAX_WEIGHT, SmoothedWeight, weight_of
from legion_p2p.services.ports import Messenger


class OwnWeight:
    """The weight that this peer announces: what the user set, or what its upload carries; at most MAX_WEIGHT."""

    def __init__(self, wanted: Weight, messenger: Messenger) -> None:
        self._fixed = None if wanted == AUTO_WEIGHT else min(float(wanted), MAX_WEIGHT)
        self._messenger = messenger
        self._measured = SmoothedWeight()

    @property
    def value(self) -> float:
        """1 while nothing is measured and the user has set nothing."""
        return self._fixed if self._fixed is not None else self._measured.value or 1.0

    def measure(self) -> None:
        """Once per announcement period: take in what the upload carries now."""
        upload_bps = self._messenger.bandwidth().known_upload_bps
        if upload_bps is not None:
            self._measured.add(weight_of(upload_bps))
