"""The learning rate of `legion-peer`, and of the owners of a sharded run.

warm-up   rises linearly over this peer's own first steps, because the moments of its optimizer are fresh
between   falls along a cosine to a tenth over the run's steps, where `decay_steps` says so; else it is constant
the end   where it was constant, and it is known when the run ends: falls to 0 over the last `anneal` of the run, as
          1 - sqrt does (Haegele et al. 2024, 2405.18392: as good as a cosine over the whole run, and begun later)
"""

import math

from legion_p2p.core.run import InnerSpec


def learning_rate(inner: InnerSpec, own_step: int, run_step: int, done: float = 0.0) -> float:
    """`done`: the share of the run that is over, 0 to 1; 0 where it is not known when it ends."""
    rate = inner.learning_rate
    if inner.decay_steps:
        decayed = min(1.0, run_step / inner.decay_steps)
        rate *= 0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * decayed))
    else:
        rate *= annealed(inner.anneal, done)
    if own_step < inner.warmup_steps:
        rate *= (own_step + 1) / inner.warmup_steps
    return rate


def annealed(anneal: float, done: float) -> float:
    """The factor on the rate in the last `anneal` of a run, of which the share `done` is over."""
    left = 1.0 - min(1.0, done)
    return 1.0 if left >= anneal else 1.0 - math.sqrt(1.0 - left / anneal)
