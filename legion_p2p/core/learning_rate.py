"""The learning rate of `legion-peer`, and of the owners of a sharded run."""

import math

from legion_p2p.core.run import InnerSpec


def learning_rate(inner: InnerSpec, own_step: int, run_step: int) -> float:
    """Linear warm-up over this peer's own steps, for its fresh moments; cosine to a tenth over the run's."""
    rate = inner.learning_rate
    if inner.decay_steps:
        done = min(1.0, run_step / inner.decay_steps)
        rate *= 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * done))
    if own_step < inner.warmup_steps:
        rate *= (own_step + 1) / inner.warmup_steps
    return rate
