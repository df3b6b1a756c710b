"""How names of files are read, and how files under them are opened and replaced."""

import errno
import os
import socket
import stat
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.errors import DiskFullError, StoreError, UsageError
from legion_p2p.files import writing
from legion_p2p.files.paths import MAX_NAME_BYTES, FileKind, kind_of, shown, user_data_folder, user_path
from legion_p2p.files.reading import opened, read_limited, read_text
from legion_p2p.files.writing import make_folder, replacing, write_whole
from tests.waiting import PATIENCE_S

needs_posix = pytest.mark.skipif(os.name != "posix", reason="pipes, links and permissions as POSIX has them")


def test_a_tilde_is_the_home_folder_and_a_blank_belongs_to_the_name(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))

    assert user_path("~/my peers.txt") == tmp_path / "my peers.txt"
    assert user_path(" a ").name == " a "


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "an empty name"),
        ("a\0b", "zero byte"),
        ("~nobody-has-this-name/x", "the home folder is not known here"),
        ("x" * (MAX_NAME_BYTES + 1), f"more than {MAX_NAME_BYTES} bytes"),
        ("é" * (MAX_NAME_BYTES // 2 + 1), f"more than {MAX_NAME_BYTES} bytes"),
    ],
)
def test_a_name_that_no_file_can_have_is_refused(name, told):
    with pytest.raises(UsageError, match=told):
        user_path(name)


@pytest.mark.parametrize("name", ["a:b", "C:\\runs\\a?b", "con", "nul.txt", "out/COM1.bin", "trailing ", "dot."])
def test_a_name_that_windows_cannot_have_is_refused_there(name):
    with pytest.raises(UsageError, match="Windows"):
        user_path(name, windows=True)


@pytest.mark.parametrize("name", ["C:\\runs\\a.txt", "..\\a", "./console.txt", "com10"])
def test_a_name_that_windows_can_have_is_taken_there(name):
    user_path(name, windows=True)


@given(st.text(alphabet=st.characters(), max_size=20))
def test_a_shown_name_is_one_line_that_can_be_encoded(name):
    told = shown(name)

    assert told.encode("utf-8") is not None
    assert told.isprintable()


def test_bytes_that_are_no_text_are_shown_as_such():
    assert shown(os.fsdecode(b"caf\xe9\n")) == "caf\\xe9\\n"


def test_a_user_without_a_home_folder_is_told_so(monkeypatch):
    monkeypatch.setattr("platformdirs.user_data_dir", lambda name: f"~/.local/share/{name}")

    with pytest.raises(UsageError, match="set HOME"):
        user_data_folder()


@needs_posix
def test_what_stands_under_a_name_is_known(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")

    kinds = {name: kind_of(tmp_path / name) for name in ("file", "pipe", "link", "dangling", "nothing", "file/below", ".")}

    assert kinds == {
        "file": FileKind.FILE, "pipe": FileKind.PIPE, "link": FileKind.FILE, "dangling": FileKind.MISSING,
        "nothing": FileKind.MISSING,
        "file/below": FileKind.MISSING, ".": FileKind.FOLDER,
    }  # fmt: skip
    assert kind_of(tmp_path.__class__("/dev/null")) is FileKind.STREAM_DEVICE
    with pytest.raises(StoreError, match="Too many levels of symbolic links"):
        kind_of(tmp_path / "circle")


# reading


@needs_posix
def test_a_pipe_that_nobody_writes_to_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(StoreError, match="is a named pipe, not a file"), opened(tmp_path / "pipe"):
        pass
    assert read_limited(tmp_path / "pipe", 10) == b""


@needs_posix
def test_what_another_command_writes_into_a_pipe_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text("said"))
    reader_end = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)  # or the writer would wait for a reader
    writer.start()
    writer.join()
    read_end = f"/dev/fd/{reader_end}"

    try:
        told = read_limited(tmp_path.__class__(read_end), 10)
    finally:
        os.close(reader_end)

    assert told == b"said"


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path):
    with pytest.raises(StoreError, match="is a folder, not a file"), opened(tmp_path):
        pass
    with pytest.raises(StoreError, match="there is no such file or folder"), opened(tmp_path / "x"):
        pass


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 11)

    assert read_limited(tmp_path / "x", 11) == b"x" * 11
    with pytest.raises(StoreError, match="at most 10 bytes"):
        read_limited(tmp_path / "x", 10)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_is_read_in_whatever_encoding_an_editor_wrote_it(tmp_path, encoding):
    said = "links = 'cable'  # gewählt\n"
    (tmp_path / "x").write_bytes(said.encode(encoding))

    assert read_text(tmp_path / "x", 1000) == said


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"\x1f\x8b\x08" + bytes(20), "it is gzip"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "a PNG image"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs pointer"),
        (b"caf\xe9", "not text in UTF-8: byte 3 is 0xe9"),
        (b"a\0b", "binary data"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, raw, told):
    (tmp_path / "x").write_bytes(raw)

    with pytest.raises(StoreError, match=told):
        read_text(tmp_path / "x", 1000)


