"""legion-ctl checkpoint: what it prints, writes and refuses, on real stores."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from legion_p2p.cli import ctl
from legion_p2p.cli.failures import DONE, FAILED, MISFIT, USAGE
from legion_p2p.cli.running import run_app
from legion_p2p.core.cids import Cid
from legion_p2p.core.run import run_id
from legion_p2p.store.blocks import BlockStore
from legion_p2p.train.gpt_config import GPTConfig
from tests.checkpoint_of import FOUNDER, Run, checkpointed
from tests.forking import ForkServer


class Cli:
    """legion-ctl checkpoint on one store."""

    def __init__(self, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.store = store
        self._capsys = capsys

    def __call__(self, *words: object, code: int = DONE) -> str:
        """What it prints: stdout, or stderr where it fails on purpose."""
        found = run_app(ctl.app, ["checkpoint", *map(str, words), "--store", str(self.store)])
        out, err = self._capsys.readouterr()
        assert found == code, err
        return out or err

    def json(self, *words: object, code: int = DONE) -> dict | list:
        line = self(*words, "--json", code=code)
        assert line.count("\n") == 1
        return json.loads(line)


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(tmp_path / "store", capsys)


@pytest.fixture
def run_and_roots(cli: Cli) -> tuple[Run, Cid, Cid]:
    """A run with two checkpoints: shard 1 has moved between them."""
    with BlockStore(cli.store) as store:
        run, first = checkpointed(store)
        run.update(store, 1)
        second = run.publish(store, 20, str(first), state={"rng": b"\x01\xff", "lr": 0.5})
    return run, first, second


def leaf_of(cli: Cli, root: Cid) -> Path:
    """The file of one of a checkpoint's leaves."""
    with BlockStore(cli.store, read_only=True) as store:
        leaf = next(cid for cid, _ in store.walk(root) if cid.codec == "raw" and cid != Cid.of(b""))
        last = [cid for cid, _ in store.walk(root) if cid.codec == "raw"][-1]
    assert leaf != last
    (found,) = cli.store.glob(f"blocks/?/{last}")
    return found


def test_list_shows_the_newest_first(cli: Cli, run_and_roots) -> None:
    _, first, second = run_and_roots

    told = cli("list")
    records = cli.json("list")

    assert told.index(str(second)) < told.index(str(first)) and "tiny" in told and "step 20" in told
    assert [(one["cid"], one["step"], one["n_missing"]) for one in records] == [(str(second), 20, 0), (str(first), 10, 0)]
    assert records[0]["parent"] == str(first) and records[0]["publisher"] == FOUNDER.peer_id


def test_list_tells_two_runs_of_one_name_apart(cli: Cli) -> None:
    with BlockStore(cli.store) as store:
        runs = [checkpointed(store, update_codec=name)[0] for name in ("int8", "fp16")]
    ids = [run_id(run.signed) for run in runs]

    told = cli("list")

    assert ids[0] != ids[1] and all(f"tiny ..{run[-8:]}, step 10" in told for run in ids)


def test_an_empty_store_and_one_that_is_not_there_are_told_apart(cli: Cli) -> None:
    assert "there is no block store in" in cli("list", code=FAILED)
    with BlockStore(cli.store):
        pass

    assert "there is no checkpoint in" in cli("list") and cli.json("list") == []


def test_a_store_that_a_peer_writes_to_can_be_read_and_not_written(cli: Cli, run_and_roots, tmp_path: Path) -> None:
    _, first, _ = run_and_roots
    cli("export", first, "--car", tmp_path / "x.car")
    with BlockStore(cli.store):
        assert str(first) in cli("list")
        assert "another process writes" in cli("import", tmp_path / "x.car", code=FAILED)


def test_show_tells_of_every_shard(cli: Cli, run_and_roots) -> None:
    run, first, second = run_and_roots

    told = cli("show", second)
    record = cli.json("show", second)

    assert str(first) in told and "tiny" in told and "lr=0.5" in told
    assert record["state"] == {"lr": 0.5, "rng": "01ff"}
    assert [shard["version"] for shard in record["shards"]] == run.versions
    assert record["shards"][1]["base_version"] == 0 and record["shards"][1]["log_bytes"] > 0


def test_verify_finds_nothing_wrong_with_what_is_whole(cli: Cli, run_and_roots) -> None:
    _, _, second = run_and_roots

    assert "is whole" in cli("verify", second)
    result = cli.json("verify", second)
    assert result["ok"] and result["n_blocks"] > 20 and result["problems"] == []


def test_verify_names_what_is_damaged_and_what_is_missing(cli: Cli, run_and_roots) -> None:
    _, _, second = run_and_roots
    leaf = leaf_of(cli, second)

    leaf.write_bytes(b"damage")
    assert leaf.name in cli("verify", second, code=FAILED)
    leaf.unlink()
    result = cli.json("verify", second, code=FAILED)

    assert not result["ok"] and leaf.name in result["problems"][0]


