"""Keeping a process to a share of the machine's processors.

CPU time is paid from an account that grows with time, at the allowed rate, up to BURST_S. Whoever has spent more than it holds
waits until it is settled. So the mean over some seconds keeps to the share, whatever a step costs.
"""

BURST_S = 1.0  # of the allowed CPU time; more makes fans howl between the pauses, less makes pauses of a few milliseconds


class CpuShare:
    """The account of one process."""

    def __init__(self, share: float, n_cpus: int) -> None:
        """`share`: of all `n_cpus` processors, above 0."""
        self.share = share
        self._rate = share * n_cpus
        self._left_s = self._rate * BURST_S
        self._seen: tuple[float, float] | None = None

    def wait_s(self, used_s: float, now: float) -> float:
        """How long to wait before going on. `used_s`: CPU time of the process so far."""
        if self._seen is not None:
            used_before, before = self._seen
            grown = self._left_s + self._rate * (now - before) - (used_s - used_before)
            self._left_s = min(grown, self._rate * BURST_S)
        self._seen = (used_s, now)
        return max(0.0, -self._left_s / self._rate)
