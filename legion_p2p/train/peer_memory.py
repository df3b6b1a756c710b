"""The memory that a peer takes, as it is told before anything large is made."""

from legion_p2p.config import Training
from legion_p2p.core.roles import Role
from legion_p2p.core.run import RunSpec
from legion_p2p.observe.memory import PROGRAM_BYTES
from legion_p2p.train.batches import windows_at_once
from legion_p2p.train.described import shape_of
from legion_p2p.train.parameter_copies import COPIES_HELD, COPIES_HELPED

PLAIN = Training()
LIBRARY_BYTES = 171_000_000  # that importing transformers takes; measured
KEPT_PER_LAYER = 17  # numbers for each token and unit of width that a step keeps for its backward pass
HELD_IN_LAYER = 14  # of an evaluation, which keeps one layer at a time


def memory_bytes(spec: RunSpec, role: Role = Role.AUTO, job: Training = PLAIN) -> int:
    """All that a peer of a run takes whose members hold the model whole; it trains on the CPU, in fp32."""
    numel = spec.plan().numel
    if role.trains:
        return COPIES_HELD * 4 * numel + activation_bytes(spec, job) + kept_bytes(spec, job) + program_bytes(spec)
    return COPIES_HELPED * 4 * numel + program_bytes(spec)


def program_bytes(spec: RunSpec) -> int:
    """What a peer takes beside its model and what it computes."""
    return PROGRAM_BYTES + (LIBRARY_BYTES if spec.transformers else 0)


def activation_bytes(spec: RunSpec, job: Training = PLAIN) -> int:
    """What training steps and evaluations hold for a while, about: of a model like the built-in GPT in fp32.

    They add up, although one comes after the other: the allocator gives little of it back (measured).
    """
    if spec.model is None and not spec.transformers:
        return 0
    shape = shape_of(spec)
    kept = KEPT_PER_LAYER * shape.n_layer
    if job.activation_checkpointing:
        kept = KEPT_PER_LAYER + shape.n_layer  # of the layer that is computed again, and what lies between all of them
    n_windows = -(-spec.inner.batch // job.accumulate)
    trained = n_windows * shape.context * (kept * shape.width + 2 * shape.vocab_size)
    n_windows = windows_at_once(shape.context)
    evaluated = n_windows * shape.context * (HELD_IN_LAYER * shape.width + 3 * shape.vocab_size)
    return 4 * (trained + evaluated)


def kept_bytes(spec: RunSpec, job: Training) -> int:
    """What `Training.average` holds, the average and a copy of the common model while it is taken in; and what
    `Training.keep_best` does, one copy."""
    return (2 * job.average + job.keep_best) * 4 * spec.plan().numel