# writing


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    target = tmp_path / "x"
    target.write_text("before")

    with pytest.raises(RuntimeError), replacing(target) as file:
        file.write(b"half of")
        raise RuntimeError
    assert target.read_text() == "before"
    assert os.listdir(tmp_path) == ["x"]

    write_whole(target, b"after")
    assert target.read_text() == "after"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("way_out", [KeyboardInterrupt, MemoryError, SystemExit])
def test_no_draft_stays_on_any_way_out(tmp_path, way_out):
    with pytest.raises(way_out), replacing(tmp_path / "x") as file:
        file.write(b"half of")
        raise way_out

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_and_leaves_no_draft(tmp_path, number):
    with pytest.raises(DiskFullError, match="no space left"), replacing(tmp_path / "x"):
        raise OSError(number, os.strerror(number))

    assert os.listdir(tmp_path) == []


@needs_posix
def test_the_draft_of_a_process_that_was_killed_is_removed_by_the_next(tmp_path):
    target = tmp_path / "x"
    code = (
        "import os, sys, pathlib\nfrom legion_p2p.files.writing import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as file:\n  file.write(b'half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(target)], timeout=PATIENCE_S)
    assert len(os.listdir(tmp_path)) == 1

    write_whole(target, b"whole")

    assert os.listdir(tmp_path) == ["x"]


@needs_posix
def test_the_draft_of_a_process_that_lives_is_left_alone(tmp_path):
    with replacing(tmp_path / "x") as file:
        file.write(b"first")
        write_whole(tmp_path / "x", b"second")

    assert (tmp_path / "x").read_bytes() == b"first"


@needs_posix
def test_a_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/file")

    write_whole(tmp_path / "link", b"first")
    write_whole(tmp_path / "link", b"second")

    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_bytes() == b"second"
    assert os.listdir(tmp_path / "elsewhere") == ["file"]


@needs_posix
def test_the_permissions_of_the_file_before_stay(tmp_path):
    (tmp_path / "x").touch()
    (tmp_path / "x").chmod(0o640)

    write_whole(tmp_path / "x", b"new")

    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


@needs_posix
def test_a_device_is_written_to_and_stays_a_device(tmp_path):
    (tmp_path / "null").symlink_to("/dev/null")

    write_whole(tmp_path / "null", b"gone")

    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert (tmp_path / "null").is_symlink()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_device_that_is_full_is_said(tmp_path):
    with pytest.raises(DiskFullError, match="/dev/full"):
        write_whole(tmp_path.__class__("/dev/full"), b"x")


@needs_posix
def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader_end = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(tmp_path / "pipe", b"through")

        assert os.read(reader_end, 100) == b"through"
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    finally:
        os.close(reader_end)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")
def test_what_is_no_file_is_never_replaced(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        for name in ("s", "."):
            with pytest.raises(StoreError, match="stays as it is"):
                write_whole(tmp_path / name, b"x")


def test_a_folder_cannot_be_made_where_a_file_is(tmp_path):
    (tmp_path / "x").touch()

    with pytest.raises(StoreError, match="is a file, not a folder"):
        make_folder(tmp_path / "x")
    with pytest.raises(StoreError, match="not a directory"):
        make_folder(tmp_path / "x" / "y")


def test_a_name_as_long_as_names_may_be_can_be_replaced(tmp_path):
    target = tmp_path / ("x" * MAX_NAME_BYTES)

    write_whole(target, b"new")

    assert target.read_bytes() == b"new"


@needs_posix
def test_a_file_that_may_not_be_written_is_refused(tmp_path):
    (tmp_path / "x").write_text("mine")
    (tmp_path / "x").chmod(0o444)
    if os.access(tmp_path / "x", os.W_OK):
        pytest.skip("root may read and write everything")

    with pytest.raises(StoreError, match="permission denied"):
        write_whole(tmp_path / "x", b"new")


def test_a_folder_whose_file_system_syncs_no_folders_will_do(tmp_path, monkeypatch):
    def refuse(fd):
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(writing.os, "fsync", refuse)
    writing.sync_folder(tmp_path)
