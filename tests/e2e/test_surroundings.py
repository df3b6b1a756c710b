"""The commands where the machine is not as they would like it: closed and full streams, encodings, limits, no home, signals."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S

COMMANDS = ("bootstrap", "ctl", "demo", "peer")
IN_A_LINE = ("checkpoint", "list")


def run(command, *words, tmp_path, shell="", env=None, **how):
    """The command under `shell` (`COMMAND >&-`), its home in tmp_path. What it said, without a traceback."""
    words = [os.fsencode(word) if isinstance(word, str) else word for word in words]
    line = [os.fsencode(sys.executable), b"-m", f"legion_p2p.cli.{command}".encode(), *words]
    if shell:
        line = [b"sh", b"-c", shell.replace("COMMAND", '"$@"').encode(), b"sh", *line]
    whole_env = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data"), **(env or {})}
    done = subprocess.run(line, capture_output=True, timeout=PATIENCE_S, cwd=tmp_path, env=whole_env, **how)
    said = done.stderr.decode(errors="replace")
    assert "Traceback" not in said, said
    return done.returncode, done.stdout.decode(errors="replace"), said


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("stream", ["COMMAND >&-", "COMMAND > /dev/full"])
def test_what_cannot_be_said_is_an_error_in_a_line(command, stream, tmp_path):
    code, _, err = run(command, "--help", tmp_path=tmp_path, shell=stream)

    assert code == 1
    assert len(err.splitlines()) == 1 and err.startswith(f"legion-{command}: error: ")


@pytest.mark.parametrize("command", COMMANDS)
def test_all_streams_closed_is_an_exit_code_and_harms_nothing(command, tmp_path):
    code, _, _ = run(command, "--nonsense", tmp_path=tmp_path, shell="COMMAND <&- >&- 2>&-")

    assert code == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
def test_names_are_said_in_any_encoding(encoding, tmp_path):
    env = {"PYTHONIOENCODING": encoding}

    code, out, err = run("ctl", *IN_A_LINE, "--store", "été→", tmp_path=tmp_path, env=env)

    assert code == 1 and "no block store" in (out + err).replace("\0", "")


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        ("peer", ["--new-run", "x", "--data", b"caf\xe9", "--dry-run", "--json"], 0),
        ("peer", ["--new-run", b"caf\xe9"], 2),
        ("peer", ["--run", b"caf\xe9", "--store", "x", "--initial-peers", b"@caf\xe9"], 2),
        ("peer", ["--new-run", "x", "--config", b"caf\xe9"], 2),
        ("ctl", ["checkpoint", "list", "--store", b"caf\xe9"], 1),
        ("ctl", ["checkpoint", "import", b"caf\xe9"], 2),
        ("ctl", ["checkpoint", "show", b"caf\xe9"], 2),
        ("ctl", ["status", "--peer", b"caf\xe9"], 2),
        ("bootstrap", ["--listen", b"caf\xe9"], 2),
        ("demo", ["--preset", b"caf\xe9"], 2),
    ],
)
def test_bytes_that_are_no_text_are_one_line_and_an_exit_code(command, words, expected, tmp_path):
    code, _, err = run(command, *words, tmp_path=tmp_path)

    assert code == expected, err
    assert "caf\\" in err or expected == 0


def test_a_user_without_a_home_folder_is_told_what_to_set(tmp_path):
    code = (
        "import os, sys; os.environ.pop('HOME', None); os.environ.pop('XDG_DATA_HOME', None); os.getuid = lambda: 54321\n"
        "import pwd; pwd.getpwuid = lambda uid: (_ for _ in ()).throw(KeyError(uid))\n"
        "from legion_p2p.cli.{} import main; sys.argv = ['x', *{!r}]; main()"
    )
    for command, words in (
        ("bootstrap", []), ("ctl", ["checkpoint", "list"]), ("peer", ["--new-run", "x"])
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code.format(command, words)], capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE_S
        )

        assert done.returncode == 2 and "set HOME" in done.stderr, done.stderr
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_gone_is_no_mistake_of_the_program(tmp_path):
    (tmp_path / "gone").mkdir()

    code, _, err = run("ctl", *IN_A_LINE, "--store", "x", tmp_path=tmp_path, shell="cd gone; rmdir ../gone; COMMAND")

    assert code == 1 and len(err.splitlines()) == 1


def limited(name, value):
    return lambda: resource.setrlimit(name, (value, value))


@pytest.mark.parametrize("command", COMMANDS)
def test_few_file_descriptors_are_said_with_the_remedy(command, tmp_path):
    words = {"ctl": ["status"], "peer": ["--new-run", "x"], "bootstrap": ["--port", "0"], "demo": ["--minutes", "0.1"]}[command]

    code, _, err = run(command, *words, tmp_path=tmp_path, preexec_fn=limited(resource.RLIMIT_NOFILE, 8))

    assert code in (1, 3) and "Traceback" not in err
    assert "ulimit -n" in err, err


def test_too_little_memory_is_exit_code_4_with_what_there_is(tmp_path):
    code, _, err = run(
        "peer", "--new-run", "x", "--identity", "none", tmp_path=tmp_path, preexec_fn=limited(resource.RLIMIT_AS, 300 << 20)
    )

    assert code == 4, err
    assert "memory" in err and "ulimit -v" in err


def test_no_more_than_so_large_a_file_is_said(tmp_path):
    code, _, err = run(
        "bootstrap", "--port", "0", tmp_path=tmp_path, preexec_fn=limited(resource.RLIMIT_FSIZE, 0)
    )  # fmt: skip

    assert code == 1 and "bootstrap.key" in err and errno.errorcode[errno.EFBIG] not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_unwinds_a_command_and_is_its_exit_code(number, tmp_path):
    code = (
        "import os, sys, time, pathlib\n"
        "from legion_p2p.cli.common import make_app\nfrom legion_p2p.cli.running import run_app\n"
        "from legion_p2p.files.writing import replacing\n"
        "app = make_app('x', 'help')\n"
        "@app.default\ndef f():\n"
        f"  with replacing(pathlib.Path({str(tmp_path / 'out')!r})) as file:\n"
        "    file.write(b'half'); print('now', flush=True); time.sleep(60)\n"
        "sys.exit(run_app(app, []))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"now\n"

    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 128 + number, err
    assert os.listdir(tmp_path) == [] and b"Traceback" not in err


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists() or os.geteuid() != 0, reason="needs root, for a PID namespace")
def test_process_1_of_a_container_ends_when_it_is_told_to(tmp_path):
    process = subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-m", "legion_p2p.cli.bootstrap", "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    try:
        if not process.stdout.readline():
            pytest.skip(f"no PID namespace here: {process.stderr.read()!r}")
        inner = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())

        os.kill(inner, signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)

        assert process.returncode == 143
    finally:
        process.kill()


def test_a_machine_without_127_0_0_1_trains_all_the_same_and_says_so(tmp_path, forks):
    words = ["--new-run", "x", "--preset", "xxs", "--steps", "3", "--identity", "none"]
    code = (
        "import sys; from legion_p2p.net import status_http; status_http.LOOPBACK = '203.0.113.9'\n"  # an address of nobody here
        f"from legion_p2p.cli.peer import main; sys.argv = ['legion-peer', *{words!r}]; main()"
    )

    done = forks.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "legion-ctl cannot look at this peer" in done.stdout and "did its steps" in done.stdout
