"""Files for deployment: they can be parsed, and the commands in them are commands that exist, with options that exist."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from legion_p2p.train.described import described
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MODULES = {"legion-peer": "peer", "legion-bootstrap": "bootstrap", "legion-ctl": "ctl"}
YAML_FILES = sorted(DEPLOY.rglob("*.yaml"))


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def commands_in(value: Any) -> Iterator[list[str]]:
    """Every command line in a document: a list that begins with one of ours, or a shell's text that execs one."""
    if isinstance(value, dict):
        for inside in value.values():
            yield from commands_in(inside)
    elif isinstance(value, list):
        if value and isinstance(value[0], str) and value[0] in MODULES:
            yield [str(word) for word in value]
        for inside in value:
            yield from commands_in(inside)
    elif isinstance(value, str):
        yield from shell_commands(value)


def shell_commands(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        if found := re.search(rf"exec ((?:{'|'.join(MODULES)}) .*)", line):
            words = shlex.split(found[1])
            yield words[: words.index(">")] if ">" in words else words


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command takes these words, and what they come to makes sense; nothing is started. Raises, where it does not."""
    module = importlib.import_module(f"legion_p2p.cli.{MODULES[words[0]]}")
    function, bound, _ = module.app.parse_args(words[1:], print_error=False, exit_on_error=False)
    if words[0] == "legion-peer":
        jobs: list[Any] = []
        monkeypatch.setattr(module, "_train", lambda job, output: jobs.append(job) or 0)
        assert function(*bound.args, **bound.kwargs) == 0
        if jobs[0].entry.new_run is not None:
            described(jobs[0].entry.new_run)


def with_values(words: list[str], tmp_path: Path) -> list[str]:
    """Files and variables of the place where it will run have values here."""
    peers = tmp_path / "peers.txt"
    peers.write_text("--initial-peers /ip4/203.0.113.7/tcp/4710/p2p/12D3KooWE1RfwJiJ6zrtQXPDntUAMSi4xn4gv3bqP2JEiD5ngT1J\n")
    values = {"$RUN": "my-run", "$INITIAL_PEERS": f"@{peers}"}
    words = [re.sub(r"^@/(shared|etc/legion)/peers\.txt$", f"@{peers}", values.get(word, word)) for word in words]
    return [re.sub(r"\$\$?\{\w+:-([^}]*)\}", r"\1", word).replace("$LEGION_FOLDER", str(tmp_path)) for word in words]


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_command_in_a_file_of_yaml_is_one_that_the_command_takes(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [words for document in documents(path) for words in commands_in(document)]

    for words in found:
        check(with_values(words, tmp_path), monkeypatch)
    if path.parent.name == "kubernetes" or path.name == "compose.yaml":
        assert found


def test_the_peers_of_a_cluster_are_started_by_a_command_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = shell_commands((DEPLOY / "slurm" / "legion.sbatch").read_text(encoding="utf-8"))

    check(with_values(words, tmp_path), monkeypatch)


def test_the_image_starts_a_command_as_a_user_without_rights_and_without_a_shell() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    last = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :]

    assert any(re.fullmatch(r"USER \d+:\d+", line) for line in last)
    (command,) = (json.loads(line.removeprefix("CMD ")) for line in last if line.startswith("CMD "))
    assert command[0] in MODULES
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    assert all((ROOT / name).exists() for names in copied for name in names)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {name for names in copied for name in names} == allowed


def test_prometheus_reads_every_service_that_serves_metrics_and_grafana_finds_its_files() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    (prometheus,) = documents(DEPLOY / "prometheus" / "prometheus.yaml")
    serving = {
        f"{name}:9100"
        for name, service in compose["services"].items()
        if any("--metrics" in str(word) for word in service.get("command", []))
    }

    assert set(prometheus["scrape_configs"][0]["static_configs"][0]["targets"]) == serving and len(serving) == 4
    mounted = [volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])]
    assert all((DEPLOY / place).exists() for place in mounted if place.startswith("./"))
    assert {place for place in mounted if not place.startswith("./")} == set(compose["volumes"])


def test_pods_run_without_rights_and_have_time_to_hand_over() -> None:
    pods = [
        document["spec"]["template"]["spec"]
        for path in (DEPLOY / "kubernetes").glob("*.yaml")
        for document in documents(path)
        if document["kind"] == "StatefulSet"
    ]

    assert len(pods) == 2
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] and pod["enableServiceLinks"] is False
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] and container["resources"]["limits"]["memory"]
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]} | {"data"}


def test_a_machine_that_is_created_gets_the_service_of_the_docs() -> None:
    text = (DEPLOY / "cloud-init.yaml").read_text(encoding="utf-8")
    (cloud,) = documents(DEPLOY / "cloud-init.yaml")

    (unit,) = cloud["write_files"]
    assert text.startswith("#cloud-config\n")
    assert unit["content"] == (ROOT / "docs" / "systemd" / "legion-bootstrap.service").read_text(encoding="utf-8")


# scripts


def found_tool(name: str) -> str:
    """Where a linter is: on the path, or beside this interpreter."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"{name} is not installed here")
    return found


@pytest.mark.parametrize("script", ["install.sh", "slurm/legion.sbatch", "slurm/ranks.sbatch"])
def test_shellcheck_finds_nothing(script: str) -> None:
    subprocess.run([found_tool("shellcheck"), DEPLOY / script], check=True, timeout=PATIENCE_S)


def test_hadolint_finds_nothing() -> None:
    subprocess.run([found_tool("hadolint"), DEPLOY / "Dockerfile"], check=True, timeout=PATIENCE_S)


def installing(tmp_path: Path, *words: str, have: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    """install.sh with nothing on its path but what it needs, and stand-ins that say how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name in ("sh", "sed", "head", "dirname"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(shutil.which(name) or name)
    for name in have:
        (folder / name).write_text('#!/bin/sh\necho "ran: $0 $*"; echo "index: ${PIP_EXTRA_INDEX_URL:-none}"\n')
        (folder / name).chmod(0o755)
    environment = {"PATH": str(folder), "HOME": str(tmp_path), **variables}
    return subprocess.run(
        [str(folder / "sh"), str(DEPLOY / "install.sh"), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


@pytest.mark.skipif(os.name == "nt", reason="a script for sh")
def test_the_script_installs_with_uv_or_else_with_pipx_and_chooses_torch_by_the_machine(tmp_path: Path) -> None:
    by_uv = installing(tmp_path, have=("uv", "pipx"))
    assert by_uv.returncode == 0, by_uv.stderr
    assert f"uv tool install --python >=3.11,<3.14 {ROOT}" in by_uv.stdout and "whl/cpu" in by_uv.stdout
    (tmp_path / "bin" / "uv").unlink()
    with_gpu = installing(tmp_path, "--extras", "hf,wandb", have=("pipx", "nvidia-smi"))
    assert f"pipx install {ROOT}[hf,wandb]" in with_gpu.stdout and "index: none" in with_gpu.stdout
    dry = installing(tmp_path, "--dry-run", "--cpu", have=("pipx",), LEGION_SOURCE="legion_p2p==9")
    assert dry.stdout == "+ pipx install legion_p2p==9 (torch for cpu)\n"


@pytest.mark.skipif(os.name == "nt", reason="a script for sh")
def test_the_script_says_what_it_lacks_and_what_it_does_not_know(tmp_path: Path) -> None:
    lacking, unknown = installing(tmp_path), installing(tmp_path, "--fast")

    assert lacking.returncode == 1 and "neither uv nor pipx is here" in lacking.stderr
    assert unknown.returncode == 1 and "--fast is no option" in unknown.stderr
    assert "--dry-run" in installing(tmp_path, "--help").stdout
