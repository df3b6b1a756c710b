"""Who may import whom, as docs/ARCHITECTURE.md draws it and pyproject.toml says it to import-linter."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
LAYERS = next(contract["layers"] for contract in CONTRACTS if contract["type"] == "layers")


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

    for line in LAYERS:
        assert line in drawn
