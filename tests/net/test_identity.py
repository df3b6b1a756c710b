"""The key file."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from legion_p2p.cli.peer import pick_identity_slot
from legion_p2p.core.identity import Identity
from legion_p2p.errors import StoreError
from legion_p2p.store.identity import is_identity_free, load_or_create_identity


def test_a_new_identity_is_kept_and_only_its_owner_can_read_it(tmp_path):
    path = tmp_path / "new" / "folders" / "peer.key"
    os.umask(0o022)

    first = load_or_create_identity(path)
    first.release()
    second = load_or_create_identity(path)

    assert second.peer_id == first.peer_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["peer.key"]


def test_two_files_are_two_identities(tmp_path):
    assert load_or_create_identity(tmp_path / "a").peer_id != load_or_create_identity(tmp_path / "b").peer_id


def test_the_file_says_what_it_is_and_holds_the_seed(tmp_path):
    path = tmp_path / "key"
    identity = load_or_create_identity(path)

    header, seed = path.read_text().splitlines()
    assert header.startswith("# legion_p2p identity")
    assert Identity(bytes.fromhex(seed)).peer_id == identity.peer_id


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666])
def test_a_file_that_others_can_read_is_refused_with_the_remedy(tmp_path, mode):
    path = tmp_path / "key"
    load_or_create_identity(path).release()
    path.chmod(mode)

    with pytest.raises(StoreError, match=f"chmod 600 {path}"):
        load_or_create_identity(path)


@pytest.mark.parametrize(
    "content", ["", "hello\n", "# only a header\n", "ab" * 31 + "\n", "ab" * 33, "ab" * 32 + "\n" + "cd" * 32, "\xff\xfe"]
)
def test_a_damaged_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content.encode("latin-1"))
    path.chmod(0o600)

    with pytest.raises(StoreError, match="does not hold an identity") as error:
        load_or_create_identity(path)
    assert str(path) in str(error.value)
    assert path.read_bytes() == content.encode("latin-1")


def test_a_folder_is_no_identity(tmp_path):
    with pytest.raises(StoreError, match=str(tmp_path)):
        load_or_create_identity(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_said_so(tmp_path):
    tmp_path.chmod(0o500)

    with pytest.raises(StoreError, match=r"[Pp]ermission"):
        load_or_create_identity(tmp_path / "key")


def test_an_identity_is_used_once_at_a_time(tmp_path):
    path = tmp_path / "key"
    first = load_or_create_identity(path)

    with pytest.raises(StoreError, match="in use by another process"):
        load_or_create_identity(path)
    assert not is_identity_free(path)

    first.release()
    assert is_identity_free(path)
    load_or_create_identity(path).release()


def test_another_process_cannot_use_it_and_gets_it_when_this_one_ends(tmp_path):
    path = tmp_path / "key"
    first = load_or_create_identity(path)
    code = f"from legion_p2p.store.identity import *; print(load_or_create_identity({str(path)!r}).peer_id)"

    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    first.release()
    allowed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert "in use by another process" in refused.stderr
    assert allowed.stdout.strip() == first.peer_id


def test_many_processes_that_start_together_make_one_identity(tmp_path):
    path = tmp_path / "key"
    code = (
        "import time\nfrom legion_p2p.errors import StoreError\nfrom legion_p2p.store.identity import *\n"
        f"while True:\n  try:\n    print(load_or_create_identity({str(path)!r}).peer_id); break\n"
        "  except StoreError as busy:\n    assert 'in use' in str(busy), busy\n    time.sleep(0.01)\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]

    assert len({process.communicate()[0] for process in processes}) == 1


def test_an_identity_that_is_not_there_yet_is_free(tmp_path):
    assert is_identity_free(tmp_path / "none")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_a_key_of_another_user_is_no_key_in_use():
    """As after a run with sudo: taking the next free one silently would be another peer with another store."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        load_or_create_identity(folder / "peer.key").release()
        os.seteuid(65534)
        try:
            with pytest.raises(StoreError, match=r"peer\.key: permission denied"):
                is_identity_free(folder / "peer.key")
            with pytest.raises(StoreError, match=r"peer\.key: permission denied"):
                load_or_create_identity(folder / "peer.key")
            with pytest.raises(StoreError, match=r"peer\.key: permission denied"):
                pick_identity_slot(folder)
        finally:
            os.seteuid(0)
    finally:
        shutil.rmtree(folder)


def test_a_key_that_an_editor_on_windows_saved_is_the_same(tmp_path):
    first = load_or_create_identity(tmp_path / "key")
    first.release()
    text = (tmp_path / "key").read_text()

    (tmp_path / "key").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())

    assert load_or_create_identity(tmp_path / "key").peer_id == first.peer_id


def test_a_pipe_is_no_identity_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    for use in (is_identity_free, load_or_create_identity):
        with pytest.raises(StoreError, match="pipe"):
            use(tmp_path / "pipe")
