"""Who may import whom, as docs/ARCHITECTURE.md draws it and pyproject.toml says it to import-linter."""

import subprocess
import sys
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
LAYERS, SERVICE_LAYERS = (contract["layers"] for contract in CONTRACTS if contract["type"] == "layers")


def test_every_import_keeps_to_the_layers(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command; lint_imports_command()"

    done = subprocess.run(
        [sys.executable, "-c", code, "--cache-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_every_module_has_a_layer() -> None:
    placed = {name.strip() for line in LAYERS for name in line.split("|")}
    package = ROOT / "legion_p2p"
    there = {p.stem for p in package.glob("*.py")} | {p.parent.name for p in package.glob("*/__init__.py")}

    assert there - {"__init__"} == placed


def test_the_map_for_newcomers_draws_the_same_layers() -> None:
    drawn = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")

    for line in (*LAYERS, *SERVICE_LAYERS):
        assert line in drawn


def test_modules_in_a_circle_are_found() -> None:
    imports = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": set()}

    assert circles(imports) == [["a", "b", "c"]]


def test_no_modules_import_each_other_in_a_circle_not_even_for_type_checking() -> None:
    graph = grimp.build_graph("legion_p2p", exclude_type_checking_imports=False, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}

    assert len(imports) > 150
    assert circles(imports) == []


def circles(imports: Mapping[str, Collection[str]]) -> list[list[str]]:
    """The groups of more than one module in which each module leads to every other one."""
    reached = {module: _reached_from(module, imports) for module in imports}
    in_circles = [module for module in imports if module in reached[module]]
    groups = {tuple(sorted(other for other in reached[module] if module in reached[other])) for module in in_circles}
    return [list(group) for group in sorted(groups)]


def _reached_from(module: str, imports: Mapping[str, Collection[str]]) -> set[str]:
    reached: set[str] = set()
    to_visit = [*imports[module]]
    while to_visit:
        other = to_visit.pop()
        if other not in reached:
            reached.add(other)
            to_visit += imports[other]
    return reached
