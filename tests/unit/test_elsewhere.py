"""On a system without what only POSIX has, every module loads, and what stands on files, locks, sockets and signals works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("test_blocks.py", "test_archive.py", "test_known_peers.py", "test_status_http.py")
N_PARTS = 8  # of the unit tests, each in a process of its own, that takes about a minute


def test_nothing_in_the_package_needs_fork_fcntl_hangups_or_unix_sockets() -> None:
    files = [str(ROOT / "tests" / "unit" / name) for name in FILES]

    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "elsewhere.py"), *files], cwd=ROOT, capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert int(done.stdout.split()[0]) > 300


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", range(N_PARTS))
def test_what_is_tested_of_single_modules_holds_there_as_well(part: int) -> None:
    here = Path(__file__)
    files = sorted(str(file) for file in here.parent.rglob("test_*.py") if file != here)[part::N_PARTS]
    words = [sys.executable, str(ROOT / "tests" / "elsewhere.py"), *files, "-rs", "--timeout=120"]

    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1100)

    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (n_passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(n_passed) > 300, done.stdout[-4000:]
