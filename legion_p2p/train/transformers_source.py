"""What `hf:...` names: a family, a configuration in a file, or a folder with a configuration and weights."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from legion_p2p.config import NewRun
from legion_p2p.config.new_run import ARCHITECTURE_PREFIX
from legion_p2p.errors import ConfigError, DecodeError, IncompatibleModelError
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
from legion_p2p.files.reading import read_text
from legion_p2p.train.families import FAMILIES
from legion_p2p.train.side_file import CONFIG
from legion_p2p.train.transformers_model import config_text, require_library

MAX_CONFIG_BYTES = 1 << 20  # those of published models have some kilobytes


class Source(NamedTuple):
    """A configuration as a run carries it, and the folder of the weights to go on from; None: random weights."""

    config: str
    folder: Path | None = None


def source_of(new_run: NewRun) -> Source:
    """The model that a new run begins with. Raises: ConfigError, naming what is wrong with it; StoreError."""
    require_library()
    name = new_run.architecture.removeprefix(ARCHITECTURE_PREFIX)
    folder = None
    if name in FAMILIES:
        fields, where = FAMILIES[name], name
    else:
        path = user_path(name)
        kind = kind_of(path)
        if kind is FileKind.MISSING:
            raise ConfigError(f"{new_run.architecture}: no such file or folder, and no family; these are {', '.join(FAMILIES)}")
        if kind is FileKind.FOLDER:
            folder = path if any(path.glob("*.safetensors")) else None
            if folder is None and any((*path.glob("*.bin"), *path.glob("*.pt"))):
                raise ConfigError(
                    f"{shown(path)} holds weights as a pickle, which can run code: load the model in transformers, and save it "
                    "again, as safetensors"
                )
            path = path / CONFIG
        fields, where = read_config(path), shown(path)
    try:
        return Source(config_text({**fields, **new_run.model}), folder)
    except (DecodeError, IncompatibleModelError) as bad:
        raise ConfigError(f"{where}: {bad}") from bad


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a config.json. Raises: ConfigError; StoreError."""
    try:
        said = json.loads(read_text(path, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError, DecodeError) as bad:
        raise ConfigError(f"{shown(path)} is not JSON: {bad}") from bad
    if not isinstance(said, dict):
        raise ConfigError(f"{shown(path)} holds a JSON {type(said).__name__}, where the fields of a model are expected")
    return said
