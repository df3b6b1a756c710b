"""What containers do, without an engine: a command as process 1, and the commands of the Dockerfile in a plain folder."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import psutil
import pytest
from processes import eventually

from legion_p2p.cli.process_one import LOOK_EVERY_S
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def has_namespaces() -> bool:
    return shutil.which("unshare") is not None and subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not has_namespaces(), reason="this user may make no PID namespace")
def test_a_node_as_process_one_reaps_orphans_and_leaves_on_sigterm(tmp_path: Path) -> None:
    printed = tmp_path / "printed.txt"
    options = ["--identity", str(tmp_path / "key"), "--dashboard", "no", "--listen", "/ip4/127.0.0.1/tcp/0"]
    node = shlex.join([sys.executable, "-m", "legion_p2p.cli.bootstrap", *options])
    orphan = "(sleep 0.3 &)"  # its parent ends at once, so it becomes a child of process 1
    command = f"{orphan}; exec {node} > {shlex.quote(str(printed))}"
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}

    with subprocess.Popen([*NAMESPACE, "sh", "-c", command], env=environment) as outside:
        try:
            eventually(lambda: printed.exists() and printed.read_text().startswith("--initial-peers "))
            (first,) = psutil.Process(outside.pid).children()
            assert re.search(r"^NSpid:.*\t1$", Path(f"/proc/{first.pid}/status").read_text(), re.MULTILINE)
            eventually(lambda: first.children() == [], 3 * LOOK_EVERY_S + 20)
            first.send_signal(signal.SIGTERM)
            code = outside.wait(PATIENCE_S)
        finally:
            outside.kill()

    assert code == 128 + signal.SIGTERM


def steps_of(dockerfile: str) -> list[tuple[str, str]]:
    """(instruction, arguments), in order."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


@pytest.mark.skipif(os.name == "nt", reason="the image is of Linux")
def test_the_commands_of_the_dockerfile_install_in_a_plain_folder_what_its_last_line_starts(tmp_path: Path) -> None:
    """All but those of apt-get and of users, which are the system's. What pip would download is found in this environment."""
    home, source = tmp_path / "opt", tmp_path / "src"
    source.mkdir()
    here = sysconfig.get_paths()
    environment = {
        "PATH": f"{here['scripts']}:/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": here["purelib"],
        "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }  # fmt: skip
    ran, command = [], []
    for word, rest in steps_of((ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")):
        rest = rest.replace("/opt/legion", str(home))
        if word == "ARG":
            name, _, value = rest.partition("=")
            environment[name] = value
        elif word == "COPY" and "--from" not in rest:
            *names, place = rest.split()
            for name in names:
                target = source / (place if (ROOT / name).is_dir() else name)
                (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
        elif word == "RUN" and "apt-get" not in rest:
            done = subprocess.run(["sh", "-c", rest], cwd=source, env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr[-3000:]
            ran.append(rest.split()[0])
        elif word == "CMD":
            command = json.loads(rest)

    assert len(ran) == 2 and command[0] == "legion-peer"
    said = subprocess.run(
        [str(home / "bin" / command[0]), *command[1:]], env=environment,
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert said.returncode == 0 and "--initial-peers" in said.stdout, said.stderr
    (installed,) = home.glob("lib/python*/site-packages/legion_p2p")
    assert (installed / "train" / "tales.toml").exists() and (installed / "web" / "static").is_dir()
