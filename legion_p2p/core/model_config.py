"""A model of the library transformers as a run's specification carries it: the JSON of its configuration. Data, never code.

It comes from a stranger, and a library that was written for trusted files builds a model of it. So what could make that library
load or download anything is refused here, and sizes are bounded before anything is built:

    names of code     auto_map, trust_remote_code, attention and other implementations, quantizers, pretrained backbones
    texts             with a slash, a backslash or a colon: they may be paths, addresses or repositories
    whole numbers     above MAX_NUMBER; above MAX_REPEATED where they say how often something is built
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from legion_p2p.errors import DecodeError

MAX_CONFIG_CHARS = 64 << 10  # that of a LLaMA has 1,500, and lists of each layer's kind make some longer
MAX_CONFIG_DEPTH = 8  # nested tables; published configurations have at most 4
MAX_NUMBER = 1 << 25  # the largest tables of published models have 2 * 10^7 entries, the longest contexts 10^7 tokens
MAX_REPEATED = 1 << 14  # layers, experts, heads: the widest mixture that transformers knows has as many experts
MAX_TEXT_CHARS = 200

_MODEL_TYPE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_REPEATED = re.compile(r".*(layers?|experts?|heads?|blocks?|stages?|depths?|modules?)")
_CODE = re.compile(
    r"auto_map|trust_remote_code|custom_pipelines|quantization_config|use_kernels|.*kernel_config"
    r"|.*(attn|experts)_implementation.*|(.*_)?backbone"
)
_IMPLIED = re.compile(r"_name_or_path|_commit_hash|.*(attn|experts)_implementation.*|id2label|label2id|.*dtype")
"""Of no effect in a run, or chosen by each peer for itself."""


def model_config(fields: Mapping[str, Any]) -> str:
    """The configuration as a specification carries it: checked, without what has no effect in a run, in one spelling.

    Raises: DecodeError, naming the field that is not allowed.
    """
    text = json.dumps(_kept(fields), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    read_model_config(text)
    return text


def read_model_config(text: str) -> dict[str, Any]:
    """The fields of a configuration out of a specification. Raises: DecodeError, naming the field that is not allowed."""
    if len(text) > MAX_CONFIG_CHARS:
        raise DecodeError(f"model configuration of {len(text)} characters, at most {MAX_CONFIG_CHARS}")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as bad:
        raise DecodeError(f"model configuration: not JSON: {bad}") from bad
    if not isinstance(fields, dict):
        raise DecodeError(f"model configuration: a JSON {type(fields).__name__}, where a table of fields is expected")
    for path, name, value in _entries(fields, "", 0):
        _check(path, name, value)
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or not _MODEL_TYPE.fullmatch(model_type):
        raise DecodeError(f"model configuration: model_type is {_short(model_type)}; a word such as gpt2 or llama is expected")
    return fields


def _kept(fields: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        if _IMPLIED.fullmatch(str(name)) or (_CODE.fullmatch(str(name)) and not value):
            continue
        if isinstance(value, Mapping):
            kept[str(name)] = _kept(value)
        elif isinstance(value, int) and "theta" in str(name):
            kept[str(name)] = float(value)  # a base of rotary angles: no size, and larger than one may be
        else:
            kept[str(name)] = value
    return kept


def _entries(value: Any, path: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    """Every value that is no table, with its path and the name that it stands under; tables by their names as well."""
    if depth > MAX_CONFIG_DEPTH:
        raise DecodeError(f"model configuration: {path} is nested more than {MAX_CONFIG_DEPTH} deep")
    if isinstance(value, dict):
        for key, inner in value.items():
            where = f"{path}.{key}" if path else key
            yield where, key, None
            yield from _entries(inner, where, depth + 1)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _entries(inner, f"{path}[{i}]", depth + 1)
    else:
        yield path, path.rpartition(".")[2].partition("[")[0], value


def _check(path: str, name: str, value: Any) -> None:
    where = f"model configuration: {path[:100]}"
    if _CODE.fullmatch(name):
        raise DecodeError(f"{where} is not allowed: a run's model is data, and this names code or files to load")
    if isinstance(value, str):
        if len(value) > MAX_TEXT_CHARS:
            raise DecodeError(f"{where} has {len(value)} characters, at most {MAX_TEXT_CHARS}")
        if any(sign in value for sign in "/\\:"):
            raise DecodeError(f"{where} is {_short(value)}: no path, address or name of a repository is allowed")
    elif isinstance(value, int) and not isinstance(value, bool):
        most = MAX_REPEATED if _REPEATED.fullmatch(name) else MAX_NUMBER
        if not -most <= value <= most:
            raise DecodeError(f"{where} is {_short(value)}, at most {most}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:58]}.."
