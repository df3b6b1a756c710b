"""What the pages show under a command is what it prints: those commands that need no network are run, and compared line by line.

`...` on a line of its own stands for any lines. A command is run if it is one of OFFLINE; what others print depends on the day.
"""

import os
import re
import shlex
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from tests.forking import ForkServer

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference")]
BLOCK = re.compile(r"^( *)```console\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
OFFLINE = (  # patterns of commands whose output depends on their words alone
    r"^legion-\w+ .*--help\b",
    r"^legion-\w+ .*--version\b",
    r"^legion-peer .*--dry-run\b",
    r"^legion-ctl plan\b",
)
WIDTH = "100"


def shown() -> list[tuple[str, str, list[str]]]:
    """The page, the command, and the lines below it, of each command with output in a console block."""
    found = []
    for page in PAGES:
        for _, body in BLOCK.findall(page.read_text(encoding="utf-8")):
            pieces = re.split(r"^\$ ", textwrap.dedent(body), flags=re.MULTILINE)[1:]
            for piece in pieces:
                command, *lines = piece.rstrip().splitlines()
                if lines and any(re.search(pattern, command) for pattern in OFFLINE):
                    found.append((str(page.relative_to(ROOT)), command, [line.rstrip() for line in lines]))
    return found


def printed_by(forks: ForkServer, command: str, folder: Path) -> list[str]:
    name, *words = shlex.split(command, comments=True)
    module, function = SCRIPTS[name].split(":")
    code = f"import sys; sys.argv[0] = {name!r}; from {module} import {function}; {function}()"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LEGION_")}
    env = kept | {"COLUMNS": WIDTH, "HOME": str(folder), "PYTHONPATH": str(ROOT), "XDG_DATA_HOME": str(folder)}
    done = forks.run([sys.executable, "-c", code, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [line.rstrip() for line in done.stdout.rstrip().splitlines()]


def fits(printed: list[str], wanted: list[str]) -> bool:
    """Whether the lines are the same, where "..." fits any number of lines."""
    if not wanted:
        return not printed
    if wanted[0] == "...":
        return any(fits(printed[n:], wanted[1:]) for n in range(len(printed) + 1))
    return bool(printed) and printed[0] == wanted[0] and fits(printed[1:], wanted[1:])


@pytest.mark.parametrize(("page", "command", "lines"), shown(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_page_shows_what_the_command_prints(
    page: str, command: str, lines: list[str], tmp_path: Path, forks: ForkServer
) -> None:
    printed = printed_by(forks, command, tmp_path)

    assert fits(printed, lines), "\n".join([f"{page} shows other lines; {command} prints:", *printed])


def test_there_are_such_commands_on_the_pages_of_the_peer_the_control_and_the_tutorial() -> None:
    pages = {page for page, _, _ in shown()}

    assert {"docs/commands/legion-peer.md", "docs/commands/legion-ctl.md", "docs/tutorial.md"} <= pages


def test_an_ellipsis_stands_for_any_lines_and_nothing_else_does() -> None:
    assert fits(["a", "b", "c"], ["a", "...", "c"]) and fits(["a", "c"], ["a", "...", "c"]) and fits(["a", "b"], ["...", "b"])
    assert not fits(["a", "b"], ["a"]) and not fits(["a"], ["a", "b"]) and not fits(["a", "x"], ["a", "...", "c"])
