"""The folder for a command's results: new or empty, so that no two results mix."""

import contextlib
from pathlib import Path

from legion_p2p.errors import ConfigError

DEFAULT_FOLDER = "legion-out"
MAX_TRIED = 1 << 20  # folders of one name


def new_folder(given: str, what: str) -> Path:
    """The folder of `--out`; without one legion-out/WHAT-1, legion-out/WHAT-2, ... Raises: ConfigError."""
    if given:
        path = Path(given)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise ConfigError(f"--out {given}: this folder is not empty, and results must not mix with what is there")
        except OSError as bad:
            raise ConfigError(f"--out {given}: {bad.strerror or bad}") from bad
        return path
    try:
        for n in range(1, MAX_TRIED):
            path = Path(DEFAULT_FOLDER, f"{what}-{n}")
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as bad:
        raise ConfigError(f"cannot write to {DEFAULT_FOLDER}: {bad.strerror or bad}: choose another folder with --out") from bad
    raise ConfigError(f"{DEFAULT_FOLDER} is full: choose another folder with --out")
