"""The block store: whole blocks or none, checked when read, within its quota, and never less than a pin needs."""

import errno
import os
import sys
import threading
from pathlib import Path

import pytest

from legion_p2p.core import dagcbor
from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.manifest import MAX_BLOCK_BYTES
from legion_p2p.errors import DecodeError, DiskFullError, MissingBlockError, QuotaError, StoreError
from legion_p2p.files import locks
from legion_p2p.store.blocks import BlockStore
from tests.forking import ForkServer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path):
    with BlockStore(tmp_path / "store") as made:
        yield made


def node(store: BlockStore, *links: Cid) -> Cid:
    return store.put(dagcbor.encode({"links": list(links)}), DAG_CBOR)


def file_of(store: BlockStore, cid: Cid) -> Path:
    (found,) = store.path.glob(f"blocks/?/{cid}")
    return found


def test_what_is_put_is_there_for_whoever_opens_the_store_next(store: BlockStore) -> None:
    cid = store.put(b"bytes")
    store.close()

    with BlockStore(store.path) as again:
        assert again.get(cid) == b"bytes"
        assert list(again) == [cid] and cid in again
        assert (again.size_of(cid), again.used_bytes) == (5, 5)


def test_a_block_that_is_not_there_is_missing(store: BlockStore) -> None:
    with pytest.raises(MissingBlockError, match="is not in"):
        store.get(Cid.of(b"other"))
    assert Cid.of(b"other") not in store and store.size_of(Cid.of(b"other")) is None


@pytest.mark.parametrize("damage", [b"bytez", b"byt", b"bytes and more", b"", bytes(MAX_BLOCK_BYTES + 9)], ids=len)
def test_a_damaged_block_is_told_and_moved_aside_and_can_be_put_again(tmp_path: Path, damage: bytes) -> None:
    told = []
    with BlockStore(tmp_path / "store", on_corrupt=lambda cid, where: told.append((cid, where.read_bytes()))) as store:
        cid = store.put(b"bytes")
        file_of(store, cid).write_bytes(damage)

        with pytest.raises(MissingBlockError, match="damaged"):
            store.get(cid)

        assert told == [(cid, damage)]
        assert cid not in store
        assert store.put(b"bytes") == cid and store.get(cid) == b"bytes"
        assert not list((store.path / "corrupt").iterdir())


@pytest.mark.parametrize("damage", [b"by", b"bytez"])
def test_putting_a_block_again_repairs_one_that_was_damaged(store: BlockStore, damage: bytes) -> None:
    cid = store.put(b"bytes")
    file_of(store, cid).write_bytes(damage)

    store.put(b"bytes")

    assert store.get(cid) == b"bytes" and len(list(store)) == 1


def test_a_block_has_a_largest_size(store: BlockStore) -> None:
    store.put(bytes(MAX_BLOCK_BYTES))

    with pytest.raises(StoreError, match="at most"):
        store.put(bytes(MAX_BLOCK_BYTES + 1))


def test_the_quota_counts_each_block_once_and_says_what_to_do(tmp_path: Path) -> None:
    with BlockStore(tmp_path / "store", quota_bytes=10) as store:
        store.put(b"12345")
        store.put(b"12345")
        store.put(b"67890")

        with pytest.raises(QuotaError, match="remove checkpoints"):
            store.put(b"!")
        assert store.used_bytes == 10 and len(list(store)) == 2


def test_what_was_collected_makes_room_again(tmp_path: Path) -> None:
    with BlockStore(tmp_path / "store", quota_bytes=10) as store:
        store.put(b"0123456789")

        assert store.collect() == (1, 10)
        store.put(b"9876543210")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_said_clearly_and_harms_nothing(store: BlockStore, monkeypatch, code: int, call: str) -> None:
    kept = store.put(b"kept")

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(DiskFullError, match="no space left on the disk of"):
            store.put(b"lost")

    assert store.get(kept) == b"kept" and list(store) == [kept]
    assert store.used_bytes == 4
    store.put(b"lost")
    assert store.used_bytes == 8


def test_a_failed_block_does_not_undo_those_before_it(tmp_path: Path) -> None:
    blocks = [(Cid.of(data), data) for data in (b"12345", b"67890", b"more than the quota")]
    with BlockStore(tmp_path / "store", quota_bytes=10) as store:
        with pytest.raises(QuotaError):
            store.put_all(blocks)

        assert set(store) == {cid for cid, _ in blocks[:2]}


