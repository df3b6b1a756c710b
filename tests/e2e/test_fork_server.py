"""Forked processes end as those do that `python` starts: tests of peers rely on it."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fork_server import ForkServer
from processes import Process

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
