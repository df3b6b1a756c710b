"""legion-ctl service: with a systemctl that only writes down what it was asked; and the files for other systems."""

import plistlib
import shlex
import stat
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from legion_p2p.cli import ctl, system_service
from legion_p2p.cli.running import run_app
from legion_p2p.cli.system_service import file_of, launchd_plist, scheduler_task, systemd_unit

WORDS = ("/opt/legion/bin/legion-peer", "--run", "my run", "--when", "idle", "--max-cpu", "50%", "--data", 'a"b$c', "--x", "")


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl first on the PATH that writes its words to a file, and exits with what the file `code` says."""
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()
    fake = folder / "systemctl"
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> {shlex.quote(str(log))}\necho active\nexit "$(cat {tmp_path}/code 2>/dev/null || echo 0)"\n'
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(system_service.sys, "platform", "linux")
    monkeypatch.setattr(system_service, "command", lambda: "/opt/legion/bin/legion-peer")
    return log


def test_it_is_written_started_told_of_and_removed(systemctl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unit = tmp_path / "config" / "systemd" / "user" / "legion-peer.service"

    assert run_app(ctl.app, ["service", "install", "--run", "stories", "--max-cpu", "50%"]) == 0
    assert "ExecStart=/opt/legion/bin/legion-peer --run stories --max-cpu 50%%\n" in unit.read_text()
    assert run_app(ctl.app, ["service", "status"]) == 0
    assert run_app(ctl.app, ["service", "uninstall"]) == 0

    assert not unit.exists()
    assert systemctl.read_text().splitlines() == [
        "--user daemon-reload", "--user enable legion-peer.service", "--user restart legion-peer.service",
        "--user is-active legion-peer.service",
        "--user disable --now legion-peer.service", "--user daemon-reload",
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert "started; from now on it starts with each session" in out and "state: active" in out and f"removed {unit}" in out


def test_a_second_install_takes_the_new_options_for_the_peer_that_runs(systemctl: Path) -> None:
    for run in ("old", "new"):
        assert run_app(ctl.app, ["service", "install", "--run", run]) == 0

    assert systemctl.read_text().splitlines()[-1] == "--user restart legion-peer.service"


def test_what_systemd_refuses_is_told_and_the_exit_code_says_so(
    systemctl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "code").write_text("1")

    assert run_app(ctl.app, ["service", "install", "--run", "stories"]) == 1
    assert "systemctl --user daemon-reload failed" in capsys.readouterr().err
    assert run_app(ctl.app, ["service", "status"]) == 1


def test_without_options_or_without_a_service_it_says_what_to_do(systemctl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(ctl.app, ["service", "install"]) == 2
    assert "at least --run NAME" in capsys.readouterr().err
    assert run_app(ctl.app, ["service", "status"]) == 1
    assert run_app(ctl.app, ["service", "uninstall"]) == 0
    assert "no service is installed" in capsys.readouterr().out


def test_a_unit_holds_words_with_blanks_quotes_and_signs_as_systemd_reads_them() -> None:
    (line,) = [line for line in systemd_unit(WORDS).splitlines() if line.startswith("ExecStart=")]

    said = shlex.split(line.removeprefix("ExecStart="))
    assert [word.replace("%%", "%").replace("$$", "$") for word in said] == list(WORDS)


def test_a_property_list_and_a_task_hold_the_same_words() -> None:
    listed = plistlib.loads(launchd_plist(WORDS).encode())
    task = ET.fromstring(scheduler_task(WORDS).split("?>", 1)[1])

    assert listed["ProgramArguments"] == list(WORDS) and listed["RunAtLoad"] is True
    names = {element.tag.rpartition("}")[2]: element.text for element in task.iter()}
    assert names["Command"] == WORDS[0] and '"my run"' in str(names["Arguments"]) and names["ExecutionTimeLimit"] == "PT0S"


@pytest.mark.parametrize(
    ("platform", "name", "told"), [("darwin", "plist", "launchctl bootstrap"), ("win32", "xml", "schtasks /Create")]
)
def test_elsewhere_the_file_is_written_and_the_commands_are_shown(
    platform: str, name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(system_service, "kind_here", lambda: "launchd" if platform == "darwin" else "task")
    monkeypatch.setattr(system_service, "command", lambda: "/opt/legion-peer")
    monkeypatch.setattr(system_service.Path, "home", lambda: tmp_path)

    assert run_app(ctl.app, ["service", "install", "--run", "stories"]) == 0
    assert told in capsys.readouterr().out and len(list(tmp_path.rglob(f"*.{name}"))) == 1
    assert run_app(ctl.app, ["service", "uninstall"]) == 0
    assert not list(tmp_path.rglob(f"*.{name}"))


def test_a_line_break_cannot_smuggle_a_line_into_the_file() -> None:
    with pytest.raises(Exception, match="line break"):
        file_of("systemd", ("legion-peer", "--run", "x\nExecStartPre=/bin/evil"))