@pytest.mark.skipif(not locks.CAN_LOCK, reason="this system has no locks on files")
def test_one_process_writes_and_others_read(store: BlockStore) -> None:
    cid = store.put(b"bytes")

    with pytest.raises(StoreError, match="another process writes"):
        BlockStore(store.path)
    with BlockStore(store.path, read_only=True) as reader:
        assert reader.get(cid) == b"bytes" and reader.used_bytes == 5
        for write in (lambda: reader.put(b"x"), reader.collect, lambda: reader.pin(cid), lambda: reader.unpin(cid)):
            with pytest.raises(StoreError, match="reading only"):
                write()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")

    with pytest.raises(StoreError, match="not a block store"):
        BlockStore(tmp_path)
    with pytest.raises(StoreError, match="there is no block store"):
        BlockStore(tmp_path / "nowhere", read_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_store_of_another_version_is_not_touched(store: BlockStore) -> None:
    store.close()
    (store.path / "STORE").write_text("legion_p2p block store 2\n")

    with pytest.raises(StoreError, match="block store 2"):
        BlockStore(store.path)


def test_drafts_of_a_crash_are_gone_after_opening(store: BlockStore) -> None:
    (store.path / "drafts" / "7").write_bytes(b"hal")
    store.close()

    with BlockStore(store.path) as again:
        assert not list((again.path / "drafts").iterdir())


def test_a_pin_keeps_all_that_its_root_needs_and_only_that(store: BlockStore) -> None:
    leaves = [store.put(bytes([i])) for i in range(4)]
    inner = node(store, leaves[0], leaves[1])
    root = node(store, inner, leaves[1], leaves[2])
    store.pin(root, "step 7")
    outer = node(store, root)

    assert store.collect()[0] == 2
    assert set(store) == {root, inner, *leaves[:3]} and outer not in store
    assert store.pins() == {root: "step 7"}

    store.unpin(root)
    store.collect()
    assert not list(store)


def test_what_two_pins_share_stays_until_the_second_goes(store: BlockStore) -> None:
    leaf = store.put(b"leaf")
    first, second = node(store, leaf), node(store, leaf, leaf)
    store.pin(first), store.pin(second)

    store.unpin(first)
    store.collect()

    assert set(store) == {second, leaf}


def test_a_pin_may_come_before_its_blocks(store: BlockStore) -> None:
    leaf = b"leaf"
    written = dagcbor.encode([Cid.of(leaf)])
    store.pin(Cid.of(written, DAG_CBOR))

    store.put(written, DAG_CBOR)
    store.collect()
    store.put(leaf)
    store.collect()

    assert len(list(store)) == 2


def test_what_is_held_is_not_garbage(store: BlockStore) -> None:
    with store.hold():
        leaf = store.put(b"leaf")
        assert store.collect() == (0, 0)
        with store.hold():
            pass
        root = node(store, leaf)
        store.collect()
        store.pin(root)

    store.collect()
    assert set(store) == {leaf, root}


def test_a_block_that_was_there_before_is_held_when_it_is_put_again(store: BlockStore) -> None:
    leaf = store.put(b"leaf")

    with store.hold():
        store.put(b"leaf")
        store.collect()

        assert leaf in store


def test_nothing_is_collected_while_a_pinned_node_is_damaged(store: BlockStore) -> None:
    leaf = store.put(b"leaf")
    root = node(store, leaf)
    store.pin(root)
    written = store.get(root)
    file_of(store, root).write_bytes(b"damage")

    for _ in range(2):
        with pytest.raises(StoreError, match="fetch it again"):
            store.collect()
        assert leaf in store

    store.put(written, DAG_CBOR)
    assert store.collect() == (0, 0)


def test_a_walk_meets_each_block_once_and_a_node_before_its_links(store: BlockStore) -> None:
    a, b = store.put(b"a"), store.put(b"b")
    inner = node(store, a, b, a)
    root = node(store, a, inner)

    assert [cid for cid, _ in store.walk(root)] == [root, a, inner, b]


def test_a_walk_names_what_is_missing(store: BlockStore) -> None:
    gone, there = Cid.of(b"gone"), store.put(b"there")
    root = node(store, gone, there)
    missing: list[MissingBlockError] = []

    with pytest.raises(MissingBlockError, match=str(gone)):
        list(store.walk(root))
    assert [cid for cid, _ in store.walk(root, missing.append)] == [root, there]
    assert [bad.cid for bad in missing] == [str(gone)]


def test_a_node_that_is_none_stops_a_walk_and_not_a_collection(store: BlockStore) -> None:
    root = store.put(b"\xff", DAG_CBOR)
    store.pin(root)

    with pytest.raises(DecodeError):
        list(store.walk(root))
    assert store.collect() == (0, 0)


def test_threads_may_put_and_collect_at_the_same_time(store: BlockStore) -> None:
    def work(seed: int) -> None:
        for i in range(5):
            with store.hold():
                leaf = store.put(bytes([i]))
                root = node(store, leaf, Cid.of(bytes([seed])))
                store.pin(root)
            store.collect()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(store.pins()) == 20 and len(list(store)) == 25
    assert all(store.get(cid) for cid in store)
    assert store.used_bytes == sum(store.size_of(cid) or 0 for cid in store)


WRITER = """
import os, random, signal, sys, time
from legion_p2p.store.blocks import BlockStore

def write_for_ever(path, rng, acknowledged):
    store = BlockStore(path)
    while True:
        cid = store.put(rng.randbytes(rng.choice((1, 1000, 300_000))))
        os.write(acknowledged, f"{cid}\\n".encode())

for life in range(int(sys.argv[2])):
    rng = random.Random(life)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        write_for_ever(sys.argv[1], rng, writer)
    os.close(writer)
    with open(reader) as acknowledged:
        for _ in range(rng.randrange(4)):
            print(acknowledged.readline(), end="")
        time.sleep(rng.random() * 0.008)
        os.kill(child, signal.SIGKILL)
        print(acknowledged.read(), end="")
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the writer is a fork of one that has imported all")
def test_every_acknowledged_block_survives_kill_9_at_any_moment(tmp_path: Path, forks: ForkServer) -> None:
    done = forks.run(
        [sys.executable, "-c", WRITER, str(tmp_path / "store"), "200"],
        capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    acknowledged = {Cid.parse(line) for line in done.stdout.split()}

    damaged: list[Cid] = []
    with BlockStore(tmp_path / "store", on_corrupt=lambda cid, _: damaged.append(cid)) as store:
        whole = {cid for cid in store if store.get(cid)}

    assert len(acknowledged) > 200
    assert acknowledged <= whole and not damaged
