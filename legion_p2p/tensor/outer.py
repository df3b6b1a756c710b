"""Outer optimizers: what the owner of a shard does with the averaged change of a round.

    average            step = lr * A                                        plain averaging where lr is 1
    sgd                m = mu * m + A;   step = lr * m
    nesterov           m = mu * m + A;   step = lr * (A + mu * m)           DiLoCo (2311.08105): lr .7, mu .9
    delayed-nesterov   step = lr * (A + mu * m), and every `delay` rounds   Liu et al. (2401.09135), c = 1/N
                       m = mu * m + mean of the last `delay` A

A is `reference - mean of the members`, so a step is subtracted. The delayed rule is for rounds that late pushes join: each
counts once, and only their mean over several rounds gains momentum.
"""

from dataclasses import dataclass

from torch import Tensor

from legion_p2p.errors import UsageError

RULES = ("average", "sgd", "nesterov", "delayed-nesterov")


@dataclass(frozen=True, eq=False)
class OuterState:
    """What a rule remembers of earlier rounds: 1-D fp32 of the shard's length. None stands for zeros."""

    momentum: Tensor | None = None
    recent: Tensor | None = None
    """Sum of the changes that are not in the momentum yet."""
    n_recent: int = 0


def outer_step(
    rule: str, change: Tensor, state: OuterState, *, lr: float, momentum: float = 0.9, delay: int = 4
) -> tuple[Tensor, OuterState]:
    """The step that `rule` makes of an averaged `change` (1-D fp32), and its new state. Neither input is changed.

    Raises: UsageError, if there is no such rule.
    """
    if rule == "average":
        return (change if lr == 1.0 else change * lr), state
    if rule not in RULES:
        raise UsageError(f"outer optimizer {rule!r}, known are {', '.join(RULES)}")
    if rule == "delayed-nesterov":
        m = state.momentum
        step = (change if m is None else change + momentum * m) * lr
        recent = change if state.recent is None else state.recent + change
        if state.n_recent + 1 < delay:
            return step, OuterState(m, recent, state.n_recent + 1)
        mean = recent / (state.n_recent + 1)
        return step, OuterState(mean if m is None else momentum * m + mean)
    m = change if state.momentum is None else momentum * state.momentum + change
    step = m if rule == "sgd" else change + momentum * m
    return step * lr, OuterState(m)


def carried_on(state: OuterState, before: OuterState, rounds: int, *, momentum: float = 0.9) -> OuterState:
    """`state` as if it had begun with `before`, `rounds` rounds ago, instead of zeros: what rules remember is linear in that."""
    m = before.momentum if rounds == 0 or before.momentum is None else before.momentum * momentum**rounds
    return OuterState(_sum(m, state.momentum), _sum(before.recent, state.recent), before.n_recent + state.n_recent)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
