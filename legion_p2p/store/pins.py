"""The pins of a block store: roots that stay, each a small file whose text says why."""

import contextlib
import os

from legion_p2p.core.cids import Cid
from legion_p2p.errors import DecodeError, StoreError
from legion_p2p.files.writing import sync_folder
from legion_p2p.store.folder import StoreFolder, raise_as_store_error

MAX_LABEL_CHARS = 200


class Pins:
    """The folder of pins."""

    def __init__(self, folder: StoreFolder) -> None:
        self._folder = folder
        self._path = folder.path / "pins"

    def put(self, root: Cid, label: str) -> None:
        """Raises: StoreError."""
        if len(label) > MAX_LABEL_CHARS:
            raise StoreError(f"a pin's label of {len(label)} characters, at most {MAX_LABEL_CHARS}")
        try:
            os.replace(self._folder.draft(label.encode()), self._path / str(root))
            sync_folder(self._path)
        except OSError as failed:
            raise_as_store_error(failed, self._folder.path)

    def remove(self, root: Cid) -> None:
        (self._path / str(root)).unlink(missing_ok=True)

    def all(self) -> dict[Cid, str]:
        """Every pinned root, and its label."""
        found = {}
        for file in sorted(self._path.glob("*")):
            with contextlib.suppress(DecodeError, FileNotFoundError):
                found[Cid.parse(file.name)] = file.read_text(errors="replace")[:MAX_LABEL_CHARS]
        return found
