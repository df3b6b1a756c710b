"""What a run trains, as its specification describes it; and what it would take of a peer."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import torch

from legion_p2p.config import NewRun, Training
from legion_p2p.config.fields import said
from legion_p2p.config.new_run import DEFAULT_DATA, DEFAULT_PRESET, chosen_inner, chosen_rounds, sharded_inner, sharded_rounds
from legion_p2p.core.plan import MAX_SHARD_ELEMENTS, check_fit
from legion_p2p.core.roles import Role
from legion_p2p.core.run import RunSpec
from legion_p2p.core.sharding.cost import held_bytes, step_bytes
from legion_p2p.core.sharding.plan import plan_units
from legion_p2p.errors import CodecError, ConfigError, IncompatibleModelError, UsageError
from legion_p2p.observe import human
from legion_p2p.observe.memory import PROGRAM_BYTES, free_memory
from legion_p2p.tensor import codec
from legion_p2p.train import sizing
from legion_p2p.train.data import windows_at_once
from legion_p2p.train.gpt import GPT, shapes_of
from legion_p2p.train.gpt_config import GPTConfig, preset
from legion_p2p.train.language_model import LanguageModel
from legion_p2p.train.sizing import COPIES_HELD, COPIES_HELPED
from legion_p2p.train.transformers_model import build, load_folder, outline_of
from legion_p2p.train.transformers_source import source_of

COPIES_BUILT = 2  # of the parameters: the model as it is made, and the run's copy of it; most of both goes to other members
PLAIN = Training()
KEPT_PER_LAYER = 17  # numbers for each token and unit of width that a step keeps for its backward pass
HELD_IN_LAYER = 14  # of an evaluation, which keeps one layer at a time
LONGEST_WINDOW = 1024  # of a model of transformers, where nobody says more: some read 10^5 tokens, which few machines train with


class PlannedTraffic(msgspec.Struct, frozen=True):
    """What one round takes of a peer among this many members: the mean over them, and that of the one that owns most shards."""

    n_members: int
    sent_bytes: int
    received_bytes: int
    most_sent_bytes: int
    sent_bytes_per_token: float
    send_s: float | None
    """Over the upload that the job is limited to; None where it is not."""


class Plan(msgspec.Struct, frozen=True):
    """What a job would take, for --dry-run. Bytes of pushes and updates are of all shards once."""

    run: str
    n_params: int
    n_shards: int
    shard_elements: int
    memory_bytes: int
    push_codec: str
    update_codec: str
    push_bytes_per_round: int
    update_bytes_per_round: int
    local_steps: int
    tokens_per_step: int
    traffic: tuple[PlannedTraffic, ...] = ()
    push_codecs: tuple[str, ...] = ()
    """Others that a member may use instead, the densest first."""


class Shape(msgspec.Struct, frozen=True):
    """What is known of a run's model before it is built. Sizes that a model has not said are 0."""

    context: int
    """Tokens in a window of the run."""
    vocab_size: int
    width: int = 0
    n_layer: int = 0


def shape_of(spec: RunSpec) -> Shape:
    """Raises: IncompatibleModelError, if the run has no model that this version can build here."""
    if spec.transformers:
        outline = outline_of(spec.transformers)
        check_fit(outline.params, spec.params)
        largest, vocab_size, width, n_layer = outline.context, outline.vocab_size, outline.width, outline.n_layer
    else:
        config = _config_of(spec)
        largest, vocab_size, width, n_layer = config.context, config.vocab_size, config.width, config.n_layer
    context = spec.inner.context or largest
    if largest and context > largest:
        raise IncompatibleModelError(f"run {spec.name!r} has windows of {context} tokens, and its model reads {largest}")
    if not context:
        raise IncompatibleModelError(f"run {spec.name!r} does not say how long its windows are, and its model has no limit")
    return Shape(context, vocab_size, width, n_layer)


def model_of(spec: RunSpec) -> LanguageModel:
    """The run's model with its first weights, checked against what the run says of its parameters.

    Raises: IncompatibleModelError, if the run has no model that this version can build, or one that is too large for here.
    """
    shape = shape_of(spec)
    check_memory(spec)
    if spec.transformers:
        return replace(build(spec.transformers, spec.seed), context=shape.context)
    gpt = GPT(_config_of(spec), torch.Generator().manual_seed(spec.seed))
    return replace(LanguageModel.of_gpt(gpt), context=shape.context)


