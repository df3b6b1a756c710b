"""Whom a user keeps out: files beside the key of the user's peer, which legion-ctl writes and the running peer reads.

peer.key       the identity
peer.banned    peer ids, one a line: kept out of any run, by this peer alone
peer.revoked   revocations of tokens, one a line as `core.admission.as_text` writes them: the peer tells them to all members
"""

from collections.abc import Callable
from pathlib import Path

from legion_p2p.core.admission import TEXT_PREFIX, as_text, from_text
from legion_p2p.core.identity import PeerId, public_key_of
from legion_p2p.errors import DecodeError, StoreError
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
from legion_p2p.files.reading import read_text
from legion_p2p.files.writing import write_whole

MAX_FILE_BYTES = 1 << 20  # 19,000 peer ids, or 2,500 revocations
MAX_BANNED = 10_000  # as many as there may be members


def token_of(text: str) -> bytes:
    """A token, from the line itself or a file with it. Raises: StoreError; DecodeError."""
    return from_text(text if text.startswith(TEXT_PREFIX) else read_text(user_path(text), MAX_FILE_BYTES))


class AccessFiles:
    """The two files beside one identity."""

    def __init__(self, key: Path) -> None:
        self.banned_path = key.with_suffix(".banned")
        self.revoked_path = key.with_suffix(".revoked")

    def banned(self) -> frozenset[PeerId]:
        """Raises: StoreError, naming the file and the line."""
        return frozenset(PeerId(line) for line in self._lines(self.banned_path, public_key_of))

    def revocations(self) -> tuple[bytes, ...]:
        """Raises: StoreError, naming the file and the line."""
        return tuple(from_text(line) for line in self._lines(self.revoked_path, from_text))

    def ban(self, peer: str) -> bool:
        """Whether it was not banned before. Raises: StoreError."""
        banned = self.banned()
        if peer in banned:
            return False
        if len(banned) >= MAX_BANNED:
            raise StoreError(f"{shown(self.banned_path)} names {len(banned)} peers, at most {MAX_BANNED}")
        self._write(self.banned_path, sorted({*banned, peer}))
        return True

    def unban(self, peer: str) -> bool:
        """Whether it was banned before. Raises: StoreError."""
        banned = self.banned()
        if peer not in banned:
            return False
        self._write(self.banned_path, sorted(banned - {peer}))
        return True

    def revoke(self, revocation: bytes) -> None:
        """Raises: StoreError."""
        known = [as_text(data) for data in self.revocations()]
        line = as_text(revocation)
        self._write(self.revoked_path, known if line in known else [*known, line])

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Another one whenever a file changed."""
        return tuple(_stamp(path) for path in (self.banned_path, self.revoked_path))

    def _lines(self, path: Path, check: Callable[[str], object]) -> list[str]:
        if kind_of(path) is FileKind.MISSING:
            return []
        lines = [line.strip() for line in read_text(path, MAX_FILE_BYTES).splitlines()]
        kept = []
        for number, line in enumerate(lines, 1):
            if not line or line.startswith("#"):
                continue
            try:
                check(line)
            except DecodeError as bad:
                raise StoreError(f"{shown(path)}, line {number}: {bad}") from bad
            kept.append(line)
        return kept

    def _write(self, path: Path, lines: list[str]) -> None:
        write_whole(path, "".join(f"{line}\n" for line in lines).encode())


def _stamp(path: Path) -> tuple[int, int]:
    try:
        seen = path.stat()
    except OSError:
        return (0, 0)
    return (seen.st_mtime_ns, seen.st_size)
