"""The secret by which the peers of a user know who may pause them: `control.key` in the user's data folder, for all of them."""

import secrets
from pathlib import Path

from legion_p2p.errors import DiskFullError, StoreError
from legion_p2p.files.paths import shown
from legion_p2p.files.reading import opened, reason_of
from legion_p2p.files.writing import is_full
from legion_p2p.store.private_file import check_private, create, make_folders

NAME = "control.key"
KEY_BYTES = 32
MAX_FILE_BYTES = 4096
HEADER = "# legion_p2p control key: whoever can read it may pause, limit and end the peers of this user."


def load_or_create_control_key(folder: Path) -> bytes:
    """The key in that folder, made on first use. Raises: StoreError, if it cannot be made, is damaged, or others can read it."""
    path = folder / NAME
    try:
        make_folders(folder)
        if not path.exists():
            create(path, f"{HEADER}\n{secrets.token_hex(KEY_BYTES)}\n")
    except OSError as failed:
        if is_full(failed):
            raise DiskFullError(f"no space left for {shown(path)}; free some there") from failed
        raise StoreError(f"cannot make the control key {shown(path)}: {reason_of(failed)}") from failed
    with opened(path) as file:
        check_private(file, path, "control key")
        content = file.read(MAX_FILE_BYTES)
    try:
        (line,) = [line for line in content.decode("ascii").split("\n") if line.strip() and not line.startswith("#")]
        key = bytes.fromhex(line)
        if len(key) != KEY_BYTES:
            raise ValueError
    except ValueError as bad:
        raise StoreError(f"{shown(path)} holds no control key; remove it, and the next peer makes a new one") from bad
    return key