def _config_of(spec: RunSpec) -> GPTConfig:
    if spec.model is None:
        raise IncompatibleModelError(f"run {spec.name!r} trains a model of its members' own: join it with legion_p2p.Optimizer")
    try:
        return msgspec.convert(spec.model, GPTConfig)
    except (msgspec.ValidationError, ConfigError) as bad:
        raise IncompatibleModelError(f"run {spec.name!r} has a model that this version cannot build: {bad}") from bad


def check_memory(spec: RunSpec, beside: int = 0) -> None:
    """Before anything large is made. `beside`: bytes that are needed beside the model.

    Raises: IncompatibleModelError, if this machine, container or process has too little.
    """
    buffer_bytes = outline_of(spec.transformers).buffer_bytes if spec.transformers else 0
    copies = COPIES_BUILT if spec.sharding == "full" else COPIES_HELD
    needed = copies * 4 * sum(p.numel for p in spec.params) + buffer_bytes + beside
    free = free_memory()
    if needed > free.n_bytes:
        needs, has = human.bytes_text(needed), human.bytes_text(max(0, free.n_bytes))
        told = f"run {spec.name!r} needs about {needs} of memory, and {has} are free here ({free.bound_by})"
        raise IncompatibleModelError(told)


def described(new_run: NewRun) -> RunSpec:
    """The specification of a run to create, its founder not yet filled in. Raises: ConfigError; IncompatibleModelError."""
    is_sharded = new_run.sharding == "full"
    inner = sharded_inner(new_run.inner) if is_sharded else chosen_inner(new_run.inner, new_run.links)
    model, transformers = None, ""
    if new_run.architecture:
        transformers = source_of(new_run).config
        outline = outline_of(transformers)
        params = outline.params
        if not inner.context:
            inner = msgspec.structs.replace(inner, context=min(outline.context or LONGEST_WINDOW, LONGEST_WINDOW))
    else:
        config = gpt_of(new_run)
        params, model = shapes_of(config), msgspec.to_builtins(config)
    spec = RunSpec(
        name=new_run.name,
        founder="",
        params=params,
        round=sharded_rounds(new_run.rounds) if is_sharded else chosen_rounds(new_run.rounds, new_run.links),
        inner=inner,
        sharding=new_run.sharding,
        model=model,
        transformers=transformers,
        data=new_run.data or DEFAULT_DATA,
        dataset=new_run.dataset,
        tokenizer=new_run.tokenizer,
        seed=new_run.seed,
        admission=new_run.admission,
        admins=new_run.admins,
        admitted=new_run.admitted,
        target_steps=new_run.target_steps,
        target_tokens=new_run.target_tokens,
        target_loss=new_run.target_loss,
    )
    check_codecs(spec)
    spec.plan()
    shape_of(spec)
    return spec


def gpt_of(new_run: NewRun) -> GPTConfig:
    """The built-in model of a new run. Raises: ConfigError."""
    try:
        base = preset(new_run.preset or DEFAULT_PRESET)
    except UsageError as bad:
        raise ConfigError(f"preset: {bad}") from bad
    known = GPTConfig.__dataclass_fields__
    for field in new_run.model:
        if field not in known:
            raise ConfigError(f"model.{field}: nothing of this name can be set; known are {', '.join(known)}")
    try:
        return msgspec.convert({**msgspec.to_builtins(base), **new_run.model}, GPTConfig)
    except msgspec.ValidationError as bad:
        raise ConfigError(f"model: {bad}") from bad


def check_codecs(spec: RunSpec) -> None:
    """Check the codecs of a run that is to be created. Raises: ConfigError, naming the field."""
    for field in spec.round.__struct_fields__:
        if field.endswith(("_codec", "_codecs")):
            given = getattr(spec.round, field)
            for name in (given,) if isinstance(given, str) else given:
                try:
                    if name:
                        codec.get(name)
                except CodecError as bad:
                    raise ConfigError(f"{field}: {bad}") from bad


