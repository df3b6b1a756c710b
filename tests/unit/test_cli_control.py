"""legion-ctl pause, resume, finish, leave and limits: what they ask for, and what they print."""

import json
from typing import Any

import pytest

from legion_p2p.cli import control, ctl
from legion_p2p.cli.control import control_lines, parse_time
from legion_p2p.cli.keys import Keys
from legion_p2p.cli.running import run_app
from legion_p2p.core.control import Finish, Leave, Pause, Resume, SetLimits
from legion_p2p.errors import UsageError
from legion_p2p.net import control_http
from legion_p2p.observe.status import ControlStatus


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> list[Any]:
    """The commands that reach a peer, which is paused."""
    commands: list[Any] = []

    async def send_command(host: str, port: int, key: bytes, command: Any) -> ControlStatus:
        commands.append((host, port, command))
        return ControlStatus(wish="pause", reasons=("by you", "on battery"), upload_bps=5e6, max_cpu=0.5)

    monkeypatch.setattr(control_http, "send_command", send_command)
    monkeypatch.setattr(control, "user_data_folder", lambda: tmp_path)
    return commands


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["pause"], Pause()),
        (["pause", "--for", "2h"], Pause(7200.0)),
        (["resume"], Resume()),
        (["finish"], Finish()),
        (["leave"], Leave()),
        (["limits", "--upload", "5mbit"], SetLimits(upload="5mbit")),
        (["limits", "--download", "none", "--max-cpu", "50%"], SetLimits(download="none", max_cpu="50%")),
    ],
)
def test_each_command_reaches_the_peer_and_what_holds_then_is_printed(
    words: list[str], command: Any, sent: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(ctl.app, [*words, "--peer", "47110"]) == 0

    assert sent == [("127.0.0.1", 47110, command)]
    assert capsys.readouterr().out == "paused: by you, on battery\nlimits: upload 5.00 Mbit/s, CPU 50.0 %\n"


def test_as_json_it_is_the_record(sent: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(ctl.app, ["pause", "--peer", "47110", "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["reasons"] == ["by you", "on battery"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["pause", "--for", "soon"], "allowed is a number and s, m, h or d"),
        (["pause", "--for", "0s"], "--for '0s'"),
        (["pause", "--for", "9999d"], "at most 366d"),
        (["limits"], "no limit is given"),
        (["limits", "--upload", "fast"], "rate 'fast'"),
        (["limits", "--max-cpu", "101%"], "1% to 100%"),
    ],
)
def test_what_cannot_be_is_refused_before_any_peer_is_asked(
    words: list[str], text: str, sent: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(ctl.app, [*words, "--peer", "47110"]) == 2

    assert text in capsys.readouterr().err and sent == []


def test_times_are_written_with_a_unit() -> None:
    assert [parse_time(text) for text in ("45s", "90m", "1.5h", "2D")] == [45.0, 5400.0, 5400.0, 172800.0]
    with pytest.raises(UsageError):
        parse_time("5")


def test_an_end_of_a_pause_is_told_as_a_time_of_day() -> None:
    first, second = control_lines(ControlStatus(wish="pause", reasons=("by you",), until=1.7e9))

    assert first.startswith("paused: by you until ") and first.count(":") == 3
    assert second == "limits: none"


def test_keys_are_their_letters_large_or_small_and_others_do_nothing() -> None:
    pressed: list[str] = []
    keys = Keys({"p": lambda: pressed.append("p"), "q": lambda: pressed.append("q")})

    for key in "pPxq\x1b":
        keys.pressed(key)

    assert pressed == ["p", "p", "q"]
