"""Checkpoints as the files that others read: safetensors (with a config.json, where transformers knows the model), and torch's
distributed checkpoints, which load into any number of ranks. The way back is train/imports.py.

Written parameter by parameter, so that a model may be larger than memory, and whole or not at all.
"""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from legion_p2p.core.plan import ParamSpec
from legion_p2p.errors import StoreError, UsageError
from legion_p2p.files.paths import shown, user_path
from legion_p2p.files.writing import make_folder, replacing, take_room, telling
from legion_p2p.train.checkpoint import Checkpoint, Progress, no_progress
from legion_p2p.train.companions import write_companions
from legion_p2p.train.foreign_names import ForeignParam
from legion_p2p.train.layouts import layout_of, own_layout
from legion_p2p.train.safetensors_file import write_safetensors
from legion_p2p.train.side_file import DCP_INDEX, WEIGHTS, side_of, write_side

FORMS = {"gpt2": "GPT-2", "llama": "LLaMA", "transformers": "model of transformers"}
"""What `names` may be, beside `auto` and `run`."""


def export_safetensors(
    checkpoint: Checkpoint,
    folder: str | os.PathLike[str],
    names: str = "auto",
    progress: Progress = no_progress,
    *,
    tokenizer: bytes = b"",
) -> str:
    """Write model.safetensors, legion.json, and config.json where transformers knows the model, beside `tokenizer`, if given.

    `names`: `run` keeps the run's names and shapes; `gpt2` and `llama` take those of transformers; `transformers` are the run's
    own, where it trains a model of that library; `auto` takes these where the run trains such a model. Returns which it was.

    Raises: UsageError, if the model is no GPT-2 or LLaMA; MissingBlockError; DecodeError; StoreError.
    """
    layout = own_layout(checkpoint.spec) if names == "run" else layout_of(checkpoint.spec)
    if names not in ("auto", "run", layout.names):
        raise UsageError(f"the run {checkpoint.spec.name} does not train a {FORMS[names]}: its model cannot have such names")
    folder = _folder(folder, DCP_INDEX)
    with replacing(folder / WEIGHTS) as file:
        write_safetensors(file, [(p.name, p.shape) for p in layout.params], _values(checkpoint, layout.params, progress))
        if layout.names != "run":
            write_companions(folder, checkpoint.spec, tokenizer)
        write_side(folder, side_of(checkpoint, layout.names))
    return layout.names


def export_dcp(checkpoint: Checkpoint, folder: str | os.PathLike[str], progress: Progress = no_progress) -> None:
    """Write a torch distributed checkpoint of {parameter name: tensor}, and legion.json.

    Raises: MissingBlockError; DecodeError; StoreError.
    """
    folder = _folder(folder, WEIGHTS)
    with telling(folder), tempfile.TemporaryDirectory(prefix=".legion-", suffix=".part", dir=folder) as made:
        written = Path(made, "dcp")
        with _mapped(Path(made, "flat"), checkpoint.plan.numel) as flat:
            at = 0
            for shard in checkpoint.shards(progress):
                flat[at : at + len(shard)] = shard
                at += len(shard)
            _save_dcp(flat, checkpoint.spec.params, written)
        write_side(folder, side_of(checkpoint, "run"))
        for path in sorted(written.iterdir(), reverse=True):  # the index last: with it the checkpoint is there
            os.replace(path, folder / path.name)


@contextlib.contextmanager
def _mapped(path: Path, numel: int) -> Iterator[Tensor]:
    """fp32 elements backed by a file: torch writes one tensor at a time, and the system decides what of it is in memory.

    The room is taken before the file is mapped. A disk that turned out to be full later would end the process with SIGBUS.
    """
    with open(path, "wb") as file:
        take_room(file, 4 * numel)
    yield torch.from_file(str(path), shared=True, size=numel, dtype=torch.float32, device="cpu")


def _save_dcp(flat: Tensor, params: Sequence[ParamSpec], folder: Path) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save

    views = zip(params, torch.split(flat, [p.numel for p in params]), strict=True)
    try:
        with warnings.catch_warnings(action="ignore"):  # that there is one process only
            save({p.name: view.view(p.shape) for p, view in views}, checkpoint_id=folder, no_dist=True)
    except CheckpointException as failed:  # what happened is inside it, once for every rank
        for cause, _ in failed.failures.values():
            if isinstance(cause, OSError):
                raise cause from failed
        raise StoreError(f"torch cannot write a distributed checkpoint to {shown(folder)}: {failed}") from failed


def _values(checkpoint: Checkpoint, params: Iterable[ForeignParam], progress: Progress) -> Iterator[Tensor]:
    from_run = checkpoint.parameters(progress)
    value = torch.empty(0, dtype=torch.float32, device="cpu")
    for param in params:
        if param.source is None:
            yield torch.zeros(param.shape, dtype=torch.float32, device="cpu")
            continue
        if param.rows is None or param.rows[0] == 0:
            value = next(from_run)[1]
        part = value if param.rows is None else value[slice(*param.rows)]
        yield part.T.contiguous() if param.transposed else part


def _folder(folder: str | os.PathLike[str], of_another_format: str) -> Path:
    path = make_folder(user_path(folder))
    if (path / of_another_format).exists():
        raise StoreError(f"{shown(path)} holds a checkpoint in another format ({of_another_format}); name another folder")
    return path
