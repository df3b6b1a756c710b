"""Checkpoints in a bucket, over fsspec's own memory and files: what is pushed is pulled, and nothing that lies is believed."""

import inspect
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest

from legion_p2p.cli import ctl
from legion_p2p.cli.failures import DONE, FAILED, USAGE
from legion_p2p.cli.running import run_app
from legion_p2p.core.cids import Cid
from legion_p2p.core.manifest import MAX_BLOCK_BYTES
from legion_p2p.errors import DecodeError, MissingBlockError, StoreError, UsageError
from legion_p2p.store import bucket as bucket_module
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.bucket import MAX_ROOTS, Bucket
from legion_p2p.store.checkpoint_summary import damage_of
from legion_p2p.store.remote_files import HubFiles, SystemFiles
from tests.checkpoint_of import Run, checkpointed

PLENTY = 1 << 40


@dataclass
class Here:
    """A store with a run of two checkpoints, and what is in the memory that stands for a bucket."""

    store: BlockStore
    run: Run
    first: Cid
    second: Cid
    url: str
    files: dict[str, Any]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    with BlockStore(tmp_path / "here") as store:
        run, first = checkpointed(store)
        run.update(store, 1)
        yield Here(store, run, first, run.publish(store, 20), "memory://bucket", files.store)
    files.store.clear()


def path_in_bucket(cid: Cid) -> str:
    return f"/bucket/blocks/{str(cid)[-2]}/{cid}"


