"""Models of the library transformers, built from a configuration that a run's specification carries.

The library is asked for its own classes alone (`trust_remote_code` is off, nothing is looked up on a hub), and is watched while
it builds: a configuration with absurd sizes is given up before its tensors are made. First everything is built on the device
"meta", which takes no memory; that tells the parameters, which a peer compares with the run's before it makes any.
"""

import contextlib
import functools
import importlib.util
import logging
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from legion_p2p.core.model_config import model_config, read_model_config
from legion_p2p.core.plan import MAX_PARAMS, MAX_SHARD_ELEMENTS, MAX_SHARDS, ParamSpec
from legion_p2p.errors import ConfigError, IncompatibleModelError, LegionError, UsageError
from legion_p2p.train.language_model import LanguageModel
from legion_p2p.train.parameters import trainable

MAX_ELEMENTS = MAX_SHARDS * MAX_SHARD_ELEMENTS  # of a run
MAX_MODULES = 200_000  # ten for each parameter that a run may have
MISSING = 'it is built by transformers, which is not installed here: pip install "legion_p2p[hf]"'


class _TooLarge(Exception):
    """Raised inside the library while it builds."""


@dataclass(frozen=True)
class Outline:
    """What a model is made of, without its values."""

    params: tuple[ParamSpec, ...]
    buffer_bytes: int
    context: int
    """Tokens that it can read at once; 0: any number."""
    vocab_size: int
    width: int
    n_layer: int


@functools.lru_cache(maxsize=4)
def outline_of(text: str) -> Outline:
    """Build the model of a configuration without its values.

    Raises: IncompatibleModelError, if it cannot be built here, or is larger than a run can be; DecodeError, if it is not allowed.
    """
    config = _config_of(text)
    with torch.device("meta"):
        module = _built(config)
    params = tuple(ParamSpec(name, tuple(p.shape)) for name, p in trainable(module))
    buffer_bytes = sum(b.numel() * b.element_size() for b in module.buffers())
    width, n_layer = (_size_of(config, name) for name in ("hidden_size", "num_hidden_layers"))
    return Outline(params, buffer_bytes, _size_of(config, "max_position_embeddings"), _vocab_of(config, module), width, n_layer)


def build(text: str, seed: int) -> LanguageModel:
    """The model with first weights by `seed`, in fp32. The process's random state stays as it was.

    Raises: as `outline_of`.
    """
    config = _config_of(text)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would seed the GPUs as well
        module = _built(config)
    return _language_model(config, module)


def load_folder(text: str, folder: Path) -> LanguageModel:
    """The model with the weights of a folder's safetensors: this user's own files.

    Raises: IncompatibleModelError, naming a tensor that is missing, unknown or of another shape; as `outline_of`.
    """
    config = _config_of(text)
    library = _library()
    bars = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()
    try:
        with _quiet():
            module, found = library.AutoModelForCausalLM.from_pretrained(
                str(folder), config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True,
                trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, ImportError) as bad:
        raise IncompatibleModelError(f"transformers cannot load {folder}: {_first_line(bad)}") from bad
    finally:
        if bars:
            library.utils.logging.enable_progress_bar()
    for what, told in (
        ("missing_keys", "has no"),
        ("unexpected_keys", "has a tensor that the model of its config.json does not have:"),
        ("mismatched_keys", "has with another shape than its config.json says:"),
    ):
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in found.get(what, ()))
        if names:
            raise IncompatibleModelError(f"{folder} {told} {names[0]} ({len(names)} such tensors)")
    module.train()
    return _language_model(config, module)


def config_text(fields: dict[str, Any]) -> str:
    """A configuration as a run carries it: with every value that the library would fill in, so that all peers build the same.

    Raises: IncompatibleModelError, if the library does not know it; DecodeError, naming what is not allowed in a run.
    """
    config = _config_of(model_config(fields))
    full = config.to_dict()
    full["architectures"] = [_class_name(str(full["model_type"]))]
    return model_config(full)


