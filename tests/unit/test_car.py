"""CAR files: what goes in comes out, block by block, and nothing that is not what it says."""

import io
from pathlib import Path

import pytest
import varint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from legion_p2p.core import dagcbor
from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.manifest import MAX_BLOCK_BYTES
from legion_p2p.errors import DecodeError, MissingBlockError
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.car import MAX_HEADER_BYTES, read_car, write_car
from tests.checkpoint_of import checkpointed


@pytest.fixture
def store(tmp_path: Path):
    with BlockStore(tmp_path / "store") as made:
        yield made


@pytest.fixture
def other(tmp_path: Path):
    with BlockStore(tmp_path / "other") as made:
        yield made


def car(*sections: bytes, header: object = None) -> io.BytesIO:
    """A file of these sections behind a header."""
    said = dagcbor.encode({"version": 1, "roots": []} if header is None else header)
    return io.BytesIO(b"".join(varint.encode(len(part)) + part for part in (said, *sections)))


def test_a_checkpoint_travels_in_one_file(store: BlockStore, other: BlockStore) -> None:
    _, root = checkpointed(store)
    store.put(b"something else")
    file, written, read = io.BytesIO(), [], []

    n_blocks = write_car(store, root, file, written.append)
    file.seek(0)

    assert read_car(other, file, read.append) == (root,)
    assert set(other) == {cid for cid, _ in store.walk(root)} and len(set(other)) == n_blocks
    assert sum(written) == sum(read) == other.used_bytes


def test_the_file_is_what_the_specification_says(store: BlockStore) -> None:
    leaf = store.put(b"leaf")
    node = dagcbor.encode([leaf])
    root = store.put(node, DAG_CBOR)
    file = io.BytesIO()

    write_car(store, root, file)

    expected = car(root.raw + node, leaf.raw + b"leaf", header={"roots": [root], "version": 1})
    assert file.getvalue() == expected.getvalue()


def test_an_incomplete_checkpoint_is_not_exported(store: BlockStore) -> None:
    root = store.put(dagcbor.encode([Cid.of(b"gone")]), DAG_CBOR)

    with pytest.raises(MissingBlockError):
        write_car(store, root, io.BytesIO())


def test_blocks_before_a_bad_one_stay(store: BlockStore) -> None:
    good = Cid.of(b"good")

    with pytest.raises(DecodeError, match="not its own"):
        read_car(store, car(good.raw + b"good", Cid.of(b"other").raw + b"bad"))

    assert set(store) <= {good}


@pytest.mark.parametrize(
    "header",
    [{"version": 2}, {"version": 1}, {"version": 1, "roots": ["text"]}, {"version": 1, "roots": [Cid.of(b"")] * 1001}, [], 1],
    ids=lambda header: str(header)[:30],
)
def test_another_header_is_refused(store: BlockStore, header: object) -> None:
    with pytest.raises(DecodeError):
        read_car(store, car(header=header))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x00", b"\xff" * 20, varint.encode(MAX_HEADER_BYTES + 1), car().getvalue() + b"\x00", car().getvalue() + b"\x80",
        car().getvalue() + varint.encode(MAX_BLOCK_BYTES + 37), car(b"short").getvalue(), car(bytes(36)).getvalue(),
        car(b"\x01\x70" + Cid.of(b"dag-pb").raw[2:] + b"dag-pb").getvalue(),
    ],
    ids=lambda data: data[:12].hex() + f"..{len(data)}",
)  # fmt: skip
def test_another_file_is_refused(store: BlockStore, data: bytes) -> None:
    with pytest.raises(DecodeError):
        read_car(store, io.BytesIO(data))


def test_a_file_cut_off_anywhere_is_refused(store: BlockStore) -> None:
    whole = car(Cid.of(b"block").raw + b"block").getvalue()
    ends = {len(car().getvalue()), len(whole)}

    for end in set(range(len(whole))) - ends:
        with pytest.raises(DecodeError):
            read_car(store, io.BytesIO(whole[:end]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(max_size=200))
def test_bytes_of_strangers_are_blocks_or_an_error(store: BlockStore, data: bytes) -> None:
    with pytest.raises(DecodeError):
        read_car(store, io.BytesIO(car().getvalue() + b"\x27" + data))
