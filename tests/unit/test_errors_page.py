"""Every error has a short name, a place on its page, and ends what a command says with that name."""

import errno
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from legion_p2p.cli.failures import OTHER_NAMES, failure_of
from legion_p2p.cli.running import report
from legion_p2p.errors import (
    CodecError,
    IncompatibleModelError,
    LegionError,
    StoreError,
    UnknownRunError,
    UsageError,
    short_name,
)

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("errors_page", ROOT / "tools" / "errors_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


errors_page = load()


def test_the_page_is_what_the_errors_say() -> None:
    assert errors_page.PAGE.read_text(encoding="utf-8") == errors_page.page(), "run python tools/errors_page.py"


def test_each_short_name_is_said_once_and_has_a_place_on_the_page() -> None:
    names = [short_name(kind) for kind in errors_page.kinds()] + list(OTHER_NAMES)

    assert len(set(names)) == len(names)
    assert re.findall(r"^## (.+)$", errors_page.PAGE.read_text(encoding="utf-8"), re.MULTILINE) == names


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (UnknownRunError, "unknown-run"),
        (IncompatibleModelError, "incompatible-model"),
        (CodecError, "codec"),
    ],
)
def test_a_short_name_is_the_classs_in_small_letters(kind: type[LegionError], name: str) -> None:
    assert short_name(kind) == name


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (UsageError("no such option"), "usage"), (UnknownRunError("x", 2), "unknown-run"),
        (ExceptionGroup("several", [StoreError("the disk")]), "store"), (MemoryError(), "memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "system"), (ImportError("no torch"), "installation"),
        (ZeroDivisionError("a bug"), "mistake"), (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), "unicode"),
    ],
)  # fmt: skip
def test_whatever_ends_a_command_has_a_name(bad: BaseException, name: str) -> None:
    assert failure_of(bad, "legion-peer").name == name


def test_the_name_closes_the_first_line_so_that_a_list_below_stays_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    report("legion-ctl", "2 peers run here:\na\nb", "see --help", kind="usage")

    assert capsys.readouterr().err.splitlines() == [
        "legion-ctl: error: 2 peers run here: [usage]", "  a", "  b", "legion-ctl: see --help",
    ]  # fmt: skip
