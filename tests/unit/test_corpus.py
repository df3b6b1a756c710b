"""Where text comes from, and how it is split."""

import hashlib
import os
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from legion_p2p.errors import StoreError
from legion_p2p.train import corpus
from legion_p2p.train.corpus import open_text, stdlib_text, write_tokens

_BUILD_DATA = Path(sysconfig.get_paths()["stdlib"], "_sysconfigdata__linux_x86_64-linux-gnu.py")
IS_REFERENCE_BUILD = (
    sys.version_info[:3] == (3, 11, 7)
    and _BUILD_DATA.exists()
    and hashlib.sha1(_BUILD_DATA.read_bytes()).hexdigest() == "286905dfc22e8842ac78e7c0525e47d6b6f0820c"
)


def in_validation(text: bytes) -> bool:
    return int.from_bytes(hashlib.sha1(text).digest()[:4], "big") < 0.05 * 2**32


def some_texts() -> list[bytes]:
    """Fifty that hold at least one for validation."""
    return [f"this is text {i}\n".encode() * 20 for i in range(50)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i, text in enumerate(some_texts()):
        path = tmp_path / f"part{i % 3}" / f"{i}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text)
    return tmp_path


@pytest.mark.skipif(not IS_REFERENCE_BUILD, reason="the text of another build of Python has another size")
def test_the_reference_text_has_the_sizes_of_record() -> None:
    text = open_text("stdlib", context=64)

    assert (len(text.train), len(text.validation), text.vocab_size) == (11_260_712, 570_007, 256)


def test_the_stdlib_of_any_interpreter_is_text_enough_and_split_one_to_twenty() -> None:
    train, validation = stdlib_text()

    assert len(train) > 5_000_000
    assert 0.02 < len(validation) / len(train) < 0.1
    assert b"unittest.main" in train


def test_tests_and_installed_packages_are_no_part_of_the_stdlib(tmp_path: Path) -> None:
    for i, name in enumerate(["a", "test", "x/tests", "idlelib/idle_test", "site-packages/numpy", "lib2to3", "__pycache__"]):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "module.py").write_text(f"# {i}")
    (tmp_path / "a" / "notes.txt").write_text("no source")
    (tmp_path / "a" / "__init__.py").touch()
    held_back = next(b"# v%d" % i for i in range(1000) if in_validation(b"# v%d" % i))
    (tmp_path / "b.py").write_bytes(held_back)

    assert stdlib_text(tmp_path) == (b"# 0\0", held_back + b"\0")


def test_a_missing_stdlib_is_told_clearly(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no source of the Python standard library"):
        stdlib_text(tmp_path)
    with pytest.raises(StoreError, match=r"lib.* cannot be read: No such file"):
        stdlib_text(tmp_path / "lib")


def test_a_folder_is_split_by_the_hash_of_its_files(folder: Path) -> None:
    text = open_text(folder, context=16)

    expected = [hashlib.sha1(t).digest() for t in some_texts()]
    by_hash = dict(zip(expected, some_texts(), strict=True))
    assert text.train.tobytes() == b"".join(t + b"\0" for _, t in sorted(by_hash.items()) if not in_validation(t))
    assert text.validation.tobytes() == b"".join(t + b"\0" for _, t in sorted(by_hash.items()) if in_validation(t))
    assert text.name == folder.name


def test_names_do_not_matter_and_content_does(folder: Path) -> None:
    before = open_text(folder).digest
    (folder / "part0").rename(folder / "other")
    renamed = open_text(folder).digest
    (folder / "other" / "0.md").write_text("changed")

    assert renamed == before
    assert open_text(folder).digest != before


def test_binary_hidden_and_linked_files_are_left_out(folder: Path) -> None:
    before = open_text(folder).digest
    (folder / "image.png").write_bytes(b"\x89PNG\0\0")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    (folder / "loop").symlink_to(folder)
    (folder / "link.txt").symlink_to("/etc/hostname")
    (folder / "empty.txt").touch()

    assert open_text(folder).digest == before


def test_of_a_folder_with_one_file_the_last_twentieth_is_held_back(tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_bytes(b"x" * 999)

    text = open_text(tmp_path)

    assert (len(text.train), len(text.validation)) == (950, 50)


def test_a_single_file_is_mapped_and_its_end_held_back(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(bytes(range(200)) * 5)

    text = open_text(str(path))

    assert isinstance(text.train, np.memmap)
    assert (len(text.train), len(text.validation)) == (950, 50)
    assert bytes(text.train) + bytes(text.validation) == path.read_bytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tokens_written_are_the_tokens_read(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "tokens.bin"
    tokens = (np.arange(1000) % 200).astype(dtype)

    write_tokens(path, tokens, vocab_size=201)
    text = open_text(path)

    assert isinstance(text.train, np.memmap)
    assert text.train.dtype == dtype and text.vocab_size == 201
    assert np.array_equal(np.concatenate([text.train, text.validation]), tokens)
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_file_of_tokens_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    write_tokens(path, np.arange(1000, dtype=np.uint16), vocab_size=1000)
    whole = path.read_bytes()

    for damaged, reason in [
        (whole[:-1], "cut off"),
        (b"nothing of this kind" * 9, "no file of tokens"),
        (b"short", "no file of tokens"),
        (whole[:8] + b"\3" + whole[9:], "3 bytes per token"),
        (whole[:12] + b"\x10\0\0\0" + whole[16:], "token 949 in a vocabulary of 16"),
        (b"", "is empty"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=reason):
            open_text(path)


def test_tokens_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"

    with pytest.raises(StoreError, match="token 9 in a vocabulary of 9"):
        write_tokens(path, np.arange(10, dtype=np.uint8), vocab_size=9)
    with pytest.raises(StoreError, match="vocabulary of 300 in uint8"):
        write_tokens(path, np.arange(10, dtype=np.uint8), vocab_size=300)
    with pytest.raises(StoreError, match="cannot be written"):
        write_tokens(tmp_path / "no" / "such.bin", np.arange(10, dtype=np.uint8), vocab_size=10)
    assert not path.exists()


def test_what_cannot_be_used_is_told_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short.txt").write_bytes(b"x" * 100)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "none").mkdir()

    with pytest.raises(StoreError, match="does not exist"):
        open_text(tmp_path / "absent.txt")
    with pytest.raises(StoreError, match=r"empty\.txt is empty"):
        open_text(tmp_path / "empty.txt")
    with pytest.raises(StoreError, match="no text files"):
        open_text(tmp_path / "none")
    with pytest.raises(StoreError, match="95 training and 5 validation tokens, context 64 needs 65"):
        open_text(tmp_path / "short.txt", context=64)
    monkeypatch.setattr(corpus, "MAX_FOLDER_BYTES", 99)
    with pytest.raises(StoreError, match="holds 100 bytes, limit is 99"):
        open_text(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(folder: Path) -> None:
    (folder / "part0" / "0.md").chmod(0)

    with pytest.raises(StoreError, match=r"0\.md cannot be read: Permission denied"):
        open_text(folder)


def test_a_file_that_the_disk_does_not_give_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(StoreError, match=r"\.md cannot be read: Input/output error"):
        open_text(folder)
    with pytest.raises(StoreError, match=r"\.py cannot be read: Input/output error"):
        stdlib_text()


def test_bytes_are_tokens() -> None:
    assert corpus.encode("aé").tolist() == [97, 195, 169]
    assert corpus.decode([97, 195, 169, 255]) == "aé\ufffd"
