"""On a system without what only POSIX has, every module loads, and what stands on files, locks, sockets and signals works."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = ("test_blocks.py", "test_archive.py", "test_known_peers.py", "test_status_http.py")


def test_nothing_in_the_package_needs_fork_fcntl_hangups_or_unix_sockets() -> None:
    files = [str(ROOT / "tests" / "unit" / name) for name in FILES]

    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "elsewhere.py"), *files], cwd=ROOT, capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert int(done.stdout.split()[0]) > 300