def test_verify_finds_a_log_that_leads_elsewhere(cli: Cli) -> None:
    with BlockStore(cli.store) as store:
        run, _ = checkpointed(store)
        run.reference(0)[0] += 1
        root = run.publish(store, 30)

    assert "is not what its digest says" in cli("verify", root, code=FAILED)


def test_export_and_import_bring_a_checkpoint_to_another_store(cli: Cli, run_and_roots, tmp_path: Path, capsys) -> None:
    run, first, second = run_and_roots
    other = Cli(tmp_path / "other", capsys)

    assert "x.car: a CAR of" in cli("export", second, "--car", tmp_path / "x.car")
    assert other("import", tmp_path / "x.car").strip() == str(second)
    written = cli.json("export", second, "--safetensors", tmp_path / "st", "--dcp", tmp_path / "dcp", "--names", "run")
    by_folder = [other.json("import", tmp_path / kind)["cids"][0] for kind in ("st", "dcp")]

    assert written["safetensors"]["names"] == "run" and set(written) == {"cid", "safetensors", "dcp"}
    assert {p.name for p in run.spec.params} == set(load_file(tmp_path / "st" / "model.safetensors"))
    for cid in by_folder:
        assert other.json("diff", second, cid)["n_shards_changed"] == run.plan.n_shards  # bases of their own
        assert all(one["changed"] == 0 for one in other.json("diff", second, cid)["parameters"])
    with BlockStore(other.store) as store:
        assert set(store.pins()) == {second, *map(Cid.parse, by_folder)}
    assert first != second


def test_what_is_imported_can_be_signed_by_a_key_on_disk(cli: Cli, run_and_roots, tmp_path: Path) -> None:
    cli("export", run_and_roots[1], "--safetensors", tmp_path / "st")
    key = ("--identity", tmp_path / "key")

    cids = [cli.json("import", tmp_path / "st", *key)["cids"][0] for _ in range(2)]

    assert len({cli.json("show", cid)["checkpoint"]["publisher"] for cid in cids}) == 1


def test_diff_tells_what_moved(cli: Cli, run_and_roots) -> None:
    _, first, second = run_and_roots

    told = cli("diff", first, second)
    result = cli.json("diff", first, second)

    assert (result["n_shards_changed"], result["steps"], result["same_run"]) == (1, 10, True)
    assert result["shared_bytes"] > 10 * result["only_b_bytes"] > 0
    moved = [one for one in result["parameters"] if one["changed"]]
    assert 0 < len(moved) < len(result["parameters"]) and all(0 < one["relative"] < 1 for one in moved)
    assert moved[0]["name"] in told and "1 of 8 shards differ" in told


def test_models_of_other_parameters_cannot_be_compared(cli: Cli, run_and_roots) -> None:
    with BlockStore(cli.store) as store:
        _, other = checkpointed(store, config=GPTConfig(1, 2, 16, 8, 31))

    assert "different parameters" in cli("diff", run_and_roots[1], other, code=MISFIT)