def require_library() -> None:
    """Raises: ConfigError, if transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(f"a model of the form hf:...: {MISSING}")


def _library() -> types.ModuleType:
    try:
        with _quiet():
            import transformers
    except ImportError as bad:
        raise IncompatibleModelError(f"the run's model: {MISSING}") from bad
    return transformers


def _class_name(model_type: str) -> str:
    """Raises: IncompatibleModelError, if the library has no model of this type that predicts tokens."""
    library = _library()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if name is None:
        raise IncompatibleModelError(
            f"transformers {library.__version__} has no model of type {model_type!r} that predicts tokens; a newer one may have"
        )
    return str(name if isinstance(name, str) else name[0])


def _config_of(text: str) -> Any:
    fields = read_model_config(text)
    model_type = fields.pop("model_type")
    _class_name(model_type)
    try:
        with _quiet():
            return _library().AutoConfig.for_model(model_type, **fields)
    except Exception as bad:  # whatever the library does with values that nobody foresaw
        raise IncompatibleModelError(f"transformers refuses the configuration of this {model_type}: {_first_line(bad)}") from bad


def _built(config: Any) -> nn.Module:
    library = _library()
    try:
        with _quiet(), _watched():
            module: nn.Module = library.AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except _TooLarge as bad:
        raise IncompatibleModelError(f"the {config.model_type} of this configuration has {bad}") from bad
    except LegionError:
        raise
    except Exception as bad:  # as above
        raise IncompatibleModelError(f"transformers cannot build this {config.model_type}: {_first_line(bad)}") from bad
    return module


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Ends building in this thread as soon as the model is larger than a run can be."""
    me = threading.get_ident()
    n_tensors = n_elements = n_modules = 0

    def on_tensor(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        nonlocal n_tensors, n_elements
        if tensor is None or threading.get_ident() != me:
            return
        n_tensors += 1
        n_elements += tensor.numel()
        if n_tensors > MAX_PARAMS:
            raise _TooLarge(f"more than {MAX_PARAMS} tensors, the most that a run can have")
        if n_elements > 2 * MAX_ELEMENTS:  # tied ones may come twice; the exact number is checked with the run's plan
            raise _TooLarge(f"more than {MAX_ELEMENTS:.2g} parameters, the most that a run can have: make it smaller")

    def on_module(_module: nn.Module, _name: str, _child: nn.Module | None) -> None:
        nonlocal n_modules
        if threading.get_ident() == me:
            n_modules += 1
            if n_modules > MAX_MODULES:
                raise _TooLarge(f"more than {MAX_MODULES} parts")

    with contextlib.ExitStack() as hooks:
        for handle in (
            torch_module.register_module_parameter_registration_hook(on_tensor),
            torch_module.register_module_buffer_registration_hook(on_tensor),
            torch_module.register_module_module_registration_hook(on_module),
        ):
            hooks.callback(handle.remove)
        yield


def _language_model(config: Any, module: Any) -> LanguageModel:
    def logits(idx_BT: Tensor) -> Tensor:
        out: Tensor = module(input_ids=idx_BT, use_cache=False).logits
        return out

    def recompute() -> None:
        try:
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except (AttributeError, ValueError) as bad:
            raise UsageError(f"--activation-checkpointing: transformers has none of this {config.model_type}") from bad

    return LanguageModel(module, _size_of(config, "max_position_embeddings"), _vocab_of(config, module), logits, recompute)


def _size_of(config: Any, name: str) -> int:
    """A size by the name that most models give it; 0 where the configuration has none."""
    found = getattr(config, name, None)
    return found if isinstance(found, int) and found > 0 else 0


def _vocab_of(config: Any, module: nn.Module) -> int:
    embedding = getattr(module, "get_input_embeddings", lambda: None)()
    weight = getattr(embedding, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) else int(config.vocab_size)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's remarks on tokens for padding, and the like, which are for people that generate text."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(bad: BaseException) -> str:
    lines = str(bad).strip().splitlines() or [type(bad).__name__]
    text = lines[0] if len(lines) == 1 else " ".join(line.strip() for line in lines[:3])
    return text if len(text) <= 300 else f"{text[:298]}.."