def put(here: Here, path: str, data: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(path, data)


def a_leaf(here: Here) -> Cid:
    return [cid for cid, data in here.store.walk(here.second) if cid.codec == "raw" and len(data) > 100][-1]


def test_what_was_pushed_is_pulled_and_a_second_time_nothing_moves(here: Here, tmp_path: Path) -> None:
    bucket = Bucket(here.url)
    assert not bucket.check()

    pushed = bucket.push(here.store, here.second, "why")
    again = bucket.push(here.store, here.second, "why")
    with BlockStore(tmp_path / "there") as there:
        pulled = bucket.pull(there, here.second, PLENTY)
        once_more = bucket.pull(there, here.second, PLENTY)
        assert damage_of(there, here.second, lambda _: None) == []

    n = len(list(here.store.walk(here.second)))
    assert bucket.check() and bucket.roots() == [here.second]
    assert (pushed.n_blocks, pushed.n_had) == (n, 0) and (again.n_blocks, again.n_had) == (0, n)
    assert (pulled.n_blocks, pulled.n_had, pulled.missing, pulled.damaged) == (n, 0, (), ())
    assert (once_more.n_blocks, once_more.n_had) == (0, n)


def test_a_bucket_of_files_is_a_block_store(here: Here, tmp_path: Path) -> None:
    Bucket(f"file://{tmp_path}/share/run").push(here.store, here.first, "why")

    with BlockStore(tmp_path / "share" / "run", read_only=True) as store:
        assert damage_of(store, here.first, lambda _: None) == []
        assert store.pins() == {here.first: "why"}


def test_the_root_is_named_after_all_that_it_needs(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_module, "BATCH", 3)
    Bucket(here.url).push(here.store, here.second, "why")

    assert next(iter(here.files)) == "/bucket/STORE" and list(here.files)[-1] == f"/bucket/pins/{here.second}"


def test_a_block_that_was_cut_short_is_written_again(here: Here) -> None:
    bucket = Bucket(here.url)
    bucket.push(here.store, here.second, "why")
    leaf = a_leaf(here)
    put(here, path_in_bucket(leaf), here.store.get(leaf)[:-1])

    assert bucket.push(here.store, here.second, "why").n_blocks == 1
    assert bucket.get(leaf) == here.store.get(leaf)


def test_other_bytes_and_missing_ones_are_named_and_not_stored(here: Here, tmp_path: Path) -> None:
    bucket = Bucket(here.url)
    bucket.push(here.store, here.second, "why")
    leaf = a_leaf(here)
    put(here, path_in_bucket(leaf), b"other" * 20)
    gone = next(cid for cid, _ in here.store.walk(here.second) if cid.codec == "raw" and cid != leaf)
    del here.files[path_in_bucket(gone)]

    with BlockStore(tmp_path / "there") as there:
        pulled = bucket.pull(there, here.second, PLENTY)
        assert leaf not in there and gone not in there

    assert (pulled.missing, pulled.damaged) == ((str(gone),), (str(leaf),))


def test_a_block_that_is_too_large_is_not_read_to_its_end(here: Here, tmp_path: Path) -> None:
    large = bytes(MAX_BLOCK_BYTES + 1)
    put(here, path_in_bucket(Cid.of(large)), large)

    with pytest.raises(DecodeError, match="other bytes"):
        Bucket(here.url).get(Cid.of(large))
    fits = bytes(MAX_BLOCK_BYTES)
    put(here, path_in_bucket(Cid.of(fits)), fits)
    assert Bucket(here.url).get(Cid.of(fits)) == fits


def test_a_pull_of_more_than_was_asked_for_is_given_up(here: Here, tmp_path: Path) -> None:
    bucket = Bucket(here.url)
    n_bytes = bucket.push(here.store, here.second, "why").n_bytes

    with BlockStore(tmp_path / "there") as there, pytest.raises(StoreError, match="is more than"):
        bucket.pull(there, here.second, n_bytes - 1)
    with BlockStore(tmp_path / "elsewhere") as there:
        assert bucket.pull(there, here.second, n_bytes).n_bytes == n_bytes


def test_a_node_that_no_publisher_has_signed_is_followed_nowhere(here: Here, tmp_path: Path) -> None:
    shard = next(cid for cid, _ in here.store.walk(here.second) if cid.codec == "dag-cbor" and cid != here.second)
    put(here, path_in_bucket(shard), here.store.get(shard))

    with BlockStore(tmp_path / "there") as there, pytest.raises(DecodeError):
        Bucket(here.url).pull(there, shard, PLENTY)


def test_names_that_are_no_cids_lead_nowhere(here: Here, tmp_path: Path) -> None:
    bucket = Bucket(here.url)
    bucket.push(here.store, here.second, "why")
    for name in ("pins/README", "pins/..", "pins/%2e%2e", "pins/" + "b" * 200, "blocks/x/" + "q" * 59):
        put(here, f"/bucket/{name}", b"x")

    assert bucket.roots() == [here.second]
    with BlockStore(tmp_path / "there") as there:
        bucket.pull(there, here.second, PLENTY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]


def test_a_bucket_with_more_checkpoints_than_are_looked_at_asks_for_a_cid(here: Here) -> None:
    bucket = Bucket(here.url)
    for i in range(MAX_ROOTS):
        put(here, f"/bucket/pins/{Cid.of(b'%d' % i, 'dag-cbor')}", b"")
    assert bucket.newest() is None, "none of them is there"
    put(here, f"/bucket/pins/{here.second}", b"")

    with pytest.raises(StoreError, match="give the CID of one"):
        bucket.newest()


def test_the_newest_is_that_with_the_most_steps_and_forged_ones_do_not_count(here: Here) -> None:
    bucket = Bucket(here.url)
    bucket.push(here.store, here.second, "why")
    bucket.push(here.store, here.first, "why")
    forged = here.store.get(here.second).replace(b"\x14", b"\x15", 1)  # another step, or some other field
    cid = Cid.of(forged, "dag-cbor")
    put(here, path_in_bucket(cid), forged)
    put(here, f"/bucket/pins/{cid}", b"")

    found = bucket.newest()

    assert found is not None and found[0] == here.second and found[1].step == 20
    assert bucket.newest(run=str(found[1].run)) == found and bucket.newest(run="another") is None


def test_of_two_runs_one_has_to_be_chosen(here: Here, tmp_path: Path) -> None:
    bucket = Bucket(here.url)
    bucket.push(here.store, here.second, "why")
    with BlockStore(tmp_path / "other") as store:
        _, other = checkpointed(store, seed=7, shard_elements=500)
        bucket.push(store, other, "why")

    with pytest.raises(StoreError, match="checkpoints of 2 runs"):
        bucket.newest()


def test_a_store_of_another_version_is_refused(here: Here) -> None:
    put(here, "/bucket/STORE", b"legion_p2p block store 2\n")

    with pytest.raises(StoreError, match="store 2"):
        Bucket(here.url).check()


@pytest.mark.parametrize("url", ["", "bucket", "s3://", "zip://x::http://y", "http://x/y", "github://x", "simplecache::s3://b/c"])
def test_an_address_of_another_kind_is_refused_before_anything_is_loaded(url: str) -> None:
    with pytest.raises(UsageError, match="the form is"):
        Bucket(url)


def test_what_a_library_raises_is_a_store_error_that_names_the_place(here: Here) -> None:
    class Refusing:
        def cat_file(self, *_: Any, **__: Any) -> bytes:
            raise PermissionError("no rights\nand more")

    bucket = Bucket("s3://x/y", SystemFiles(Refusing(), "x/y", "s3://x/y"))

    with pytest.raises(StoreError, match=r"^s3://x/y: no rights$"):
        bucket.check()


def test_a_hub_gets_many_files_in_one_commit_that_the_real_library_takes(here: Here) -> None:
    from huggingface_hub import HfApi

    commits: list[dict[str, Any]] = []

    class Api:
        def __init__(self, **given: Any) -> None:
            inspect.signature(HfApi.__init__).bind(self, **given)

        def create_commit(self, **given: Any) -> None:
            inspect.signature(HfApi.create_commit).bind(self, **given)
            commits.append(given)

    memory = fsspec.filesystem("memory")
    where = SimpleNamespace(repo_id="me/run", repo_type="model", revision="main", path_in_repo="legion")
    system = SimpleNamespace(
        endpoint="https://hub.example", token=None, resolve_path=lambda _: where, cat_file=memory.cat_file, find=memory.find,
        invalidate_cache=memory.invalidate_cache,
    )  # fmt: skip
    url = "hf://me/run/legion"
    bucket = Bucket(url, HubFiles(SystemFiles(system, "/bucket", url), system, "/bucket", make_api=Api))

    pushed = bucket.push(here.store, here.second, "why")

    written = [[operation.path_in_repo for operation in commit["operations"]] for commit in commits]
    assert written[0] == ["legion/STORE"] and len(written) == 2
    assert len(written[1]) == pushed.n_blocks + 1 and written[1][-1] == f"legion/pins/{here.second}"
    assert {commit["repo_id"] for commit in commits} == {"me/run"}


def ctl_says(capsys: pytest.CaptureFixture[str], *words: object, code: int = DONE) -> str:
    found = run_app(ctl.app, ["checkpoint", *map(str, words)])
    out, err = capsys.readouterr()
    assert found == code, err
    return out or err


def test_the_commands_push_the_newest_and_pull_it(here: Here, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, theirs = ("--store", here.store.path), ("--store", tmp_path / "theirs")

    told = ctl_says(capsys, "push", here.url, *mine)
    assert str(here.second) in told and "written" in told
    pulled = json.loads(ctl_says(capsys, "pull", here.url, *theirs, "--json"))
    assert pulled["cid"] == str(here.second) and not pulled["pulled"]["missing"]
    assert "0 blocks, 0 B from memory://bucket" in ctl_says(capsys, "pull", here.url, here.second, *theirs)

    del here.files[path_in_bucket(a_leaf(here))]
    told = ctl_says(capsys, "pull", here.url, "--store", tmp_path / "late", code=FAILED)
    assert f"block {a_leaf(here)} is missing there" in told and f"checkpoint fetch {here.second}" in told
    assert "is not in memory://bucket" in ctl_says(capsys, "pull", here.url, here.first, *theirs, code=FAILED)
    assert "must be more than 0" in ctl_says(capsys, "pull", here.url, "--max-gb", 0, *theirs, code=USAGE)
    with BlockStore(tmp_path / "theirs", read_only=True) as store:
        assert list(store.pins()) == [here.second]
    with pytest.raises(MissingBlockError):
        Bucket(here.url).get(here.first)


def test_there_is_nothing_to_push_or_pull_where_there_is_nothing(
    here: Here, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no block store in memory://none" in ctl_says(capsys, "pull", "memory://none", code=FAILED)
    with BlockStore(tmp_path / "empty"):
        pass
    assert "there is no checkpoint" in ctl_says(capsys, "push", here.url, "--store", tmp_path / "empty", code=FAILED)
    assert asdict(Bucket(here.url).push(here.store, here.first, ""))["n_had"] == 0
