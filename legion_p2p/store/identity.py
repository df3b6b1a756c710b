"""The key that is a peer's identity, on disk.

A text file of two lines, readable by its owner only; the second is the Ed25519 seed in hex. Whoever holds it is that peer, so a
key file that others can read is refused, as ssh does it, and one that is damaged is never overwritten. The file is locked while
its identity is in use: two processes under one identity would take each other for the network's mistake.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from legion_p2p.core.identity import SEED_BYTES, Identity, PeerId
from legion_p2p.errors import DiskFullError, StoreError
from legion_p2p.files.content import decode_text
from legion_p2p.files.locks import try_lock
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
from legion_p2p.files.reading import opened, reason_of
from legion_p2p.files.writing import is_full
from legion_p2p.store.private_file import check_private, create, make_folders

HEADER = "# legion_p2p identity: Ed25519 seed in hex. Keep it secret: whoever has it is this peer."
MAX_FILE_BYTES = 4096


@dataclass(frozen=True)
class StoredIdentity:
    """An identity, and its file, which is locked as long as this value lives, or until `release`."""

    identity: Identity
    _file: BinaryIO

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    def release(self) -> None:
        """Let another process use the file."""
        self._file.close()


def load_or_create_identity(path: str | os.PathLike[str]) -> StoredIdentity:
    """The identity in the file, made on first use together with the folders above it.

    Raises: StoreError, if the file is damaged, readable by others, in use by another peer, or cannot be read or made.
    """
    path = user_path(path)
    try:
        make_folders(path.parent)
        if not path.exists():
            create(path, f"{HEADER}\n{Identity.generate().seed.hex()}\n")
        return _load(path)
    except OSError as failed:
        if is_full(failed):
            raise DiskFullError(
                f"no space left for the identity file {shown(path)}; free some there, or name another file"
            ) from failed
        raise StoreError(f"cannot use the identity file {shown(path)}: {reason_of(failed)}") from failed


def identity_of(chosen: str | Identity) -> tuple[Identity, Callable[[], None]]:
    """An identity itself, that in a file, or a new one where none is named; and how its file becomes free again.

    Raises: StoreError, as `load_or_create_identity`.
    """
    if isinstance(chosen, Identity):
        return chosen, lambda: None
    if not chosen:
        return Identity.generate(), lambda: None
    stored = load_or_create_identity(chosen)
    return stored.identity, stored.release


def read_identity(path: str | os.PathLike[str]) -> Identity:
    """The identity in a file that is there, which a peer may use meanwhile: to sign with, not to be that peer.

    Raises: StoreError, if the file is damaged, readable by others, or cannot be read.
    """
    path = user_path(path)
    with opened(path) as file:
        check_private(file, path, "identity")
        return Identity(_seed_in(file.read(MAX_FILE_BYTES), path))


def is_identity_free(path: str | os.PathLike[str]) -> bool:
    """Whether the identity may be used: the file is not there yet, or nobody holds it.

    Raises: StoreError, if it is there and may not be read. That is no reason to take another one silently: it is another user's,
    as after a run with sudo, or something else stands there.
    """
    where = user_path(path)
    if kind_of(where) is FileKind.MISSING:
        return True
    with opened(where) as file:
        return try_lock(file)


def _load(path: Path) -> StoredIdentity:
    if kind_of(path) is not FileKind.FILE:
        raise StoreError(f"the identity file {shown(path)} is not a regular file; move it away, or name another one")
    file = open(path, "rb")  # noqa: SIM115 (it stays open, for the lock)
    try:
        check_private(file, path, "identity")
        if not try_lock(file):
            raise StoreError(f"the identity {path} is in use by another process; end that one, or name another file")
        return StoredIdentity(Identity(_seed_in(file.read(MAX_FILE_BYTES), path)), file)
    except BaseException:  # Ctrl+C as well: the file is locked as long as it is open
        file.close()
        raise


def _seed_in(content: bytes, path: Path) -> bytes:
    try:
        lines = [line.strip() for line in decode_text(content).splitlines()]
        (seed,) = [bytes.fromhex(line) for line in lines if line and not line.startswith("#")]
        if len(seed) != SEED_BYTES:
            raise ValueError
    except ValueError as bad:
        raise StoreError(
            f"{path} does not hold an identity (a line of {2 * SEED_BYTES} hex digits); restore it from a backup, or move it "
            "away to get a new identity"
        ) from bad
    return seed
