"""What a step of a sharded run takes of each member: bytes over the network, and memory.

Of `n` members each owns 1/n of the model and stands by for as much. It pulls the rest twice, for the forward and the backward
pass; it pushes its gradient of what it does not own, and sends the mean of what it owns to the standby. What it sends to others
is on the average what it receives from them.
"""

from legion_p2p.core.sharding.plan import UnitPlan

STATE_BYTES = 16  # for each parameter held: weight, two moments, and the gradient that is being collected, in fp32
BLOCKS_AT_WORK = 3  # besides as many whose gradients are on their way
MAX_STEP_S = 30.0  # that a step may take for its bytes alone: more is a network that only looks as if it trained


def step_bytes(numel: int, n_members: int, weight_bits: float, gradient_bits: float) -> float:
    """What a member sends in a step, and receives."""
    if n_members < 2:
        return 0.0
    return numel * (2 * (n_members - 2) / n_members * weight_bits + gradient_bits) / 8


def held_bytes(plan: UnitPlan, n_members: int) -> float:
    """What a member holds besides activations."""
    numel = sum(block.numel for block in plan.blocks)
    rest = sum(block.numel for block in plan.blocks if not block.name)
    share = min(1.0, 2 / n_members)
    return STATE_BYTES * numel * share + 4 * (2 * BLOCKS_AT_WORK * plan.largest_block + 2 * rest)


def step_network_s(numel: int, n_members: int, bits: tuple[float, float], bps: float) -> float:
    """Seconds in which a connection that carries `bps` moves what a member sends in a step; `bits`: of weights, of gradients."""
    return 8 * step_bytes(numel, n_members, *bits) / bps
