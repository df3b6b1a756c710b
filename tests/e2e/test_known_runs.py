"""`legion-ctl runs ADDR`: which runs there are behind an address."""

import json
import subprocess
import sys
import time
from pathlib import Path

from processes import UNHURRIED, Process

from tests.forking import ForkServer
from tests.waiting import PATIENCE_S


def listed(forks: ForkServer, address: str, *more: str) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-m", "legion_p2p.cli.ctl", "runs", address, *more]
    return forks.run(words, capture_output=True, text=True, timeout=PATIENCE_S)


def test_the_runs_behind_an_address_are_listed_by_name_members_and_id(tmp_path: Path, forks: ForkServer) -> None:
    name = f"e2e/{time.time_ns()}"
    peer = Process(
        "-m", "legion_p2p.cli.peer", "--new-run", name, "--preset", "xxs", "--batch", "1", "--json", "--no-status",
        "--threads", "1", "--listen", "/ip4/127.0.0.1/tcp/0", "--identity", str(tmp_path / "key"), "--store", "none", *UNHURRIED,
        forks=forks,
    )  # fmt: skip
    try:
        run = peer.wait_for("run.created")["run"]
        address = peer.wait_for("run.join_with")["command"].split()[-1]

        lines = listed(forks, address)
        (record,) = json.loads(listed(forks, address, "--json").stdout)

        assert (lines.returncode, lines.stdout) == (0, f"{name}  1 member  {run}\n"), lines.stderr
        assert (record["name"], record["n_members"], record["id"]) == (name, 1, run)
    finally:
        peer.close()


def test_an_address_at_which_nobody_answers_is_named(forks: ForkServer) -> None:
    done = listed(forks, "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWHHzSeKaY8xuZVzkLbKFfvNgPPeKhFBGrMbNzbm5akpqu")

    assert done.returncode == 3 and done.stdout == "" and "Traceback" not in done.stderr
    assert "127.0.0.1/tcp/1" in done.stderr and "connection refused" in done.stderr
