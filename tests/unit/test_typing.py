"""The whole package is typed strictly, apart from a list in pyproject.toml that only shrinks."""

import fnmatch
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
MYPY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
MAX_EXEMPT = 1


def exempt() -> list[str]:
    """Patterns of modules whose errors mypy is told to ignore."""
    return [name for override in MYPY["overrides"] if override.get("ignore_errors") for name in override["module"]]


def modules() -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / "legion_p2p").rglob("*.py"))
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


def test_mypy_checks_the_whole_package_strictly() -> None:
    assert MYPY["packages"] == ["legion_p2p"]
    assert MYPY["strict"] is True


def test_the_list_of_modules_that_are_not_checked_never_grows() -> None:
    assert len(exempt()) <= MAX_EXEMPT


def test_every_module_that_is_not_checked_exists() -> None:
    gone = [pattern for pattern in exempt() if not fnmatch.filter(modules(), pattern)]

    assert gone == []
