"""Whatever happens to a test session, no process of its tests outlives it, and signals reach them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.waiting import PATIENCE_S

TESTS = Path(__file__).parents[1]

LEAVES_A_PROCESS = """
import subprocess, sys, time
from pathlib import Path

def test_that_never_ends():
    grandchild = "[sys.executable, '-c', 'import time; time.sleep(600)']"
    child = f"import subprocess, sys, time; subprocess.Popen({{grandchild}}); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    Path({pids!r}).write_text(str(process.pid))
    time.sleep(600)
"""

HEARS_SIGNALS = """
import os, signal, subprocess, sys

def test_a_child_ends_when_it_is_interrupted():
    process = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal({number})
    assert process.wait(60) != 0

def test_the_session_itself_goes_on_when_the_terminal_is_closed():
    os.kill(os.getpid(), {number})
"""


def session(folder: Path, test: str, *options: str, **kwargs) -> subprocess.Popen[str]:
    """A pytest of its own that runs one file of tests."""
    (folder / "test_it.py").write_text(test)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "leftovers", "-p", "no:cacheprovider", "-p", "no:randomly", *options]
    env = os.environ | {"PYTHONPATH": str(TESTS)}
    return subprocess.Popen(
        [*words, "-c", os.devnull, "--rootdir", str(folder), str(folder / "test_it.py")],
        cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs,
    )  # fmt: skip


def family_of(file: Path, within_s: float = PATIENCE_S) -> list[psutil.Process]:
    """The process that the test has started, and its child."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if file.exists() and (text := file.read_text()):
            parent = psutil.Process(int(text))
            if children := parent.children():
                return [parent, *children]
        time.sleep(0.02)
    raise AssertionError("the test did not start its process")


def assert_gone(family: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_S)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_a_test_that_times_out_leaves_no_process(tmp_path: Path) -> None:
    pids = tmp_path / "pid"

    with session(tmp_path, LEAVES_A_PROCESS.format(pids=str(pids)), "--timeout", "2") as ran:
        family = family_of(pids)
        told, _ = ran.communicate(timeout=PATIENCE_S)

    assert "Timeout" in told and ran.returncode == 1
    assert_gone(family)


def test_a_session_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    pids = tmp_path / "pid"

    with session(tmp_path, LEAVES_A_PROCESS.format(pids=str(pids))) as ran:
        family = family_of(pids)
        ran.kill()

    assert_gone(family)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no nohup")
@pytest.mark.parametrize("number", [signal.SIGINT, getattr(signal, "SIGHUP", 0)])
def test_a_session_started_with_a_signal_ignored_runs_tests_that_send_it(number: int, tmp_path: Path) -> None:
    started = session(
        tmp_path, HEARS_SIGNALS.format(number=int(number)), preexec_fn=lambda: signal.signal(number, signal.SIG_IGN)
    )  # fmt: skip

    with started as ran:
        told, _ = ran.communicate(timeout=PATIENCE_S)

    assert ran.returncode == 0, told
    assert "2 passed" in told
