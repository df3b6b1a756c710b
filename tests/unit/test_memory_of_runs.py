"""What --dry-run says of memory is what a peer takes, as the system counts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from legion_p2p.config import NewRun
from legion_p2p.train.batches import MAX_EVAL_TOKENS, MAX_EVAL_WINDOWS, windows_at_once
from legion_p2p.train.described import described
from legion_p2p.train.job_plan import plan_of

MEASURED = """import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""
"""Linux counts the memory of a process's starter as its own peak, so a small process starts it, not the one of the tests."""


@pytest.mark.skipif(not hasattr(os, "wait4") or sys.platform != "linux", reason="counts as Linux does")
@pytest.mark.parametrize("preset", ["xxs", pytest.param("s", marks=pytest.mark.long)])
def test_the_memory_that_a_peer_takes_is_within_a_tenth_of_what_the_plan_says(preset: str, tmp_path: Path) -> None:
    words = [
        "--new-run",
        "x",
        "--preset",
        preset,
        "--steps",
        "5",
        "--identity",
        "none",
        "--no-status",
        "--json",
        "--threads",
        "2",
    ]
    peer = [sys.executable, "-m", "legion_p2p.cli.peer", *words, "--listen", "/ip4/127.0.0.1/tcp/0"]

    done = subprocess.run([sys.executable, "-c", MEASURED, *peer], stdout=subprocess.PIPE, cwd=tmp_path, text=True, timeout=300)

    planned = plan_of(described(NewRun("x", preset=preset)), (1,), None).memory_bytes
    assert done.returncode == 0
    assert 0.9 < planned / (int(done.stdout) * 1024) < 1.1


def test_an_evaluation_computes_no_more_tokens_at_once_than_a_limit_allows() -> None:
    assert windows_at_once(64) == windows_at_once(128) == MAX_EVAL_WINDOWS
    assert windows_at_once(1024) == MAX_EVAL_TOKENS // 1024 and windows_at_once(1_000_000) == 1