def test_a_car_file_that_is_damaged_or_no_checkpoint_is_not_pinned(cli: Cli, run_and_roots, tmp_path: Path, capsys) -> None:
    whole, other = tmp_path / "x.car", Cli(tmp_path / "other", capsys)
    cli("export", run_and_roots[1], "--car", whole)
    data = whole.read_bytes()
    (tmp_path / "short.car").write_bytes(data[: len(data) // 2])
    (tmp_path / "less.car").write_bytes(data[: data.rindex(b"\x01\x55\x12\x20") - 2])
    (tmp_path / "none.car").write_bytes(b"nothing of the kind")

    for name in ("short.car", "less.car", "none.car"):
        other("import", tmp_path / name, code=FAILED)
    with BlockStore(other.store, read_only=True) as store:
        assert not store.pins()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["show", "nonsense"], "is not a CID"), (["export", str(Cid.of(b""))], "say what to write"),
        (["import", "/nowhere"], "no file"),
        (["show"], "--help"),
        (["export", str(Cid.of(b"")), "--car", "x", "--names", "hf"], "auto, run, gpt2, llama, transformers"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_mistakes_are_told_with_what_to_do(cli: Cli, words: list[str], expected: str) -> None:
    assert expected in cli(*words, code=USAGE)


def test_a_checkpoint_that_is_not_there_is_missing(cli: Cli, run_and_roots, tmp_path: Path) -> None:
    gone = Cid.of(b"gone", "dag-cbor")

    for words in (("show", gone), ("verify", gone), ("diff", gone, gone), ("export", gone, "--car", tmp_path / "x.car")):
        assert "missing" in cli(*words, code=FAILED)
    assert not list(tmp_path.glob("x.car*"))


@pytest.mark.parametrize("as_json", [False, True])
def test_a_car_goes_to_stdout_and_nothing_else_does(
    cli: Cli, run_and_roots, tmp_path: Path, forks: ForkServer, as_json: bool
) -> None:
    words = ["checkpoint", "export", str(run_and_roots[1]), "--car", "/dev/stdout", "--store", str(cli.store)]
    line = [sys.executable, "-m", "legion_p2p.cli.ctl", *words, *(["--json"] if as_json else [])]

    done = forks.run(line, capture_output=True, timeout=120, check=True)
    (tmp_path / "x.car").write_bytes(done.stdout)

    assert cli("import", tmp_path / "x.car").strip() == str(run_and_roots[1])
    assert b"a CAR of" in done.stderr or as_json


def test_a_device_and_a_link_stay_what_they_are_when_a_car_is_written_to_them(cli: Cli, run_and_roots, tmp_path: Path) -> None:
    (tmp_path / "link.car").symlink_to("elsewhere.car")

    cli("export", run_and_roots[1], "--car", "/dev/null")
    cli("export", run_and_roots[1], "--car", tmp_path / "link.car")

    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert (tmp_path / "link.car").is_symlink() and (tmp_path / "elsewhere.car").stat().st_size > 1000
    assert "stays as it is" in cli("export", run_and_roots[1], "--car", tmp_path, code=FAILED)
    assert "no space left" in cli("export", run_and_roots[1], "--car", "/dev/full", code=FAILED)


def test_a_car_is_read_from_a_pipe(cli: Cli, run_and_roots, tmp_path: Path) -> None:
    cli("export", run_and_roots[1], "--car", tmp_path / "x.car")
    words = f"{sys.executable} -m legion_p2p.cli.ctl checkpoint import /dev/stdin --store {tmp_path / 'other'}"

    done = subprocess.run(
        ["sh", "-c", f"cat {tmp_path / 'x.car'} | {words}"], capture_output=True, text=True, timeout=120, check=True
    )

    assert done.stdout.strip() == str(run_and_roots[1])


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "is empty, where a CAR file is expected"),
        (b"some words", "is plain text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"\x1f\x8b" + bytes(99), "is gzip, where a CAR file is expected; unpack it first"),
        (b"\x30" + bytes(7) + b"{" + bytes(99), "a file of safetensors, where a CAR file is expected; give the folder"),
        (bytes(99), "binary data of no known format"),
    ],
)
def test_an_import_says_what_a_file_is_and_what_was_expected(cli: Cli, tmp_path: Path, raw: bytes, told: str) -> None:
    (tmp_path / "x").write_bytes(raw)

    assert told in cli("import", tmp_path / "x", code=FAILED)


def test_a_car_that_lacks_blocks_names_itself_and_the_first_of_them(cli: Cli, run_and_roots, tmp_path: Path, capsys) -> None:
    cli("export", run_and_roots[1], "--car", tmp_path / "x.car")
    data = (tmp_path / "x.car").read_bytes()
    (tmp_path / "less.car").write_bytes(data[: data.rindex(b"\x01\x55\x12\x20") - 2])

    told = Cli(tmp_path / "other", capsys)("import", tmp_path / "less.car", code=FAILED)

    assert "less.car holds only part of a checkpoint: block" in told


def test_one_folder_never_holds_two_formats(cli: Cli, run_and_roots, tmp_path: Path) -> None:
    both = ("--safetensors", tmp_path / "x", "--dcp", tmp_path / "x")
    assert "a folder holds one format" in cli("export", run_and_roots[1], *both, code=USAGE)

    cli("export", run_and_roots[1], "--dcp", tmp_path / "x")

    assert "another format" in cli("export", run_and_roots[1], "--safetensors", tmp_path / "x", code=FAILED)


def test_a_cid_is_taken_as_ipfs_tools_print_it(cli: Cli, run_and_roots) -> None:
    for prefix in ("ipfs://", "/ipfs/", " "):
        assert str(run_and_roots[1]) in cli("show", f"{prefix}{run_and_roots[1]}")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to mount a small disk")
@pytest.mark.parametrize("kind", ["--car", "--safetensors", "--dcp"])
def test_a_full_disk_is_said_and_nothing_is_left_on_it(cli: Cli, run_and_roots, tmp_path: Path, kind: str) -> None:
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / "x"
    line = f"{sys.executable} -m legion_p2p.cli.ctl checkpoint export {run_and_roots[1]} {kind} {target} --store {cli.store}"
    small = (
        f"mount -t tmpfs -o size=12k none {tmp_path / 'disk'} || exit 77; {line}; echo code $?; find {tmp_path / 'disk'} -type f"
    )

    done = subprocess.run(["unshare", "-m", "sh", "-c", small], capture_output=True, text=True, timeout=120)
    if done.returncode == 77 or "code" not in done.stdout:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")

    assert done.stdout.split() == ["code", "1"], done.stdout + done.stderr
    assert "no space left" in done.stderr and "Traceback" not in done.stderr
