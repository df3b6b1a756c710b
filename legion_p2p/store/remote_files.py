"""Files elsewhere, by a URL: whatever fsspec reaches, behind three methods.

On a hub, files are written in commits, so several go into one; elsewhere each is written by itself, several at a time.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from legion_p2p.errors import StoreError, UsageError
from legion_p2p.files.paths import shown

PACKAGES = MappingProxyType({"hf": "huggingface_hub", "s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "file": "", "memory": ""})
"""The beginnings of URLs that are taken, and what each needs. Others of fsspec's run commands, or unpack what they read."""
WRITERS = 16  # requests at a time: each waits for the other side, not for the CPU
MAX_TOLD_CHARS = 300  # of what a library says about a failure
T = TypeVar("T")


class RemoteFiles(Protocol):
    """Names are relative, with / between their parts."""

    def read(self, name: str, limit: int) -> bytes | None:
        """The bytes of a file, at most `limit` + 1 of them; None: there is none. Raises: StoreError."""

    def sizes(self, folder: str) -> Mapping[str, int]:
        """The last parts of the names of all files below a folder, and their bytes. Raises: StoreError."""

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files; whole when this returns. Raises: StoreError."""


def open_files(url: str) -> RemoteFiles:
    """The files below a URL such as s3://bucket/folder. Raises: UsageError; StoreError, if a package is missing."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in PACKAGES or not rest or "::" in url:
        raise UsageError(f"{shown(url)}: the form is {', '.join(f'{name}://...' for name in PACKAGES)}")
    try:
        import fsspec

        options: dict[str, Any] = {"auto_mkdir": True} if scheme == "file" else {}
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as bad:
        raise StoreError(f"{scheme}:// needs {PACKAGES[scheme] or 'fsspec'}: pip install {PACKAGES[scheme] or 'fsspec'}") from bad
    except Exception as bad:  # whatever a library does with an address or with credentials that it does not like
        raise StoreError(f"cannot use {shown(url)}: {_told(bad)}") from bad
    files = SystemFiles(system, path, url)
    return HubFiles(files, system, path) if scheme == "hf" and _is_repository(system, path) else files


class SystemFiles:
    """Files of one of fsspec's file systems."""

    def __init__(self, system: Any, path: str, url: str) -> None:
        self._system = system
        self._path = path.rstrip("/")
        self._url = url

    def read(self, name: str, limit: int) -> bytes | None:
        with self.asking():
            try:
                data: bytes = self._system.cat_file(f"{self._path}/{name}", start=0, end=limit + 1)
            except FileNotFoundError:
                return None
        return data[: limit + 1]

    def sizes(self, folder: str) -> Mapping[str, int]:
        with self.asking():
            self._system.invalidate_cache()
            try:
                found = self._system.find(f"{self._path}/{folder}", detail=True)
            except FileNotFoundError:
                return {}
        return {path.rpartition("/")[2]: int(about.get("size") or 0) for path, about in found.items()}

    def write(self, files: Mapping[str, bytes]) -> None:
        with self.asking():
            in_parallel(lambda file: self._system.pipe_file(f"{self._path}/{file[0]}", file[1]), list(files.items()))

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Raises: StoreError, for whatever the library raises: each has exceptions of its own."""
        try:
            yield
        except Exception as bad:
            raise StoreError(f"{shown(self._url)}: {_told(bad)}") from bad


class HubFiles:
    """Files of a repository on the hub: one commit for each call of `write`."""

    def __init__(self, files: SystemFiles, system: Any, path: str, make_api: Callable[..., Any] | None = None) -> None:
        self._files = files
        self._system = system
        self._where = system.resolve_path(path)
        self._make_api = make_api

    def read(self, name: str, limit: int) -> bytes | None:
        return self._files.read(name, limit)

    def sizes(self, folder: str) -> Mapping[str, int]:
        return self._files.sizes(folder)

    def write(self, files: Mapping[str, bytes]) -> None:
        from huggingface_hub import CommitOperationAdd, HfApi

        where = self._where
        prefix = f"{where.path_in_repo}/" if where.path_in_repo else ""
        with self._files.asking():
            (self._make_api or HfApi)(endpoint=self._system.endpoint, token=self._system.token).create_commit(
                repo_id=where.repo_id,
                operations=[CommitOperationAdd(prefix + name, data) for name, data in files.items()],
                commit_message=f"legion_p2p: {len(files)} files of a checkpoint",
                repo_type=where.repo_type,
                revision=where.revision,
            )


def in_parallel(call: Callable[[Any], T], items: list[Any]) -> list[T]:
    """`call` for each, WRITERS at a time; the results in order."""
    if len(items) < 2:
        return [call(item) for item in items]
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="bucket") as pool:
        return list(pool.map(call, items))


def _is_repository(system: Any, path: str) -> bool:
    return hasattr(system.resolve_path(path), "repo_id")


def _told(bad: Exception) -> str:
    lines = str(bad).strip().splitlines() or [type(bad).__name__]
    return lines[0][:MAX_TOLD_CHARS]
