"""A bucket between peers that never meet: checkpoints in object storage, and in a folder on a share."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from workers import loss_of, model_of

import legion_p2p as legion
from legion_p2p.cli import ctl
from legion_p2p.cli.failures import DONE, FAILED
from legion_p2p.cli.running import run_app
from legion_p2p.store.remote_files import open_files
from tests.waiting import PATIENCE_S

BUCKET = "bucket"


@pytest.fixture(scope="module")
def object_storage() -> Iterator[str]:
    """The URL of a bucket in S3 as moto plays it. One for all: s3fs keeps its connections."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed here")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed here")
    pytest.importorskip("s3fs", reason="s3fs is not installed here")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        }.items():  # fmt: skip
            environment.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"
    server.stop()


def train(run: legion.Run, seed: int) -> tuple[str, int, str]:
    """A peer trains alone, and ends: the common model's digest before, the run's step before, and the digest after."""
    model = model_of(seed=seed)
    opt = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.05), model)
    before, step_before = opt.common_digest(), opt.run_step
    for step in range(6):
        opt.zero_grad()
        loss_of(model, seed, step).backward()
        opt.step()
    return before, step_before, run.finish(timeout_s=PATIENCE_S)


def peer_at(folder: Path) -> legion.Peer:
    store = legion.Store(folder / "store", checkpoint_every_s=1)
    return legion.Peer(listen="/ip4/127.0.0.1/tcp/0", status=False, identity=folder / "key", store=store, lan=False)


def checkpoint(*words: object) -> int:
    return run_app(ctl.app, ["checkpoint", *map(str, words)])


def test_peers_that_never_meet_train_in_turns_through_object_storage(object_storage: str, tmp_path: Path) -> None:
    here, there, url = tmp_path / "here", tmp_path / "there", f"{object_storage}/mailbox"
    with legion.create(legion.NewRun("mailbox"), model_of(seed=1), peer=peer_at(here)) as run:
        _, began, pushed = train(run, seed=1)
        id = run.id

    assert checkpoint("push", url, "--store", here / "store") == DONE
    shutil.rmtree(here)
    assert checkpoint("pull", url, "--store", there / "store") == DONE

    with legion.join("mailbox", peer=peer_at(there)) as run:
        assert run.id == id
        pulled, went_on, after = train(run, seed=2)
    assert pulled == pushed != after
    assert (began, went_on) == (0, 6)


def test_a_bucket_that_lies_gives_no_block_and_peers_or_the_next_bucket_give_the_rest(
    object_storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    with legion.create(legion.NewRun("untrusted"), model_of(seed=1), peer=peer_at(here)) as run:
        train(run, seed=1)
    far, share = f"{object_storage}/liar", (tmp_path / "share").as_uri()
    for url in (far, share):
        assert checkpoint("push", url, "--store", here / "store") == DONE
    files = open_files(far)
    damaged = max(files.sizes("blocks").items(), key=lambda item: item[1])[0]
    files.write({f"blocks/{damaged[-2]}/{damaged}": b"something else"})

    capsys.readouterr()
    assert checkpoint("pull", far, "--store", there / "store", "--json") == FAILED
    pulled = json.loads(capsys.readouterr().out)
    assert pulled["pulled"]["damaged"] == [damaged]
    assert checkpoint("pull", share, pulled["cid"], "--store", there / "store", "--json") == DONE

    assert json.loads(capsys.readouterr().out)["pulled"]["n_blocks"] == 1
