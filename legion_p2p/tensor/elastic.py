"""Elastic averaging (EASGD): two copies pull at each other, and how hard they may.

Zhang, Choromanska and LeCun, "Deep learning with elastic averaging SGD", NIPS 2015. Here without a center between two of a pair:
both move by the same amount in opposite directions, so their mean stays where it is, to rounding. The step itself is in
tensor/sync_step.py.
"""

import math

from legion_p2p.errors import UsageError


def pairwise_bound(staleness: int, curvature: float = 0.0) -> float:
    """The moving rate below which two copies that pull at each other come together, for a difference `staleness` exchanges old.

    `curvature`: learning rate times curvature of the loss, of all local steps between two exchanges together, 0 to 1; training
    alone then keeps 1 - curvature of the difference. The difference e of the two follows
    e' = (1 - curvature) e - 2 alpha e[staleness ago]. With a fresh one it shrinks for alpha < 1 - curvature / 2. With an old one
    it does for alpha < sin(pi / (4 staleness + 2)), whatever the curvature (Levin and May 1976, for curvature 0: the worst).
    """
    if staleness < 0 or not 0 <= curvature <= 1:
        raise UsageError(f"staleness {staleness} and curvature {curvature}: at least 0, and between 0 and 1")
    return 1 - curvature / 2 if staleness == 0 else math.sin(math.pi / (4 * staleness + 2))


def center_bound(n_copies: int, curvature: float) -> float:
    """The same with a center variable that `n_copies` pull at in turn, for beta = n_copies * alpha and fresh differences.

    All update at once: the center by beta times the mean difference, each copy by alpha. For one copy it is the paper's
    (4 - 2 eta h) / (4 - eta h), section 3.1. `curvature`: as above, 0 to 2.
    """
    if n_copies < 1 or not 0 <= curvature <= 2:
        raise UsageError(f"{n_copies} copies and curvature {curvature}: at least 1, and between 0 and 2")
    return (4 - 2 * curvature) / (2 - curvature + 2 / n_copies)
