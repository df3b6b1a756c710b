"""How a peer ends where its files are taken away from it: it leaves in order, and the model is never lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from legion_p2p.train.tokens import MAX_COPIED_BYTES
from tests.forking import ForkServer


def start(forks: ForkServer, tmp_path: Path, *words: str) -> "subprocess.Popen[str]":
    line = [
        sys.executable,
        "-m",
        "legion_p2p.cli.peer",
        "--new-run",
        "ends",
        "--preset",
        "xxs",
        "--json",
        "--threads",
        "1",
        *words,
    ]
    env = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    return forks.popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env)


def read_until(process: "subprocess.Popen[str]", name: str) -> list[dict]:
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(json.loads(line))
        if said[-1]["event"] == name:
            return said
    raise AssertionError(f"it ended before {name}: {said} {process.communicate()[1]}")


@pytest.mark.parametrize("takes_away", ["the folder", "the folder, with a file in its place"])
def test_the_model_is_saved_though_its_folder_is_gone(tmp_path: Path, forks: ForkServer, takes_away: str) -> None:
    process = start(forks, tmp_path, "--steps", "40", "--out", "o", "--identity", "none")
    try:
        read_until(process, "step")
        shutil.rmtree(tmp_path / "o")
        if takes_away != "the folder":
            (tmp_path / "o").touch()
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()

    events = [json.loads(line)["event"] for line in out.splitlines()]
    assert "Traceback" not in err and "run.left" in events and events[-1] == "peer.left"
    if takes_away == "the folder":
        assert process.returncode == 0, err
        assert load_file(tmp_path / "o" / "model.safetensors")
    else:
        assert process.returncode == 5 and "could not be written to o" in err
        (saved,) = (tmp_path / "data" / "legion_p2p").glob("*.safetensors")
        assert str(saved) in err and load_file(saved)


def test_a_text_that_is_emptied_is_an_error_and_an_orderly_leave(tmp_path: Path, forks: ForkServer) -> None:
    text = tmp_path / "large.txt"
    text.write_bytes(b"some words and more\n" * (MAX_COPIED_BYTES // 20 + 1000))
    process = start(forks, tmp_path, "--data", str(text), "--out", "o", "--identity", "none")
    try:
        read_until(process, "step")
        text.write_bytes(b"")
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()

    events = [json.loads(line)["event"] for line in out.splitlines()]
    assert process.returncode == 1, err
    assert "large.txt was cut off while it is trained on" in err and "Traceback" not in err
    assert "run.left" in events and events[-1] == "peer.left"
    assert load_file(tmp_path / "o" / "model.safetensors")
