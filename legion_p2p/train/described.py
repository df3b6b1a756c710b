"""What a run trains, as its specification describes it; and what it would take of a peer."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import torch

from legion_p2p.config import NewRun
from legion_p2p.config.fields import said
from legion_p2p.config.new_run import DEFAULT_DATA, DEFAULT_PRESET, chosen_inner, chosen_rounds, sharded_inner, sharded_rounds
from legion_p2p.core.plan import ParamSpec, check_fit
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import InnerSpec, RunSpec
from legion_p2p.errors import CodecError, ConfigError, IncompatibleModelError, UsageError
from legion_p2p.observe import human
from legion_p2p.observe.memory import free_memory
from legion_p2p.tensor import codec
from legion_p2p.train.gpt import GPT, shapes_of
from legion_p2p.train.gpt_config import GPTConfig, preset
from legion_p2p.train.language_model import LanguageModel
from legion_p2p.train.origin import origin_of, with_origin
from legion_p2p.train.parameter_copies import COPIES_BUILT, COPIES_HELD
from legion_p2p.train.parameters import trainable
from legion_p2p.train.transformers_model import build, load_folder, outline_of
from legion_p2p.train.transformers_source import source_of

LONGEST_WINDOW = 1024  # of a model of transformers, where nobody says more: some read 10^5 tokens, which few machines train with


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


def specified(new_run: NewRun, params: tuple[ParamSpec, ...], rounds: RoundSpec, inner: InnerSpec) -> RunSpec:
    """The specification of a run to create around these parameters, its creator not yet filled in. Raises: ConfigError."""
    spec = RunSpec(
        name=new_run.name,
        creator="",
        params=params,
        round=rounds,
        inner=inner,
        sharding=new_run.sharding,
        data=new_run.data,
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
    return spec


def described(new_run: NewRun, origin: RunSpec | None = None) -> RunSpec:
    """The specification of a run to create, its creator not yet filled in; `origin`: that of the run that it goes on from.

    Raises: ConfigError; IncompatibleModelError.
    """
    is_sharded = new_run.sharding == "full"
    inner = sharded_inner(new_run.inner) if is_sharded else chosen_inner(new_run.inner, new_run.links)
    model, transformers = None, ""
    if origin is not None:
        new_run = with_origin(new_run, origin)
        params, model, transformers = origin.params, origin.model, origin.transformers
        inner = inner if inner.context else msgspec.structs.replace(inner, context=origin.inner.context)
    elif new_run.architecture:
        transformers = source_of(new_run).config
        outline = outline_of(transformers)
        params = outline.params
        if not inner.context:
            inner = msgspec.structs.replace(inner, context=min(outline.context or LONGEST_WINDOW, LONGEST_WINDOW))
    else:
        config = gpt_of(new_run)
        params, model = shapes_of(config), msgspec.to_builtins(config)
    rounds = sharded_rounds(new_run.rounds) if is_sharded else chosen_rounds(new_run.rounds, new_run.links)
    spec = specified(new_run, params, rounds, inner)
    spec = msgspec.structs.replace(spec, model=model, transformers=transformers, data=new_run.data or DEFAULT_DATA)
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


def spec_of(new_run: NewRun, stores: Sequence[str] = ()) -> tuple[RunSpec, LanguageModel]:
    """The specification of a run to create, and its model as it starts. `stores`: where to look for a checkpoint to start from.

    Raises: ConfigError; IncompatibleModelError, if there is too little memory, or the model cannot be built; StoreError.
    """
    origin = origin_of(new_run, stores)
    spec = described(new_run, origin.spec if origin else None)
    check_memory(spec)
    if origin is not None:
        model = model_of(spec)
        origin.fill(trainable(model.module))
        return spec, model
    folder = source_of(new_run).folder if new_run.architecture else None
    if folder is None:
        return spec, model_of(spec)
    return spec, replace(load_folder(spec.transformers, folder), context=shape_of(spec).context)
