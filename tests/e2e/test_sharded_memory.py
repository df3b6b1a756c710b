"""A model whose training takes more memory than any one process may have trains in four."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's RLIMIT_DATA"),
]

WORKER = Path(__file__).with_name("memory_worker.py")
BUDGET_MIB = 770  # 16 bytes for each of 50.5 million parameters: weights, gradients and two moments, and nothing else


def started(folder: Path, rank: int, n: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), str(folder), str(rank), str(n), str(BUDGET_MIB)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def said(process: subprocess.Popen[str]) -> dict:
    return json.loads(process.communicate(timeout=400)[0].splitlines()[-1])


def test_a_model_that_fits_into_no_process_trains_in_four(tmp_path: Path):
    alone = said(started(tmp_path, 0, 0))
    members = [started(tmp_path, rank, 4) for rank in range(4)]
    together = [said(member) for member in members]

    assert "can't allocate memory" in alone["failed"]
    assert all(len(one["losses"]) == 3 for one in together), together
    print("at most, in MiB beside the program:", [round(one["peak_mib"]) for one in together])