def check_choices(new_run: NewRun, spec: RunSpec) -> None:
    """Check that a run that is there is the one that was to be created. What was left open may be anything.

    Raises: IncompatibleModelError, naming the first choice that differs.
    """
    wanted = {("rounds", field): value for field, value in said(new_run.rounds).items()}
    if spec.model is not None or spec.transformers:
        wanted |= {("inner", field): value for field, value in said(new_run.inner).items()}
    if new_run.architecture:
        wanted["", "transformers"] = source_of(new_run).config
    elif spec.model is not None and (new_run.preset or new_run.model):
        wanted |= {("model", field): value for field, value in msgspec.to_builtins(gpt_of(new_run)).items()}
    if new_run.data:
        wanted["", "data"] = new_run.data
    wanted |= {("", "sharding"): new_run.sharding}
    wanted |= {("", field): value for field in ("dataset", "tokenizer") if (value := getattr(new_run, field))}
    for (where, field), value in wanted.items():
        part = {"rounds": spec.round, "inner": spec.inner, "model": spec.model, "": spec}[where]
        actual = part.get(field) if isinstance(part, dict) else getattr(part, field)
        if actual != value:
            name = f"{where}.{field}" if where else field
            raise IncompatibleModelError(f"run {spec.name!r} is there already, with {name} {actual!r}; asked for was {value!r}")


def spec_of(new_run: NewRun) -> tuple[RunSpec, LanguageModel]:
    """The specification of a run to create, and its model as it starts.

    Raises: ConfigError; IncompatibleModelError, if the memory does not suffice, or the model cannot be built.
    """
    spec = described(new_run)
    check_memory(spec)
    folder = source_of(new_run).folder if new_run.architecture else None
    if folder is None:
        return spec, model_of(spec)
    return spec, replace(load_folder(spec.transformers, folder), context=shape_of(spec).context)


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


def plan_of(
    spec: RunSpec, crowds: Sequence[int], upload_bps: float | None, role: Role = Role.AUTO, job: Training = PLAIN
) -> Plan:
    """What a run takes of one peer, with each of these numbers of members. Raises: UsageError."""
    if spec.sharding == "full":
        return _sharded_plan(spec, crowds, upload_bps, job)
    plan = spec.plan()
    has_model = spec.model is not None or spec.transformers
    tokens_per_step = spec.inner.batch * shape_of(spec).context if has_model and role.trains else 0
    computed = COPIES_HELD * 4 * plan.numel + activation_bytes(spec, job) if role.trains else COPIES_HELPED * 4 * plan.numel
    traffic = []
    for n_members in crowds:
        sizing.check_members(n_members)
        frames = sizing.frames_of(spec, n_members, spec.round.push_codec, spec.round.update_codec)
        owned = (0.0, 0.0) if role is Role.CLIENT else sizing.shares(plan.n_shards, n_members)[1:]
        mean, most = (sizing.traffic_of(frames, n_members, n, trains=role.trains) for n in owned)
        per_token = mean.sent_bytes / max(1, spec.round.local_steps * tokens_per_step) if role.trains else 0.0
        send_s = None if upload_bps is None else 8 * mean.sent_bytes / upload_bps
        traffic.append(PlannedTraffic(n_members, mean.sent_bytes, mean.received_bytes, most.sent_bytes, per_token, send_s))
    alone = sizing.frames_of(spec, 1, spec.round.push_codec, spec.round.update_codec)
    return Plan(
        run=spec.name,
        n_params=plan.numel,
        n_shards=plan.n_shards,
        shard_elements=min(plan.shard_elements, MAX_SHARD_ELEMENTS),
        memory_bytes=computed + PROGRAM_BYTES,
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
    weights, gradients = (codec.get(name).bits_per_element for name in (spec.round.update_codec, spec.round.push_codec))
    traffic = []
    for n_members in crowds:
        sizing.check_members(n_members)
        moved = round(step_bytes(numel, n_members, weights, gradients))
        send_s = None if upload_bps is None else 8 * moved / upload_bps
        traffic.append(PlannedTraffic(n_members, moved, moved, moved, moved / max(1, tokens_per_step), send_s))
    return Plan(
        run=spec.name,
        n_params=numel,
        n_shards=len(units.units),
        shard_elements=max(unit.numel for unit in units.units),
        memory_bytes=round(held_bytes(units, crowds[0])) + activation_bytes(spec, job) + PROGRAM_BYTES,
        push_codec=spec.round.push_codec,
        update_codec=spec.round.update_codec,
        push_bytes_per_round=round(numel * gradients / 8),
        update_bytes_per_round=round(2 * numel * weights / 8),
        local_steps=1,
        tokens_per_step=tokens_per_step,
        traffic=tuple(traffic),
    )
