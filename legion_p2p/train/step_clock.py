"""How long local steps take, and how much of that they wait for the swarm. All times are those of one clock."""

from legion_p2p.core.pace import Ewma

REPORT_EVERY_S = 0.5  # how often the training thread tells the network's what it has done


class StepClock:
    """The times of one training loop."""

    def __init__(self, now: float) -> None:
        self.blocked_s = 0.0
        """Seconds that steps have spent on the swarm instead of training."""
        self._step_s = Ewma(0.1)
        self._started_at = now
        self._last_at: float | None = None
        self._reported_at = 0.0

    @property
    def step_s(self) -> float:
        """Seconds for a step, smoothed; 0 before the second."""
        return self._step_s.value or 0.0

    def stepped(self, began: float, now: float) -> None:
        """A step was made, and from `began` until `now` it was busy with the swarm."""
        self.blocked_s += now - began
        if self._last_at is not None:
            self._step_s.add(max(1e-6, began - self._last_at))
        self._last_at = now

    def paused(self, pause_s: float) -> None:
        """This time passed in a pause: it is part of no step."""
        self._last_at = None
        self._started_at += pause_s

    def elapsed_s(self, now: float) -> float:
        """Since the start, without pauses; more than 0."""
        return max(1e-9, now - self._started_at)

    def blocked_fraction(self, now: float) -> float:
        """Share of the wall time that was spent on the swarm instead of training."""
        return self.blocked_s / self.elapsed_s(now)

    def speed(self, tokens_per_step: int) -> dict[str, float]:
        """Tokens and seconds per step, smoothed."""
        rate = tokens_per_step / self.step_s if self.step_s else 0.0
        return {"tokens_per_s": round(rate, 1), "step_s": round(self.step_s, 6)}

    def report_is_due(self, now: float) -> bool:
        """REPORT_EVERY_S have passed since this was last true."""
        if now - self._reported_at < REPORT_EVERY_S:
            return False
        self._reported_at = now
        return True
