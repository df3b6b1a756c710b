"""The built-in GPT in the names and shapes of `transformers.GPT2LMHeadModel`.

GPT-2's linear layers are stored transposed there (`Conv1D`), and have biases always: a GPT without gets zeros.
"""

import re

import msgspec

from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.train.foreign_names import ForeignParam, config_of, gpt_params
from legion_p2p.train.gpt_config import GPTConfig

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


def gpt2_layout(spec: RunSpec) -> tuple[GPTConfig, tuple[ForeignParam, ...]] | None:
    """The model's configuration, and its parameters there: first the run's, in its order, then the biases that it has not.

    None, where the run does not train a GPT of GPT-2's architecture.
    """
    config = config_of(spec)
    if config is None or not _is_gpt2(config) or tuple(gpt_params(config)) != spec.params:
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


def _is_gpt2(config: GPTConfig) -> bool:
    own = (config.positions, config.norm, config.norm_eps, config.mlp, config.inner_width, config.kv_heads)
    return own == ("learned", "layer", 1e-5, "gelu", 4 * config.width, config.n_head)


def _renamed(param: ParamSpec) -> ForeignParam:
    for pattern, there, is_linear in _PARTS:
        if found := re.fullmatch(pattern, param.name):
            transposed = is_linear and len(param.shape) == 2
            return ForeignParam(found.expand(there), param.shape[::-1] if transposed else param.shape, param, transposed)
    raise AssertionError(f"{param.name} is no parameter of the built-in GPT")
