"""Where text comes from, and how it is split."""

import bz2
import gzip
import hashlib
import lzma
import os
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.errors import StoreError
from legion_p2p.files import reading
from legion_p2p.train import corpus
from legion_p2p.train import tokens as tokens_module
from legion_p2p.train.corpus import open_text, stdlib_text
from legion_p2p.train.tokens import FileTokens, ShardedTokens, blocks_of, write_tokens

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


def test_what_is_installed_beside_the_library_is_not_even_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(200):
        (tmp_path / f"{i}.py").write_text(f"# {i}")
    before = stdlib_text(tmp_path)
    (tmp_path / "site-packages" / "torch").mkdir(parents=True)
    (tmp_path / "site-packages" / "torch" / "nn.py").write_text("# more")
    scandir, looked_into = os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda path: looked_into.append(str(path)) or scandir(path))

    assert stdlib_text(tmp_path) == before
    assert looked_into == [str(tmp_path)]


def test_a_missing_stdlib_is_told_clearly(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no source of the Python standard library"):
        stdlib_text(tmp_path)
    with pytest.raises(StoreError, match=r"cannot read .*lib: there is no such file"):
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


def test_binary_and_hidden_files_are_left_out_and_counted(folder: Path) -> None:
    before = open_text(folder)
    for name in ("image.png", "other.png"):
        (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n" + name.encode())
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    (folder / "empty.txt").touch()

    after = open_text(folder)

    assert after.digest == before.digest and before.left_out == ""
    assert after.left_out == "2 a PNG image, 1 empty"


def test_a_folder_of_links_is_what_they_lead_to(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    links = tmp_path_factory.mktemp("links")
    for i, path in enumerate(sorted(folder.glob("part*/*"))):
        (links / f"{i}").symlink_to(path)
    (links / "twice").symlink_to(folder)
    (links / "circle").symlink_to(links)
    (links / "nowhere").symlink_to(links / "gone")
    (links / "itself").symlink_to(links / "itself")
    os.mkfifo(links / "pipe")

    assert open_text(links).digest == open_text(folder).digest


def test_a_folder_without_text_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"%PDF-1.7")
    (tmp_path / "b").touch()

    with pytest.raises(StoreError, match="holds no text files, but 1 a PDF document, 1 empty"):
        open_text(tmp_path)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(999), "is a PNG image, not text"),
        (bytes(999), "is binary data of no known format, not text"),
        (b"PK\x03\x04" + bytes(999), "a zip archive"),
        (gzip.compress(b"\x89PNG\r\n\x1a\n" + bytes(999), mtime=0), "is a PNG image inside gzip"),
        (gzip.compress(b"text " * 999, mtime=0)[:-20], "is gzip, and cannot be unpacked"),
        (zstandard.compress(b"text " * 999)[:-9], "is zstandard, and cannot be unpacked"),
        (zstandard.compress(b"text " * 999) + b"\x28\xb5\x2f\xfd", "is zstandard, and cannot be unpacked"),
        (b"\xff\xfea", "begins as UTF-16-LE and is not"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_what_it_is(tmp_path: Path, raw: bytes, told: str) -> None:
    (tmp_path / "data").write_bytes(raw)

    with pytest.raises(StoreError, match=told):
        open_text(tmp_path / "data")


TEXT = "Was gewählt ist, zählt.\n" * 100
PACKED = {
    "plain": TEXT.encode(), "marked": TEXT.encode("utf-8-sig"), "utf-16": TEXT.encode("utf-16"),
    "utf-16-be": TEXT.encode("utf-16-be"), "utf-32": TEXT.encode("utf-32"), "gzip": gzip.compress(TEXT.encode()),
    "gzip in two members": gzip.compress(TEXT[:99].encode()) + gzip.compress(TEXT[99:].encode()),
    "bzip2": bz2.compress(TEXT.encode()), "xz": lzma.compress(TEXT.encode()), "zstandard": zstandard.compress(TEXT.encode()),
    "zstandard in two frames": zstandard.compress(TEXT[:99].encode()) + zstandard.compress(TEXT[99:].encode()),
    "packed UTF-16": gzip.compress(TEXT.encode("utf-16")),
}  # fmt: skip


@pytest.mark.parametrize("how", PACKED)
def test_text_is_the_same_however_it_is_stored(tmp_path: Path, how: str) -> None:
    (tmp_path / "data").write_bytes(PACKED[how])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "data").write_bytes(PACKED[how])

    text = open_text(tmp_path / "data")

    assert b"".join(block.tobytes() for part in (text.train, text.validation) for block in blocks_of(part, 99)) == TEXT.encode()
    assert len(open_text(tmp_path / "folder").train) > len(TEXT) // 2


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_what_unpacks_to_more_than_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack) -> None:
    (tmp_path / "bomb.gz").write_bytes(pack(b"x" * 100_000))
    monkeypatch.setattr(corpus, "MAX_FOLDER_BYTES", 10_000)

    with pytest.raises(StoreError, match="unpacks to more than 10000 bytes"):
        open_text(tmp_path / "bomb.gz")


@pytest.mark.parametrize("name", ["/dev/null", "pipe"])
def test_what_can_be_read_once_only_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(StoreError, match="not a file"):
        open_text(tmp_path / name)


