"""Noticing that this machine's clock was set: by a time server, by a person, or after a start with a wrong time.

    the wall clock went as far as the clock that nobody sets   -> nothing happened; a machine that slept looks like that as well
    it went further, or less far, by JUMP_S or more            -> it was set

A clock that a time server slows down or speeds up (at most 0.05 % by NTP) is no jump. Training, rounds and membership go by the
other clock, so nothing has to be done but to say so. Times in logs, quiet hours and the ends of tokens are others from then on.
"""

JUMP_S = 2.0  # some looks come late, and both clocks are read one after the other; people notice nothing below


class ClockWatch:
    """Two clocks of one machine, looked at together again and again."""

    def __init__(self, wall_s: float, running_s: float) -> None:
        """`running_s`: of a clock that nobody sets, and that runs on while the machine sleeps."""
        self._ahead_s = wall_s - running_s

    def look(self, wall_s: float, running_s: float) -> float | None:
        """By how many seconds the clock was set since the last look, forward or, below zero, back; None: it was not."""
        before, self._ahead_s = self._ahead_s, wall_s - running_s
        set_by_s = self._ahead_s - before
        return set_by_s if abs(set_by_s) >= JUMP_S else None
