"""What an installation brings: its commands, its metadata, and how little an import or a --help costs."""

import importlib
import json
import os
import platform
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
COMMANDS = PROJECT["scripts"]
HEAVY = ("torch", "libp2p", "numpy", "matplotlib")


def modules_after(code: str) -> set[str]:
    """Top-level modules that a new interpreter has imported after `code`."""
    script = f"{code}\nimport sys, json\nprint(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE_S, env=env)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = modules_after("import legion_p2p")

    assert loaded.isdisjoint({*HEAVY, "trio", "msgspec", "cyclopts", "rich"})


def test_every_public_name_loads() -> None:
    import legion_p2p

    missing = [name for name in legion_p2p.__all__ if not hasattr(legion_p2p, name)]

    assert missing == []
    assert set(legion_p2p.__all__) <= set(dir(legion_p2p))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    import legion_p2p

    with pytest.raises(AttributeError, match="no attribute 'Optimiser'"):
        legion_p2p.Optimiser  # noqa: B018


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_help_of_a_command_imports_nothing_heavy(command: str) -> None:
    module, function = COMMANDS[command].split(":")

    loaded = modules_after(
        f"import sys, contextlib, io\n"
        f"from {module} import {function}\n"
        f"sys.argv = ['{command}', '--help']\n"
        f"out = io.StringIO()\n"
        f"with contextlib.suppress(SystemExit), contextlib.redirect_stdout(out):\n"
        f"    {function}()\n"
        f"assert '{command}' in out.getvalue(), out.getvalue()\n"
    )

    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_resolves_to_a_function(command: str) -> None:
    module, function = COMMANDS[command].split(":")

    assert callable(getattr(importlib.import_module(module), function))


def test_the_version_is_said_once() -> None:
    import legion_p2p

    assert legion_p2p.__version__ == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_constraints_lie_within_the_stated_ranges() -> None:
    from packaging.requirements import Requirement

    stated = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {r.name: r.specifier for r in (Requirement(line) for line in lines if line and not line.startswith("#"))}

    assert pinned
    for name, specifier in pinned.items():
        (pin,) = specifier
        assert pin.operator == "=="
        assert pin.version in stated[name], name


def test_what_the_package_imports_is_declared() -> None:
    extras = {name for extra, names in PROJECT["optional-dependencies"].items() if extra not in ("dev", "docs") for name in names}

    assert imported() <= names_of(PROJECT["dependencies"]) | names_of(extras)
    assert imported(at_once=True) <= names_of(PROJECT["dependencies"])  # an extra is imported where it is needed, if it is there


def names_of(requirements: Iterable[str]) -> set[str]:
    return {re.split(r"[<>=!~ \[]", line)[0].lower() for line in requirements}


def imported(*, at_once: bool = False) -> set[str]:
    """The distributions that the package imports; `at_once`: those that a module imports as it loads."""
    called = {
        "dns": "dnspython", "google": "protobuf", "nacl": "pynacl", "cid": "py-cid", "multihash": "py-multihash",
        "prometheus_client": "prometheus-client", "opentelemetry": "opentelemetry-sdk", "yaml": "pyyaml",
    }  # fmt: skip
    indented = "" if at_once else r"\s*"
    pattern = re.compile(rf"^{indented}(?:import|from)\s+([A-Za-z_][A-Za-z0-9_]*)", re.MULTILINE)
    used = {found for path in (ROOT / "legion_p2p").rglob("*.py") for found in pattern.findall(code_of(path))}
    return {called.get(name, name) for name in used - sys.stdlib_module_names - {"legion_p2p"}}


def code_of(path: Path) -> str:
    """The source without its docstrings, whose prose may begin a line with "from"."""
    return re.sub(r'"""(?:.|\n)*?"""', "", path.read_text(encoding="utf-8"))


# what pip cannot bring

CHECK = ROOT / "tools" / "check_system.py"


def test_here_nothing_is_missing() -> None:
    done = subprocess.run([sys.executable, str(CHECK), "--venv", sys.prefix], capture_output=True, text=True, timeout=PATIENCE_S)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere nothing may have to be compiled")
def test_without_the_headers_of_gmp_it_says_how_to_get_them(tmp_path: Path) -> None:
    env = os.environ | {"CFLAGS": "-nostdinc"}

    done = subprocess.run(
        [sys.executable, str(CHECK), "--venv", str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE_S, env=env
    )

    assert done.returncode == 1
    assert "gmp.h" in done.stderr


@pytest.mark.parametrize(
    ("manager", "expected"),
    [
        ("apt-get", "sudo apt-get update && sudo apt-get install -y gcc libc6-dev libgmp-dev"),
        ("dnf", "sudo dnf install -y gcc gmp-devel"),
        ("pacman", "sudo pacman -S --needed --noconfirm gcc gmp"),
        ("zypper", "sudo zypper --non-interactive install gcc gmp-devel"),
        ("", ""),
    ],
)
def test_the_command_that_mends_it_fits_the_machine(manager: str, expected: str) -> None:
    command = runpy.run_path(str(CHECK))["command"]

    line = command(["cc", "gmp"], which=lambda name: name == manager, is_root=False)

    assert line == expected


def test_with_homebrew_the_compiler_is_told_where_it_installs() -> None:
    command = runpy.run_path(str(CHECK))["command"]

    line = command(["gmp"], which=lambda name: name == "brew", is_root=False)

    assert line.startswith("brew install gmp && export CPATH=")


@pytest.mark.parametrize(
    ("system", "machine", "version", "expected"),
    [
        ("Linux", "x86_64", (3, 11), True),
        ("Linux", "aarch64", (3, 13), True),
        ("Darwin", "arm64", (3, 12), False),
        ("Darwin", "arm64", (3, 13), True),
        ("Darwin", "x86_64", (3, 12), True),
        ("Windows", "AMD64", (3, 12), False),
    ],
)
def test_a_compiler_is_asked_for_only_where_there_is_no_wheel(system, machine, version, expected) -> None:
    assert runpy.run_path(str(CHECK))["must_compile"](system, machine, version) is expected
