"""The units of systemd that the docs offer: they can be enabled, start what exists, and are hardened."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S

UNITS = sorted((Path(__file__).parents[2] / "docs" / "systemd").glob("*.service"))
HIGHEST_EXPOSURE = 4.5  # "OK" in systemd's words, which are "UNSAFE" from 9 on; a peer needs the devices of its GPU

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def parsed(unit: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text(encoding="utf-8"))
    return parser


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_can_be_enabled_and_ends_well_when_it_is_stopped(unit: Path) -> None:
    said = parsed(unit)

    assert said["Install"]["WantedBy"] == "multi-user.target"
    assert said["Service"]["SuccessExitStatus"] == "143" and said["Service"]["DynamicUser"] == "yes"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_a_command_with_options_that_exist(unit: Path) -> None:
    command, *words = shlex.split(parsed(unit)["Service"]["ExecStart"])
    name = command.rpartition("/")[2]
    assert name in ("legion-bootstrap", "legion-peer")
    module = f"legion_p2p.cli.{name.removeprefix('legion-')}"

    told = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )

    assert [word for word in words if word.startswith("--") and not re.search(rf"{word}\b", told.stdout)] == []


@needs_systemd
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_no_fault_in_a_unit_and_little_exposure(unit: Path, tmp_path: Path) -> None:
    here = tmp_path / unit.name.replace("@.", "@stories.")
    here.write_text(re.sub(r"/opt/legion/bin/\S+", "/bin/true", unit.read_text(encoding="utf-8")))  # it is not installed here

    verified = subprocess.run(["systemd-analyze", "verify", str(here)], capture_output=True, text=True, timeout=PATIENCE_S)
    exposure = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(here)], capture_output=True, text=True, timeout=PATIENCE_S
    )

    assert unit.name.split(".")[0] not in verified.stderr, verified.stderr
    level = re.search(r"exposure level for \S+: ([0-9.]+)", exposure.stdout)
    assert level is not None, exposure.stdout + exposure.stderr
    assert float(level[1]) <= HIGHEST_EXPOSURE, exposure.stdout[-500:]
