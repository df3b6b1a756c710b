"""The built-in GPT in the names and shapes of `transformers.GPT2LMHeadModel`.

GPT-2's linear layers are stored transposed there (`Conv1D`), and have biases always: a GPT without gets zeros.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict

import msgspec

from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import LegionError
from legion_p2p.train.gpt import GPTConfig

_PARTS = (
    (r"embedding\.weight", "transformer.wte.weight", False),
    (r"position\.weight", "transformer.wpe.weight", False),
    (r"blocks\.(\d+)\.attention_norm\.(weight|bias)", r"transformer.h.\1.ln_1.\2", False),
    (r"blocks\.(\d+)\.attention\.qkv\.(weight|bias)", r"transformer.h.\1.attn.c_attn.\2", True),
    (r"blocks\.(\d+)\.attention\.out\.(weight|bias)", r"transformer.h.\1.attn.c_proj.\2", True),
    (r"blocks\.(\d+)\.mlp_norm\.(weight|bias)", r"transformer.h.\1.ln_2.\2", False),
    (r"blocks\.(\d+)\.mlp\.inner\.(weight|bias)", r"transformer.h.\1.mlp.c_fc.\2", True),
    (r"blocks\.(\d+)\.mlp\.out\.(weight|bias)", r"transformer.h.\1.mlp.c_proj.\2", True),
    (r"norm\.(weight|bias)", r"transformer.ln_f.\1", False),
    (r"head\.weight", "lm_head.weight", False),
)
_BUFFERS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")
"""The causal mask, which old files of GPT-2 carry beside the parameters."""


class Gpt2Param(msgspec.Struct, frozen=True):
    """A parameter there, and the one of the run that it comes from; None: zeros."""

    name: str
    shape: tuple[int, ...]
    source: ParamSpec | None
    transposed: bool = False


def gpt2_layout(spec: RunSpec) -> tuple[GPTConfig, tuple[Gpt2Param, ...]] | None:
    """The model's configuration, and its parameters there: first the run's, in its order, then the biases that it has not.

    None, where the run does not train a GPT of GPT-2's architecture.
    """
    config = _config_of(spec)
    if config is None or config.positions != "learned" or tuple(gpt_params(config)) != spec.params:
        return None
    made = [_renamed(param) for param in spec.params]
    have = {param.name for param in made}
    biased = msgspec.structs.replace
    zeros = [
        biased(param, name=name, shape=param.shape[-1:], source=None, transposed=False)
        for param in made
        if param.name.startswith(("transformer.h.", "transformer.ln_f."))
        and (name := param.name.removesuffix("weight") + "bias") not in have
        and param.name.endswith("weight")
    ]
    return config, (*made, *zeros)


def is_mask(name: str) -> bool:
    """Whether a tensor there is no parameter, but the causal mask."""
    return _BUFFERS.fullmatch(name) is not None


def gpt_params(config: GPTConfig) -> Sequence[ParamSpec]:
    """The built-in GPT's parameters, as a run's specification lists them, without making the model."""
    width = config.width

    def norm(name: str) -> list[ParamSpec]:
        return [ParamSpec(f"{name}.weight", (width,))] + [ParamSpec(f"{name}.bias", (width,))] * config.bias

    def linear(name: str, n_out: int, n_in: int) -> list[ParamSpec]:
        return [ParamSpec(f"{name}.weight", (n_out, n_in))] + [ParamSpec(f"{name}.bias", (n_out,))] * config.bias

    params = [ParamSpec("embedding.weight", (config.vocab_size, width))]
    if config.positions == "learned":
        params.append(ParamSpec("position.weight", (config.context, width)))
    for i in range(config.n_layer):
        params += norm(f"blocks.{i}.attention_norm")
        params += linear(f"blocks.{i}.attention.qkv", 3 * width, width) + linear(f"blocks.{i}.attention.out", width, width)
        params += norm(f"blocks.{i}.mlp_norm")
        params += linear(f"blocks.{i}.mlp.inner", 4 * width, width) + linear(f"blocks.{i}.mlp.out", width, 4 * width)
    params += norm("norm")
    return params if config.tied else [*params, ParamSpec("head.weight", (config.vocab_size, width))]


def model_fields(config: GPTConfig) -> dict[str, int | float | str | bool]:
    """As a run's specification carries it."""
    return asdict(config)


def _config_of(spec: RunSpec) -> GPTConfig | None:
    if spec.model is None:
        return None
    try:
        return msgspec.convert(spec.model, GPTConfig)
    except (msgspec.ValidationError, LegionError, TypeError):  # of another version of the library, or made up
        return None


def _renamed(param: ParamSpec) -> Gpt2Param:
    for pattern, there, is_linear in _PARTS:
        if found := re.fullmatch(pattern, param.name):
            transposed = is_linear and len(param.shape) == 2
            return Gpt2Param(found.expand(there), param.shape[::-1] if transposed else param.shape, param, transposed)
    raise AssertionError(f"{param.name} is no parameter of the built-in GPT")