def test_of_a_folder_with_one_file_the_last_twentieth_is_held_back(tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_bytes(b"x" * 999)

    text = open_text(tmp_path)

    assert (len(text.train), len(text.validation)) == (950, 50)


@pytest.fixture(params=["copied", "read when needed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file that is small, or one that is taken for a large one."""
    if request.param != "copied":
        monkeypatch.setattr(tokens_module, "MAX_COPIED_BYTES", 0)
    return str(request.param)


def test_of_a_single_file_the_end_is_held_back(tmp_path: Path, way: str) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(bytes(range(1, 201)) * 5)

    text = open_text(str(path))

    assert isinstance(text.train, FileTokens) == (way != "copied")
    assert (len(text.train), len(text.validation)) == (950, 50)
    told = b"".join(block.tobytes() for part in (text.train, text.validation) for block in blocks_of(part, 7))
    assert told == path.read_bytes()


def test_a_file_that_is_emptied_meanwhile_is_an_error_or_does_not_matter(tmp_path: Path, way: str) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"some words " * 100)
    text = open_text(path)

    path.write_bytes(b"")

    if isinstance(text.train, FileTokens):
        with pytest.raises(StoreError, match="was cut off while it is trained on"):
            text.train.read(0, 10)
    else:
        assert bytes(text.train[:10]) == b"some words"


def test_a_file_that_is_removed_or_replaced_goes_on_to_be_read(tmp_path: Path, way: str) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"some words " * 100)
    text = open_text(path)

    path.unlink()
    path.write_bytes(b"others")

    assert next(blocks_of(text.train, 10)).tobytes() == b"some words"


def test_an_id_that_leaves_the_vocabulary_later_is_an_error_where_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens.bin"
    write_tokens(path, np.arange(1000, dtype=np.uint16) % 100, vocab_size=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens_module, "MAX_COPIED_BYTES", 0)
        text = open_text(path)

    with open(path, "r+b") as other:
        other.seek(24 + 2 * 5)
        other.write(b"\xff\xff")

    assert isinstance(text.train, FileTokens)
    assert text.train.read(0, 5).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(StoreError, match="token 65535 in a vocabulary of 100"):
        text.train.read(0, 6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tokens_written_are_the_tokens_read(tmp_path: Path, dtype: type, way: str) -> None:
    path = tmp_path / "tokens.bin"
    tokens = (np.arange(1000) % 200).astype(dtype)

    write_tokens(path, tokens, vocab_size=201)
    text = open_text(path)

    assert isinstance(text.train, FileTokens) == (way != "copied")
    assert text.train.dtype == dtype and text.vocab_size == 201
    assert np.array_equal(np.concatenate([*blocks_of(text.train, 99), *blocks_of(text.validation, 99)]), tokens)
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
        (whole[:12] + b"\x10\0\0\0" + whole[16:], r"token \d+ in a vocabulary of 16"),
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
    with pytest.raises(StoreError, match="cannot write"):
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
    with pytest.raises(StoreError, match="holds more than 99 bytes"):
        open_text(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(folder: Path) -> None:
    (folder / "part0" / "0.md").chmod(0)

    with pytest.raises(StoreError, match=r"cannot read .*0\.md: permission denied"):
        open_text(folder)


def test_a_file_that_the_disk_does_not_give_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __enter__(self) -> "Broken":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, n: int) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(reading, "_open", lambda path, streams: Broken())
    with pytest.raises(StoreError, match=r"cannot read .*\.md: input/output error"):
        open_text(folder)
    with pytest.raises(StoreError, match=r"cannot read .*\.py: input/output error"):
        stdlib_text()


def test_bytes_are_tokens() -> None:
    assert corpus.encode("aé").tolist() == [97, 195, 169]
    assert corpus.decode([97, 195, 169, 255]) == "aé\ufffd"


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.data())
def test_tokens_of_several_files_are_one_text(lengths: list[int], data: st.DataObject) -> None:
    whole = np.arange(sum(lengths), dtype=np.uint16)
    ends = np.cumsum(lengths)
    files = [whole[end - length : end] for length, end in zip(lengths, ends, strict=True)]

    class Opened:
        def __init__(self, tokens: np.ndarray) -> None:
            self.read = lambda begin, n: tokens[begin : begin + n]

    sharded = ShardedTokens(lengths, np.dtype("<u2"), lambda i: Opened(files[i]))  # type: ignore[arg-type,return-value]
    begin = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(begin, len(whole)))
    part = sharded.part(begin, end)
    at = data.draw(st.integers(0, end - begin))

    assert (len(sharded), len(part)) == (len(whole), end - begin)
    assert part.read(at, end - begin - at).tolist() == whole[begin + at : end].tolist()
    assert [int(t) for block in blocks_of(part, 7) for t in block] == whole[begin:end].tolist()


def test_ids_beyond_two_bytes_are_kept(tmp_path: Path) -> None:
    tokens = np.array([0, 65_536, 151_000] * 40, np.uint32)
    write_tokens(tmp_path / "large.bin", tokens, vocab_size=151_936)

    corpus = open_text(tmp_path / "large.bin")

    assert corpus.vocab_size == 151_936 and corpus.train.dtype.itemsize == 4
    assert np.concatenate([corpus.train, corpus.validation]).tolist() == tokens.tolist()
