"""The file with the key that all peers of a network share: 64 hexadecimal digits, alone or below the header of a swarm.key."""

from legion_p2p.errors import StoreError
from legion_p2p.files.paths import shown, user_path
from legion_p2p.files.reading import read_text

KEY_BYTES = 32
MAX_FILE_BYTES = 4096
HEADER = ("/key/swarm/psk/1.0.0/", "/base16/")


def load_network_key(path: str) -> bytes:
    """The key in the file; none where no file is named. Raises: StoreError."""
    if not path:
        return b""
    file = user_path(path)
    lines = [line.strip() for line in read_text(file, MAX_FILE_BYTES).splitlines() if line.strip()]
    if tuple(lines[:2]) == HEADER:
        lines = lines[2:]
    try:
        key = bytes.fromhex(lines[0]) if len(lines) == 1 else b""
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise StoreError(f"{shown(file)} is no network key: it has to be 64 hexadecimal digits, as `openssl rand -hex 32` prints")
    return key
