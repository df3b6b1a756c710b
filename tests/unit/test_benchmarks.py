"""The benchmarks: they are listed, they import what exists, and what they say of their own options is true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forking import ForkServer

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks").glob("[a-z]*.py"))


def ran(forks: ForkServer, *words: str) -> "subprocess.CompletedProcess[str]":
    return forks.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=500)  # on a busy machine too


def test_all_of_them_are_listed_with_a_line_each(forks: ForkServer) -> None:
    listed = ran(forks, "benchmarks").stdout

    names = re.findall(r"^  (\w+) +\S", listed, re.MULTILINE)
    assert names == [path.stem for path in FILES]


def test_one_that_does_not_exist_is_named_with_those_that_do(forks: ForkServer) -> None:
    done = ran(forks, "benchmarks", "speed")

    assert done.returncode == 1
    assert "'speed'" in done.stderr and "codecs" in done.stderr


def test_one_is_run_with_its_options(forks: ForkServer) -> None:
    done = ran(forks, "benchmarks", "codecs", "--elements", "8192", "--tries", "1", "--names", "int8")

    assert done.returncode == 0, done.stderr
    assert "| int8 | 8.1" in done.stdout


def test_all_of_them_import_what_exists(forks: ForkServer) -> None:
    code = f"import runpy, sys; sys.path.insert(0, 'benchmarks')\nfor path in {[str(p) for p in FILES]!r}: runpy.run_path(path)"

    done = ran(forks, "-c", code)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_commands_that_it_names_are_its_own_and_their_options_exist(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    commands = re.findall(r"^ +python (benchmarks/\S+) ?(.*)$", ast.get_docstring(ast.parse(source)) or "", re.MULTILINE)
    known = set(re.findall(r'"(--[a-z-]+)"', source))

    assert commands
    for named, words in commands:
        assert named == f"benchmarks/{path.name}"
        assert set(re.findall(r"(?<!\S)--[a-z-]+", words)) <= known
