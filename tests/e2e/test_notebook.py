"""The notebook, from behind a home router, in a swarm outside: interrupted cells, a runtime that is taken away, and leaving."""

import json
import re
from typing import Any

import nbformat
import pytest
from processes import UNHURRIED

from tests.e2e.run_notebook import NOTEBOOK
from tests.netns import Command, Commands, Internet, skip_reason

needs_namespaces = pytest.mark.skipif(bool(skip_reason()), reason=skip_reason() or "-")


def shown(command: Command, cell: str) -> list[dict[str, Any]]:
    return [said for line in command.lines_with('"cell":') if (said := json.loads(line))["cell"] == cell]


def step_of(text: str) -> int:
    return int(re.findall(r"step ([0-9]+)", text)[-1])


@needs_namespaces
@pytest.mark.timeout(600)
def test_the_notebook_trains_along_from_behind_a_router_and_goes_on_after_its_runtime_was_taken_away(
    internet: Internet, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    monkeypatch.setenv("LEGION_MAX_CPU", UNHURRIED[1])
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    node, outside, home = internet.host("node"), internet.host("outside"), internet.home("home")
    commands.start(node, "node", "legion_p2p.cli.bootstrap", "--identity", "key")
    address = next(word for word in commands[0].line_with("--initial-peers", node.address).split() if node.address in word)
    trainer = ("--json", "--threads", "1", *UNHURRIED, "--initial-peers", address, "--identity", "key")
    new = ("--new-run", "far", "--preset", "xxs", "--local-steps", "2", "--batch", "1")
    commands.start(outside, "outside", "legion_p2p.cli.peer", *trainer, *new)
    commands[1].line_with('"run.created"')
    parameters = json.dumps({"RUN": "far", "ADDRESS": address})

    first = commands.start(home.host("first"), "first", "tests.e2e.run_notebook", parameters, "dies", starts_others=True)
    first.process.wait(300)
    commands[1].line_with('"member.changed"', '"after":"DEAD"')  # before another one comes and counts the members
    second = commands.start(home.host("second"), "second", "tests.e2e.run_notebook", parameters, "leaves", starts_others=True)
    second.process.wait(300)

    for notebook in (first, second):
        assert "in far, with 2 members" in shown(notebook, "join")[0]["text"], notebook.text()
        watched = shown(notebook, "watch")
        assert all(cell["images"] == 1 and "the training goes on" in cell["text"] for cell in watched)
        assert 0 < step_of(watched[0]["text"]) < step_of(watched[1]["text"])  # it trained on while nobody watched
    assert "left run far" in shown(second, "leave")[0]["text"], second.text()
    commands[1].line_with('"round.closed"', '"n_included":2')


def test_the_notebook_holds_no_outputs_and_no_address_of_anybody() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)

    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
    assert 'RUN = ""' in notebook.cells[1].source and 'ADDRESS = ""' in notebook.cells[1].source


def test_what_the_notebook_installs_is_what_the_readme_says_is_needed() -> None:
    (install,) = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if "%pip" in cell.source]
    readme = (NOTEBOOK.parents[1] / "README.md").read_text(encoding="utf-8")

    assert "%pip install -q legion_p2p" in install and "apt-get install -y gcc libgmp-dev" in readme
    assert {"gcc", "libgmp-dev"} <= set(re.findall(r"apt-get -qq install -y (.*)", install)[0].split())
