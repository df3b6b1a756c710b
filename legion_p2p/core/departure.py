"""What people are told while a peer hands over what only it has: how much is left, and for how long.

    the hand-over takes longer than NOTICE_AFTER_S -> a first notice
    it goes on                                     -> another one every NOTICE_EVERY_S

The time that remains follows from the bytes that are left and the rate of this peer's upload. Where that rate is not known, it is
measured by how quickly bytes have gone out since the first notice. Between two notices without progress the time counts down.
"""

NOTICE_AFTER_S = 1.0  # most hand-overs take less: nobody has to hear of them
NOTICE_EVERY_S = 3.0


class HandOverNotices:
    """The notices of one hand-over."""

    def __init__(self, now: float) -> None:
        self.next_at = now + NOTICE_AFTER_S
        """When the next notice is due."""
        self._first: tuple[int, float] | None = None  # bytes that were left at the first notice, and when that was
        self._ends_at: float | None = None
        self._seen_bytes = -1

    def remaining_s(self, left_bytes: int, upload_bps: float | None, now: float) -> float | None:
        """A notice is given now: how long the hand-over will still take. None: not known."""
        self.next_at = now + NOTICE_EVERY_S
        rate_bps = upload_bps or self._measured_bps(left_bytes, now)
        if rate_bps and (left_bytes != self._seen_bytes or self._ends_at is None):
            self._ends_at, self._seen_bytes = now + 8 * left_bytes / rate_bps, left_bytes
        return None if self._ends_at is None else max(0.0, self._ends_at - now)

    def _measured_bps(self, left_bytes: int, now: float) -> float:
        if self._first is None:
            self._first = (left_bytes, now)
        n_bytes, since = self._first
        return 8 * (n_bytes - left_bytes) / (now - since) if now > since else 0.0
