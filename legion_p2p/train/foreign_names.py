"""What a run's parameters are called elsewhere: the terms in which train/gpt2_names.py and train/llama_names.py say it."""

from collections.abc import Sequence
from dataclasses import asdict

import msgspec

from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import LegionError
from legion_p2p.train.gpt_config import GPTConfig


class ForeignParam(msgspec.Struct, frozen=True):
    """A parameter there, and the one of the run that it comes from; None: zeros."""

    name: str
    shape: tuple[int, ...]
    source: ParamSpec | None
    transposed: bool = False
    rows: tuple[int, int] | None = None
    """It is only these rows of its source; those before and after are the parameters before and after it."""


def gpt_params(config: GPTConfig) -> Sequence[ParamSpec]:
    """The built-in GPT's parameters, as a run's specification lists them, without making the model."""
    width = config.width

    def norm(name: str) -> list[ParamSpec]:
        has_bias = config.bias and config.norm == "layer"
        return [ParamSpec(f"{name}.weight", (width,))] + [ParamSpec(f"{name}.bias", (width,))] * has_bias

    def linear(name: str, n_out: int, n_in: int) -> list[ParamSpec]:
        return [ParamSpec(f"{name}.weight", (n_out, n_in))] + [ParamSpec(f"{name}.bias", (n_out,))] * config.bias

    params = [ParamSpec("embedding.weight", (config.vocab_size, width))]
    if config.positions == "learned":
        params.append(ParamSpec("position.weight", (config.context, width)))
    for i in range(config.n_layer):
        params += norm(f"blocks.{i}.attention_norm")
        params += linear(f"blocks.{i}.attention.qkv", width + 2 * config.kv_width, width)
        params += linear(f"blocks.{i}.attention.out", width, width)
        params += norm(f"blocks.{i}.mlp_norm")
        if config.mlp == "swiglu":
            params += linear(f"blocks.{i}.mlp.gate", config.inner_width, width)
        params += linear(f"blocks.{i}.mlp.inner", config.inner_width, width)
        params += linear(f"blocks.{i}.mlp.out", width, config.inner_width)
    params += norm("norm")
    return params if config.tied else [*params, ParamSpec("head.weight", (config.vocab_size, width))]


def model_fields(config: GPTConfig) -> dict[str, int | float | str | bool]:
    """As a run's specification carries it."""
    return asdict(config)


def config_of(spec: RunSpec) -> GPTConfig | None:
    """The built-in model's configuration; None where a run trains another model, or one that this version does not know."""
    if spec.model is None:
        return None
    try:
        return msgspec.convert(spec.model, GPTConfig)
    except (msgspec.ValidationError, LegionError, TypeError):  # of another version of the library, or made up
        return None
