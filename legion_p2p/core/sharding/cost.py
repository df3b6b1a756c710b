"""What a step of a sharded run takes of each member: bytes over the network, and memory.

Of `n` members each owns 1/n of the model and stands by for as much. It pulls the rest twice, for the forward and the backward
pass; it pushes its gradient of what it does not own, and sends the mean of what it owns to the standby. What it sends to others
is on the average what it receives from them.

Gradients as int8 lose so much that each member keeps what its pushes left out (error feedback), in a byte an element. The mean
that an owner sends to its standby has no such memory behind it, which would have to move with the unit: it goes as bf16 then.
"""

from typing import NamedTuple

from legion_p2p.core.sharding.plan import UnitPlan

WITHOUT_FEEDBACK = ("fp32", "bf16")  # gradients lose nothing, or less than the noise in them: a part in 500 of each
STATE_BYTES = 16  # for each parameter held: weight, two moments, and the gradient that is being collected, in fp32
BLOCKS_AT_WORK = 3  # besides as many whose gradients are on their way
MAX_STEP_S = 30.0  # that a step may take for its bytes alone: more is a network that only looks as if it trained


class SentBits(NamedTuple):
    """For each parameter that travels."""

    weights: float
    gradients: float
    means: float


def mean_codec(gradient_codec: str) -> str:
    """What the mean gradient travels as, from an owner to its standby."""
    return gradient_codec if gradient_codec in WITHOUT_FEEDBACK else "bf16"


def step_bytes(numel: int, n_members: int, bits: SentBits) -> float:
    """What a member sends in a step, and receives."""
    if n_members < 2:
        return 0.0
    pulled, pushed = 2 * (n_members - 2) / n_members, (n_members - 1) / n_members
    return numel * (pulled * bits.weights + pushed * bits.gradients + bits.means / n_members) / 8


def held_bytes(plan: UnitPlan, n_members: int, *, has_feedback: bool = False) -> float:
    """What a member holds besides activations; `has_feedback`: what compression left out of its gradients, too."""
    numel = sum(block.numel for block in plan.blocks)
    rest = sum(block.numel for block in plan.blocks if not block.name)
    share = min(1.0, 2 / n_members)
    left_out = numel * (1 - 1 / n_members) if has_feedback else 0.0
    return STATE_BYTES * numel * share + left_out + 4 * (2 * BLOCKS_AT_WORK * plan.largest_block + 2 * rest)


def step_network_s(numel: int, n_members: int, bits: SentBits, bps: float) -> float:
    """Seconds in which a connection that carries `bps` moves what a member sends in a step."""
    return 8 * step_bytes(numel, n_members, bits) / bps
