"""docs/real-models.md, command by command: from a folder of text to a model that transformers loads."""

import json
import os
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from processes import ROOT, Process

from tests.forking import ForkServer

pytestmark = pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("tokenizers") is None, reason="transformers or tokenizers is not installed"
)

PAGE = (ROOT / "docs" / "real-models.md").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line) for line in re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)]
MODULES = {"legion-ctl": ["-m", "legion_p2p.cli.ctl"], "legion-peer": ["-m", "legion_p2p.cli.peer"], "python": []}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
         "vocab_size": 400, "max_position_embeddings": 64}  # fmt: skip


def arguments(words: list[str], **instead: str) -> list[str]:
    """Those of a Python process that does what the page's command does; words of the page are replaced."""
    return [*MODULES[words[0]], *(instead.get(word, word) for word in words[1:])]


def run(forks: ForkServer, folder: Path, words: list[str], **instead: str) -> str:
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = forks.run(
        [sys.executable, *arguments(words, **instead)], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return str(done.stdout)


def peer(folder: Path, forks: ForkServer, words: list[str], *more: str, **instead: str) -> Process:
    here = {name: str(folder / name) for name in ("books-8k", "store", "store-2")} | {
        "hf:model.json": f"hf:{folder / 'model.json'}"
    }
    quiet = ("--json", "--no-status", "--threads", "1", "--identity", "none", "--device", "cpu")
    return Process(*arguments(words, **{**here, "2000": "40", **instead}), *quiet, *more, forks=forks)


def test_from_a_folder_of_text_to_a_model_that_transformers_loads(tmp_path: Path, forks: ForkServer) -> None:
    install, prepare, show, dry_run, create, join, list_, export, use, sharded = COMMANDS
    (tmp_path / "books").mkdir()
    for i in range(20):
        (tmp_path / "books" / f"{i}.txt").write_text(f"Once there was a fox, the {i}th of his name.\n" * 60)
    said = json.loads(re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1])  # type: ignore[index]
    (tmp_path / "model.json").write_text(json.dumps({**said, **SMALL}))
    assert install == ["pip", "install", "legion_p2p[hf,data]"]
    peers: list[Process] = []

    run(forks, tmp_path, prepare, **{"8192": "400"})
    dataset = run(forks, tmp_path, show).split()[2]
    assert "parameters" in run(forks, tmp_path, dry_run)
    try:
        peers.append(peer(tmp_path, forks, create, "--wait-for-members", "2", "--listen", "/ip4/127.0.0.1/tcp/0"))
        command = shlex.split(peers[0].wait_for("run.join_with")["command"])
        address = command[command.index("--initial-peers") + 1]
        peers.append(peer(tmp_path, forks, join, "--listen", "/ip4/127.0.0.1/tcp/0", ADDR=address))
        ends = [each.wait_for("peer.left") for each in peers]
    finally:
        for each in peers:
            each.close()
    assert [end["steps"] for end in ends] == [40, 40] and all(end["val_loss"] < 5.5 for end in ends)  # ln 400 = 5.99
    assert (tmp_path / "store-2-data" / dataset / "dataset.cbor").is_file()  # it was fetched from the first peer

    cid = run(forks, tmp_path, list_).split()[0]
    run(forks, tmp_path, export, CID=cid)
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert "Once" in run(forks, tmp_path, use)
    assert "as bf16" in run(forks, tmp_path, [*sharded, "--dry-run"])  # as sharded runs send; others say int8
