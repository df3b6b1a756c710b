"""Runs the notebook of examples/ as a person does, and says in JSON lines what its cells showed. A process of test_notebook.py.

    python -m tests.e2e.run_notebook '{"RUN": "far", "ADDRESS": "/ip4/..."}' leaves|dies

The cell with the plot is interrupted once it has drawn something, and run again. `dies`: kernel and peer are killed then, as when
a runtime is taken away; `leaves`: the last cell is run.
"""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import psutil

NOTEBOOK = Path(__file__).parents[2] / "examples" / "04_join_from_a_notebook.ipynb"
CELL_S = 200  # joining takes 10 s on an idle machine


def text_of(cell: Any) -> str:
    return "".join(out.get("text", "") for out in cell.outputs)


def images_of(cell: Any) -> int:
    return sum("image/png" in out.get("data", {}) for out in cell.outputs)


def say(cell: str, shown: Any) -> None:
    print(json.dumps({"cell": cell, "text": text_of(shown), "images": images_of(shown)}), flush=True)


async def run(parameters: dict[str, Any], end: str) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = {cell.source.splitlines()[0]: (i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"}
    names = ("parameters", "install", "join", "watch", "leave")
    (_, first), *_ = cells.values()
    assert len(cells) == len(names) and "parameters" in first.metadata.tags
    first.source = "\n".join(f"{name} = {value!r}" for name, value in ({"MINUTES": 0} | parameters).items())
    by_name = dict(zip(names, cells.values(), strict=True))
    client = nbclient.NotebookClient(notebook, timeout=CELL_S)

    async def execute(name: str) -> None:
        i, cell = by_name[name]
        await client.async_execute_cell(cell, i)
        say(name, cell)

    async with client.async_setup_kernel():
        for name in names[:3]:
            await execute(name)
        for _ in range(2):
            cell = by_name["watch"][1]
            cell.outputs.clear()
            watching = asyncio.create_task(execute("watch"))
            while not (images_of(cell) and re.search(r"step [1-9]", text_of(cell))) and not watching.done():  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            await asyncio.sleep(1)
            assert client.km is not None
            await client.km.interrupt_kernel()
            await watching
        if end == "dies":
            kill_all()
        await execute("leave")


def kill_all() -> None:
    """As when the machine is taken away: kernel, peer and this process, at once."""
    me = psutil.Process()
    for process in [*me.children(recursive=True), me]:
        process.kill()


if __name__ == "__main__":
    asyncio.run(run(json.loads(sys.argv[1]), sys.argv[2]))
