"""The pages say what is true: links lead somewhere, options exist, Python compiles, and nothing of one machine slipped in."""

import ast
import contextlib
import functools
import importlib
import io
import re
import shlex
import textwrap
import tomllib
from pathlib import Path

import pytest
from cyclopts import App

from legion_p2p.cli.running import run_app

ROOT = Path(__file__).parents[2]
WRITTEN = [path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference"]  # that is generated
PAGES = sorted([*ROOT.glob("*.md"), *WRITTEN, *(ROOT / "tests").glob("*.md")])
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")

of_every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [textwrap.dedent(body) for _, name, body in found if name == language]


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as GitHub does it."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@functools.cache
def help_of(command: str) -> str:
    """Everything that `--help` says, of the subcommands too."""
    return help_below(importlib.import_module(COMMANDS[command].partition(":")[0]).app, [command])


def help_below(app: App, words: list[str]) -> str:
    told = printed_by(app, [*words[1:], "--help"])
    subcommands = re.findall(r"^│ ([a-z]+) ", told, re.MULTILINE) if "COMMAND" in told.splitlines()[0] else []
    return told + "".join(help_below(app, [*words, subcommand]) for subcommand in subcommands)


def printed_by(app: App, argv: list[str]) -> str:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("COLUMNS", "200")
        run_app(app, argv)  # not the command's main(), which would choose the exit code of the whole test session
    return out.getvalue()


def shell_lines(page: Path) -> list[str]:
    """What stands behind the prompts of the console blocks."""
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    return [line[2:] for line in lines if line.startswith("$ ")]


def broken_links(text: str, page: Path) -> list[str]:
    """Relative links of a page that lead nowhere, or to an anchor that is not there."""
    broken = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    return broken


@of_every_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert broken_links(FENCE.sub("", page.read_text(encoding="utf-8")), page) == []


@pytest.mark.parametrize("tool", sorted((ROOT / "tools").glob("reference*.py")), ids=lambda tool: tool.name)
def test_every_link_of_the_pages_that_are_generated_leads_somewhere(tool: Path) -> None:
    text = "".join(re.findall(r"^.*\]\(\.\./[^{}()\s]+\).*$", tool.read_text(encoding="utf-8"), re.MULTILINE))

    assert broken_links(text, ROOT / "docs" / "reference" / "page.md") == []


@of_every_page
def test_every_option_in_an_example_exists(page: Path) -> None:
    unknown = []
    for line in shell_lines(page):
        words = shlex.split(line, comments=True)
        command = next((Path(word).name for word in words if Path(word).name in COMMANDS), None)
        if command:
            unknown += [(command, flag) for flag in FLAG.findall(" ".join(words)) if flag not in FLAG.findall(help_of(command))]

    assert unknown == []


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_page_of_a_command_names_no_option_that_does_not_exist(command: str) -> None:
    page = ROOT / "docs" / "commands" / f"{command}.md"
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    known = {flag for other in COMMANDS for flag in FLAG.findall(help_of(other))}

    assert set(FLAG.findall(prose)) <= known
    assert any(line.startswith(command) for line in shell_lines(page))


@of_every_page
def test_python_in_the_pages_compiles_and_names_what_exists(page: Path) -> None:
    import legion_p2p

    for code in blocks(page, "python"):
        tree = ast.parse(code)
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "legion"
        }
        assert used <= set(legion_p2p.__all__)


@of_every_page
def test_toml_in_the_pages_is_toml(page: Path) -> None:
    for text in blocks(page, "toml"):
        tomllib.loads(text)


def paths_in(page: Path) -> set[str]:
    """What a page names that looks like a file or folder of the repository: `core/round.py`, `tests/sim`, `round.py`."""
    text = re.sub(r"\w+://\S+|\]\(\S+\)", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    files = re.findall(r"(?<![\w/.<*-])((?:[\w.-]+/)*[\w-]+\.(?:py|toml|yml|ipynb|mjs))\b", text)
    folders = re.findall(r"(?<![\w/.-])((?:tests|docs|benchmarks|tools|examples|legion_p2p)/[\w/]+)(?![\w/.-])", text)
    return {path for path in (*files, *(folder.rstrip("/") for folder in folders)) if path not in NOT_OURS}


NOT_OURS = {"run.toml", "peer.toml", "SPEC.toml", "my_loop.py"}  # files that a user writes, as examples call them
PAST = {"CHANGELOG.md", "LOG.md"}  # they tell of files that may be gone


@functools.cache
def files_here() -> frozenset[str]:
    """Every file and folder of the repository, by its path and by all ends of its path."""
    named = set()
    for top in ("legion_p2p", "tests", "docs", "benchmarks", "tools", "examples", ".github"):
        for path in (ROOT / top).rglob("*"):
            parts = path.relative_to(ROOT).parts
            named |= {"/".join(parts[at:]) for at in range(len(parts))}
    return frozenset(named | {path.name for path in ROOT.iterdir()})


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in PAST], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    assert sorted(paths_in(page) - files_here()) == []


def test_the_map_names_a_file_of_every_layer() -> None:
    named = paths_in(ROOT / "docs" / "ARCHITECTURE.md")
    layers = {path.parent.name for path in (ROOT / "legion_p2p").glob("*/__init__.py")} - {"concurrency", "dashboard", "sim"}

    assert layers - {path.split("/")[0] for path in named} == set()


@pytest.mark.parametrize("word", ["semaphore", "reputation", "retention", "relay", "upload slots"])
def test_a_newcomer_finds_the_place_by_the_word_of_the_field(word: str) -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    index = text.partition("## Words to look for")[2].partition("\n## ")[0]
    rows = [row.split("|") for row in index.splitlines() if row.startswith("| ")]

    (places,) = [row[2] for row in rows if word in re.split(r", | or ", row[1].strip())]
    assert re.search(r"\w+/\w+\.py", places)


def test_every_test_that_the_map_names_exists() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))

    named = set(re.findall(r"`(test_\w+)`", text))

    assert len(named) >= 5
    assert [name for name in sorted(named) if f"def {name}(" not in sources] == []


def test_every_target_of_the_makefile_has_a_line_in_its_help() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)

    assert set(re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE)) == set(phony.split())


def test_the_commands_of_the_readme_are_those_of_the_makefile() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    assert {"demo", "test"} <= set(re.findall(r"^\$ make (\w+)", readme, re.MULTILINE)) <= targets


def test_the_file_of_bootstrap_peers_can_be_read() -> None:
    from legion_p2p.core.addresses import parse_addresses

    assert isinstance(parse_addresses([f"@{ROOT / 'legion_p2p' / 'bootstrap_peers.txt'}"]), tuple)
