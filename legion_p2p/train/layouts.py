"""In which form a run's model is exported, so that others load it: names of parameters, and a config.json."""

import json
from typing import Any

import msgspec

from legion_p2p.core.run import RunSpec
from legion_p2p.train.foreign_names import ForeignParam
from legion_p2p.train.gpt2_config import gpt2_config
from legion_p2p.train.gpt2_names import gpt2_layout
from legion_p2p.train.llama_config import llama_config
from legion_p2p.train.llama_names import llama_layout


class Layout(msgspec.Struct, frozen=True):
    """A form of a model."""

    names: str
    """Whose names the parameters have: `run`, `gpt2`, `llama`, or `transformers` where the run itself trains such a model."""
    params: tuple[ForeignParam, ...]
    config: dict[str, Any] | None = None
    """What transformers reads as config.json; None where it does not know the model."""


def own_layout(spec: RunSpec) -> Layout:
    """The run's own names and shapes."""
    return Layout("run", tuple(ForeignParam(p.name, p.shape, p) for p in spec.params))


def layout_of(spec: RunSpec) -> Layout:
    """The one that transformers loads, or the run's own where there is none."""
    if spec.transformers:
        config = {**json.loads(spec.transformers), "dtype": "float32", "torch_dtype": "float32"}
        return Layout("transformers", own_layout(spec).params, config)
    if (gpt2 := gpt2_layout(spec)) is not None:
        return Layout("gpt2", gpt2[1], gpt2_config(gpt2[0]))
    if (llama := llama_layout(spec)) is not None:
        return Layout("llama", llama[1], llama_config(llama[0]))
    return own_layout(spec)
