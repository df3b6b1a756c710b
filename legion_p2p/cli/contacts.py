"""The contacts of a `legion-peer` that is given none: those in bootstrap_peers.txt, and peers of its last session."""

from pathlib import Path

from legion_p2p.core.addresses import parse_addresses
from legion_p2p.errors import StoreError
from legion_p2p.files.paths import FileKind, kind_of
from legion_p2p.store.known_peers_file import KnownPeersFile

FILE_NAME = "bootstrap_peers.txt"
PACKAGE = Path(__file__).parents[1]
MAX_REMEMBERED = 8  # peers of the last time that are tried: as many as are dialed at once


def listed_contacts(folder: Path = Path()) -> tuple[str, ...]:
    """The addresses in the file of `folder`, or of the package where that has none. Raises: UsageError, naming file and line."""
    for path in (folder / FILE_NAME, PACKAGE / FILE_NAME):
        if kind_of(path) is not FileKind.MISSING:
            return parse_addresses([f"@{path}"])
    return ()


def remembered_contacts(identity: str) -> tuple[str, ...]:
    """Addresses of the peers that the peer with this key file was connected to last; none, where that cannot be read."""
    if not identity:
        return ()
    try:
        return KnownPeersFile.beside(identity).load().contacts(MAX_REMEMBERED)
    except StoreError:  # said when the peer opens its network, which reads it as well
        return ()


def entering_text(listed: int, remembered: int) -> str:
    """What is said of them."""
    sources = []
    if listed:
        sources.append(f"{listed} address{'es' * (listed != 1)} of {FILE_NAME}")
    if remembered:
        sources.append(f"{remembered} peer{'s' * (remembered != 1)} of the last session")
    return f"entering through {' and '.join(sources)}; --initial-peers none turns this off"
