"""What a peer sends and receives by its messenger, and how fast that proves to be."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.contact import Bandwidth, Traffic
from legion_p2p.core.identity import PeerId
from legion_p2p.core.rate_estimator import MIN_TRANSFER_BYTES, RateEstimator

MAX_RATES = 512  # peers whose rate is kept: some more than a host has connections


@dataclass
class Upload:
    """A body on its way. Whoever sends it says whether it has arrived."""

    has_arrived: bool = False


class Counters:
    """The counters that the two halves of a messenger share."""

    def __init__(self, limits_bps: Callable[[], tuple[float, float]] | None) -> None:
        """`limits_bps`: what limits upload and download now; None: nothing does."""
        self._limits_bps = limits_bps
        self._upload = RateEstimator(best=True)
        self._download = RateEstimator(best=False)
        self._by_peer: BoundedMap[PeerId, tuple[RateEstimator, RateEstimator]] = BoundedMap(MAX_RATES)
        self._n_sent = 0
        self._n_received = 0

    def sent(self, n_bytes: int) -> None:
        """These bytes were written to some stream."""
        self._n_sent += n_bytes

    def received(self, n_bytes: int) -> None:
        """These bytes were read from some stream."""
        self._n_received += n_bytes
        if self._download.is_busy:
            self._download.moved(n_bytes, trio.current_time())

    def traffic(self) -> Traffic:
        return Traffic(sent_bytes=self._n_sent, received_bytes=self._n_received)

    @property
    def is_busy(self) -> bool:
        """A transfer of some size is under way, in either direction."""
        return self._upload.is_busy or self._download.is_busy

    def bandwidth(self) -> Bandwidth:
        now = trio.current_time()
        limits = (math.inf, math.inf) if self._limits_bps is None else self._limits_bps()
        up_bps, down_bps = (None if limit == math.inf else limit for limit in limits)
        return Bandwidth(self._upload.rate_bps(now), self._download.rate_bps(now), up_bps, down_bps)

    def rate_bps(self, peer: PeerId) -> float | None:
        """What transfers to or from a peer have lately reached, in the faster direction; None: not measured."""
        rates = [rate.rate_bps(trio.current_time()) for rate in self._by_peer.get(peer, ())]
        return max((bps for bps in rates if bps is not None), default=None)

    def _rates(self, peer: PeerId) -> tuple[RateEstimator, RateEstimator]:
        """Of sending to a peer, and of receiving."""
        rates = self._by_peer.setdefault(peer, (RateEstimator(best=True), RateEstimator(best=False)))
        self._by_peer.touch(peer)
        return rates

    @contextmanager
    def sending(self, peer: PeerId, lane: str, n_bytes: int, rtt_s: Callable[[], float | None]) -> Iterator[Upload]:
        """A body of this size is sent and confirmed; the confirmation takes one round trip more, while nothing moves."""
        upload = Upload()
        if lane != "bulk" or n_bytes < MIN_TRANSFER_BYTES:
            yield upload
            return
        began = trio.current_time()
        both = (self._upload, self._rates(peer)[0])
        for rate in both:
            rate.begin(began)
        try:
            yield upload
        finally:
            now = trio.current_time()
            waited_s = rtt_s() or 0.0
            for rate in both:
                if upload.has_arrived:
                    rate.moved(n_bytes, now)
                rate.end(now, began if upload.has_arrived else None, waited_s)

    @contextmanager
    def receiving(self, peer: PeerId, lane: str, n_bytes: int) -> Iterator[None]:
        """A body of this size is being read."""
        if lane != "bulk" or n_bytes < MIN_TRANSFER_BYTES:
            yield
            return
        began = trio.current_time()
        theirs = self._rates(peer)[1]
        self._download.begin(began)
        theirs.begin(began)
        has_come = False
        try:
            yield
            has_come = True
        finally:
            now = trio.current_time()
            self._download.end(now, began)
            if has_come:
                theirs.moved(n_bytes, now)
            theirs.end(now, began if has_come else None)
