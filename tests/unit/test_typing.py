"""The whole package is typed strictly, without exception."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
MYPY = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]


def test_mypy_checks_the_whole_package_strictly() -> None:
    assert MYPY["packages"] == ["legion_p2p"]
    assert MYPY["strict"] is True


def test_no_module_of_the_package_is_exempt() -> None:
    ours = [name for override in MYPY["overrides"] for name in override["module"] if name.startswith("legion_p2p")]

    assert ours == []


def test_only_packages_that_ship_no_types_may_be_untyped() -> None:
    assert [set(override) for override in MYPY["overrides"]] == [{"module", "ignore_missing_imports"}]
