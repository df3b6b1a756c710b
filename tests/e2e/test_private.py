"""A private run, with the three commands of docs/private-runs.md, as processes of their own."""

import shlex
import sys
import time
from pathlib import Path

from processes import ROOT, UNHURRIED, Process

from tests.forking import ForkServer
from tests.waiting import eventually

PAGE = ROOT / "docs" / "private-runs.md"
MODULES = {"legion-peer": "legion_p2p.cli.peer", "legion-ctl": "legion_p2p.cli.ctl"}
SMALL = ("--json", "--no-status", "--threads", "1", "--store", "none", *UNHURRIED)


def commands() -> list[list[str]]:
    """Those of the page, in order."""
    fences = PAGE.read_text(encoding="utf-8").split("```sh\n")[1:]
    return [shlex.split(fence.split("```")[0]) for fence in fences]


def with_values(command: list[str], values: dict[str, str]) -> list[str]:
    return ["-m", MODULES[command[0]], *(values.get(word, word) for word in command[1:])]


def said_by(forks: ForkServer, words: list[str]) -> str:
    done = forks.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return str(done.stdout).strip()


def test_the_three_commands_of_the_page_make_a_private_run(tmp_path: Path, forks: ForkServer) -> None:
    create, admit, join, *_ = commands()
    lab_key, guest_key, token = (str(tmp_path / name) for name in ("lab.key", "guest.key", "guest.token"))
    lab, guest = (said_by(forks, ["-m", "legion_p2p.cli.ctl", "id", "--identity", key]) for key in (lab_key, guest_key))
    name = f"e2e/{time.time_ns()}"
    values = {"lab": name, "lab.key": lab_key, "guest.key": guest_key, "guest.token": token, "GUEST": guest}
    values["/ip4/0.0.0.0/tcp/4710"] = "/ip4/127.0.0.1/tcp/0"
    started: list[Process] = []

    def start(command: list[str], *more: str) -> Process:
        started.append(Process(*with_values(command, values), *SMALL, *more, forks=forks))
        return started[-1]

    try:
        creator = start(create, "--preset", "xxs", "--batch", "1", "--local-steps", "3")
        values["RUN"] = creator.wait_for("run.created")["run"]
        values["ADDRESS"] = shlex.split(creator.wait_for("run.join_with")["command"])[-1]
        assert values["ADDRESS"].endswith(f"/p2p/{lab}")

        without = Process(
            *with_values([word for word in join if word not in ("--token", "guest.token")], values), *SMALL, forks=forks
        )
        started.append(without)
        assert without.wait() != 0
        assert "does not admit this peer" in without.stderr() and lab in without.stderr()

        Path(token).write_text(said_by(forks, with_values(admit, values)) + "\n")
        joined = start(join)
        assert joined.wait_for("run.joined")["run"] == values["RUN"]
        joined.wait_for("round.closed")
        assert any(event["peer"] == guest and event["after"] == "ALIVE" for event in creator.events("member.changed"))

        said_by(
            forks, ["-m", "legion_p2p.cli.ctl", "token", "revoke", "--run", values["RUN"], "--for", guest, "--identity", lab_key]
        )
        gone = lambda: [e for e in creator.events("member.changed") if e["peer"] == guest and e["after"] == "absent"]  # noqa: E731
        eventually(gone)
    finally:
        for process in started:
            process.close()
