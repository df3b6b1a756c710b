"""Saving the model at the end of training: where it was asked for, or else wherever there is room."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from legion_p2p.errors import NotSavedError, StoreError, UsageError
from legion_p2p.files.paths import shown, user_data_folder, user_path
from legion_p2p.files.writing import make_folder, replacing
from legion_p2p.train.safetensors_file import write_safetensors
from legion_p2p.train.side_file import DCP_INDEX, SIDE_FILE, WEIGHTS


def check_out(name: str) -> Path:
    """The folder for what a peer writes, made where it is missing.

    Raises: StoreError, if it cannot be made, or holds an exported checkpoint, which the model would make wrong; UsageError.
    """
    folder = make_folder(user_path(name))
    for there in (SIDE_FILE, DCP_INDEX):
        if (folder / there).exists():
            raise StoreError(f"{shown(folder)} holds an exported checkpoint ({there}); choose another --out")
    return folder


def save_model(params: Sequence[tuple[str, Tensor]], folder: Path, metadata: Mapping[str, str], name: str = WEIGHTS) -> Path:
    """Write the parameters as model.safetensors, or under another `name`; where they are now.

    Raises: NotSavedError, if the folder does not take them. They are elsewhere then, and the message says where; or nowhere, if
    no place takes them.
    """
    try:
        return _write(params, folder / name, metadata)
    except StoreError as refused:
        problem = f"the model could not be written to {shown(folder)}: {refused}"
        for place in _other_places():
            try:
                path = _write(params, place / f"legion-{os.getpid()}-{name}", metadata)
            except (StoreError, UsageError):
                continue
            raise NotSavedError(f"{problem}. It is in {shown(path)}") from refused
        raise NotSavedError(f"{problem}; nor could it be written anywhere else. What the store has stays") from refused


def _write(params: Sequence[tuple[str, Tensor]], path: Path, metadata: Mapping[str, str]) -> Path:
    make_folder(path.parent)  # somebody may have removed it meanwhile
    with replacing(path) as file:
        values = (param.detach().cpu() for _, param in params)
        write_safetensors(file, [(name, tuple(param.shape)) for name, param in params], values, metadata)
    return path


def _other_places() -> Iterator[Path]:
    for place in (user_data_folder, Path.cwd, Path.home, lambda: Path(tempfile.gettempdir())):
        try:
            yield place()
        except (UsageError, OSError, RuntimeError):  # no home, a working folder that is gone, no place for temporary files
            continue
