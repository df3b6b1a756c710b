"""The file with the key of a network."""

from pathlib import Path

import pytest

from legion_p2p.errors import StoreError
from legion_p2p.store.network_key_file import MAX_FILE_BYTES, load_network_key

KEY = bytes(range(32))


@pytest.mark.parametrize(
    "text",
    [KEY.hex(), f"{KEY.hex()}\n", f"  {KEY.hex().upper()}\n\n", f"/key/swarm/psk/1.0.0/\n/base16/\n{KEY.hex()}"],
    ids=["bare", "a line", "capitals and blanks", "as IPFS writes it"],
)
def test_a_key_is_read_in_the_forms_that_people_have(tmp_path: Path, text: str) -> None:
    file = tmp_path / "lab.key"
    file.write_text(text)

    assert load_network_key(str(file)) == KEY


@pytest.mark.parametrize(
    "text", ["", "00" * 31, "00" * 33, "zz" * 32, f"{KEY.hex()}\n{KEY.hex()}", "/key/swarm/psk/1.0.0/\n/base64/\nAAAA"]
)
def test_what_is_no_key_is_refused_with_the_file_and_how_to_make_one(tmp_path: Path, text: str) -> None:
    file = tmp_path / "lab.key"
    file.write_text(text)

    with pytest.raises(StoreError, match=r"lab\.key.*openssl rand -hex 32"):
        load_network_key(str(file))


def test_a_file_that_is_missing_or_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        load_network_key(str(tmp_path / "missing"))
    (tmp_path / "long").write_text("0" * (MAX_FILE_BYTES + 1))
    with pytest.raises(StoreError):
        load_network_key(str(tmp_path / "long"))


def test_without_a_file_there_is_no_key() -> None:
    assert load_network_key("") == b""
