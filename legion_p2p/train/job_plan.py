"""What a job would take of a peer, for `legion-peer --dry-run`."""

from collections.abc import Sequence

import msgspec

from legion_p2p.config import Training
from legion_p2p.core.plan import MAX_SHARD_ELEMENTS
from legion_p2p.core.roles import Role
from legion_p2p.core.run import RunSpec
from legion_p2p.core.sharding.cost import MAX_STEP_S, SentBits, held_bytes, mean_codec, step_bytes
from legion_p2p.core.sharding.plan import plan_units
from legion_p2p.tensor import codec
from legion_p2p.train.described import shape_of
from legion_p2p.train.peer_memory import PLAIN, activation_bytes, memory_bytes, program_bytes
from legion_p2p.train.round_traffic import frames_of, traffic_of
from legion_p2p.train.sizing import check_members, shares


class PlannedTraffic(msgspec.Struct, frozen=True):
    """What one round takes of a peer among this many members: the mean over them, and that of the one that owns most shards."""

    n_members: int
    sent_bytes: int
    received_bytes: int
    most_sent_bytes: int
    sent_bytes_per_token: float
    send_s: float | None
    """Over the upload that the job is limited to; None where it is not."""
    least_bps: float | None = None
    """What a connection must carry, where the run is sharded: see `core.sharding.cost`; None: it is not."""


class Plan(msgspec.Struct, frozen=True):
    """What a job would take, for --dry-run. Bytes of pushes and updates are of all shards once."""

    run: str
    n_params: int
    n_shards: int
    shard_elements: int
    memory_bytes: int
    program_bytes: int
    """Of that: the program itself."""
    push_codec: str
    update_codec: str
    push_bytes_per_round: int
    update_bytes_per_round: int
    local_steps: int
    tokens_per_step: int
    traffic: tuple[PlannedTraffic, ...] = ()
    push_codecs: tuple[str, ...] = ()
    """Others that a member may use instead, the densest first."""


def plan_of(
    spec: RunSpec, crowds: Sequence[int], upload_bps: float | None, role: Role = Role.AUTO, job: Training = PLAIN
) -> Plan:
    """What a run takes of one peer, with each of these numbers of members. Raises: UsageError."""
    if spec.sharding == "full":
        return _sharded_plan(spec, crowds, upload_bps, job)
    plan = spec.plan()
    has_model = spec.model is not None or spec.transformers
    tokens_per_step = spec.inner.batch * shape_of(spec).context if has_model and role.trains else 0
    traffic = []
    for n_members in crowds:
        check_members(n_members)
        frames = frames_of(spec, n_members, spec.round.push_codec, spec.round.update_codec)
        owned = (0.0, 0.0) if role is Role.CLIENT else shares(plan.n_shards, n_members)[1:]
        mean, most = (traffic_of(frames, n_members, n, trains=role.trains) for n in owned)
        per_token = mean.sent_bytes / max(1, spec.round.local_steps * tokens_per_step) if role.trains else 0.0
        send_s = None if upload_bps is None else 8 * mean.sent_bytes / upload_bps
        traffic.append(PlannedTraffic(n_members, mean.sent_bytes, mean.received_bytes, most.sent_bytes, per_token, send_s))
    alone = frames_of(spec, 1, spec.round.push_codec, spec.round.update_codec)
    return Plan(
        run=spec.name,
        n_params=plan.numel,
        n_shards=plan.n_shards,
        shard_elements=min(plan.shard_elements, MAX_SHARD_ELEMENTS),
        memory_bytes=memory_bytes(spec, role, job),
        program_bytes=program_bytes(spec),
        push_codec=spec.round.push_codec,
        push_codecs=spec.round.push_codecs,
        update_codec=spec.round.update_codec,
        push_bytes_per_round=alone.pushes,
        update_bytes_per_round=alone.updates,
        local_steps=spec.round.local_steps,
        tokens_per_step=tokens_per_step,
        traffic=tuple(traffic),
    )


def _sharded_plan(spec: RunSpec, crowds: Sequence[int], upload_bps: float | None, job: Training) -> Plan:
    """Of a sharded run: a round is a step, and `memory_bytes` is what a member holds in the first of the crowds."""
    units = plan_units(spec.params)
    numel = spec.plan().numel
    has_model = spec.model is not None or spec.transformers
    tokens_per_step = spec.inner.batch * shape_of(spec).context if has_model else 0
    names = spec.round.update_codec, spec.round.push_codec, mean_codec(spec.round.push_codec)
    bits = SentBits(*(codec.get(name).bits_per_element for name in names))
    has_feedback = names[1] != names[2]
    traffic = []
    for n_members in crowds:
        check_members(n_members)
        moved = round(step_bytes(numel, n_members, bits))
        send_s = None if upload_bps is None else 8 * moved / upload_bps
        per_token, least_bps = moved / max(1, tokens_per_step), 8 * moved / MAX_STEP_S
        traffic.append(PlannedTraffic(n_members, moved, moved, moved, per_token, send_s, least_bps))
    return Plan(
        run=spec.name,
        n_params=numel,
        n_shards=len(units.units),
        shard_elements=max(unit.numel for unit in units.units),
        memory_bytes=round(held_bytes(units, crowds[0], has_feedback=has_feedback))
        + activation_bytes(spec, job)
        + program_bytes(spec),
        program_bytes=program_bytes(spec),
        push_codec=spec.round.push_codec,
        update_codec=spec.round.update_codec,
        push_bytes_per_round=round(numel * bits.gradients / 8),
        update_bytes_per_round=round(2 * numel * bits.weights / 8),
        local_steps=1,
        tokens_per_step=tokens_per_step,
        traffic=tuple(traffic),
    )
