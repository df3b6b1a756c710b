"""Forked processes end as those do that `python` starts: tests of peers rely on it."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from processes import Process

from tests.fork_server import NAME
from tests.forking import ForkServer
from tests.waiting import PATIENCE_S

SCRIPT = """
import atexit, json, os, sys, tempfile, threading

may_end = threading.Event()
threading.Thread(target=lambda: may_end.wait() and print(json.dumps({"event": "thread"}))).start()
atexit.register(lambda: print(json.dumps({"event": "atexit", "text": sys.argv[1:]})))
print(json.dumps({"event": "started", "text": [os.getcwd(), tempfile.gettempdir(), os.getsid(0) == os.getpid()]}), flush=True)
sys.stdin.readline()
threading.Timer(0.2, may_end.set).start()
"""
Start = Callable[..., Process]


@pytest.mark.parametrize(
    ("last_line", "code", "said"),
    [("sys.exit(7)", 7, ""), ("raise ValueError('a bug')", 1, "ValueError: a bug")],
)
def test_a_fork_ends_with_its_code_after_its_threads_and_its_exit_handlers(
    script: Start, forks: ForkServer, tmp_path: Path, last_line: str, code: int, said: str
) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT + last_line + "\n")

    process = script(str(path), "an argument", forks=forks)
    cwd, folder, leads = process.wait_for("started")["text"]
    process.tell(go="on")
    got = process.wait()
    process.wait_for(lambda message: message["event"] == "atexit" and message["text"] == ["an argument"])

    assert got == code and said in process.stderr() and process.events("thread")
    assert (Path(cwd), Path(folder), leads) == (Path(__file__).parents[2], process.tmp, True)


def test_a_fork_that_is_killed_has_the_signal_as_its_code(script: Start, forks: ForkServer, tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    process = script(str(path), forks=forks)
    process.wait_for("started")

    process.popen.send_signal(signal.SIGKILL)

    assert process.wait() == -signal.SIGKILL
    assert process.popen.poll() == -signal.SIGKILL


STARTS_OTHERS = """
import json, os, signal, subprocess, sys, time

code = "import json, sys; print(json.dumps({'event': 'other', 'torch': 'torch' in sys.modules}))"
for words in (["-c", code], ["-u", "-c", code + "; sys.exit(3)"]):
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    print(json.dumps(json.loads(done.stdout) | {"code": done.returncode}), flush=True)
slow_code = "import time; print('there', flush=True); time.sleep(600)"
slow = subprocess.Popen([sys.executable, "-c", slow_code], stdout=subprocess.PIPE)
slow.stdout.readline()
print(json.dumps({"event": "started", "pid": slow.pid}), flush=True)
sys.stdin.readline()
slow.send_signal(signal.SIGTERM)
print(json.dumps({"event": "ended", "code": slow.wait(30)}), flush=True)
sys.stdin.readline()
"""


def test_what_a_fork_starts_is_a_fork_and_a_descendant_and_no_server_outlives_it(
    script: Start, forks: ForkServer, tmp_path: Path
) -> None:
    path = tmp_path / "script.py"
    path.write_text(STARTS_OTHERS)

    process = script(str(path), forks=forks, starts_others=True)
    slow = process.wait_for("started")["pid"]
    descendants = psutil.Process(process.pid).children(recursive=True)
    process.tell(go="on")
    process.wait_for("ended")

    assert [(m["torch"], m["code"]) for m in process.events("other")] == [(True, 0), (True, 3)]
    assert slow in {each.pid for each in descendants}
    assert {each.name() for each in psutil.Process(process.pid).children()} == {NAME}
    assert process.events("ended")[0]["code"] == -signal.SIGTERM
    servers = psutil.Process(process.pid).children()
    process.popen.kill()
    assert psutil.wait_procs(servers, PATIENCE_S)[1] == []


def test_what_is_not_python_is_started_as_usual(forks: ForkServer) -> None:
    done = forks.run(["sh", "-c", "cat; exit 5"], capture_output=True, text=True, timeout=PATIENCE_S)

    assert (done.returncode, done.stdout) == (5, "")


def test_a_fork_is_interrupted_as_python_is(forks: ForkServer) -> None:
    code = "import time; print('there', flush=True); time.sleep(600)"
    process = forks.popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "there\n"

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == -signal.SIGINT and err.rstrip().endswith("KeyboardInterrupt")
