"""The limits that one key lowers and another raises: steps that people name, from a trickle to none."""

STEPS_BPS = (256e3, 512e3, 1e6, 2e6, 5e6, 10e6, 20e6, 50e6, 100e6, 200e6, 500e6)


def lower_step(limit_bps: float | None, reached_bps: float | None) -> float:
    """The next lower limit. Without a limit, the first one below what sending has lately reached, where that is known."""
    above = limit_bps or reached_bps or float("inf")
    return max((step for step in STEPS_BPS if step < above), default=STEPS_BPS[0])


def higher_step(limit_bps: float | None) -> float | None:
    """The next higher limit; None: no limit."""
    return None if limit_bps is None else min((step for step in STEPS_BPS if step > limit_bps), default=None)
