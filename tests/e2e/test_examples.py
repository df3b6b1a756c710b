"""Every example runs for real, in processes of its own, as somebody who tries it would run it: the first by `python`, others as
forks of a process that has imported torch. Peers that are only there to be met take a fifth of a processor.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.forking import ForkServer

EXAMPLES = Path(__file__).parents[2] / "examples"
UNHURRIED = Path(__file__).parent / "unhurried.py"
LONGEST_S = 100  # they take 5 to 15 s on an idle machine; a busy one is not a failure

pytestmark = pytest.mark.timeout(2 * LONGEST_S)


@contextmanager
def started(
    script: str, *args: str, forks: ForkServer | None = None, is_unhurried: bool = False
) -> Iterator["subprocess.Popen[str]"]:
    """An example on its way; killed at the end, where it is still running. `forks`: starts it."""
    start = subprocess.Popen if forks is None else forks.popen
    process: subprocess.Popen[str] = start(
        [sys.executable, "-u", *([str(UNHURRIED)] if is_unhurried else []), str(EXAMPLES / script), *args],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(),
    )  # fmt: skip
    try:
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
    finally:
        process.wait()


def environment() -> dict[str, str]:
    """This checkout, whether it is installed or not; LEGION_* of the outside does not get in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEGION_")}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, [str(EXAMPLES.parent), os.environ.get("PYTHONPATH")]))}


def output_of(process: "subprocess.Popen[str]") -> str:
    told, _ = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 0, told
    return told


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_wrapped_optimizer_trains_alone() -> None:
    with started("01_wrap_an_optimizer.py", "--seconds", "2") as process:
        told = output_of(process)

    assert "others join it with --initial-peers /ip4/" in told
    assert "of whose time the swarm took" in told.splitlines()[-1]


def test_a_second_terminal_joins_the_run_of_the_first(forks: ForkServer) -> None:
    with started("01_wrap_an_optimizer.py", "--seconds", "300", forks=forks, is_unhurried=True) as founder:
        address = first_line(founder).split()[-1]
        with started("01_wrap_an_optimizer.py", "--seconds", "3", "--initial-peers", address, forks=forks) as joiner:
            told = output_of(joiner)

    assert "members 2" in told


def test_founder_and_joiner_end_with_the_same_model(forks: ForkServer) -> None:
    with started("02_create_and_join_a_run.py", forks=forks) as process:
        told = output_of(process)

    assert "peer 1 created the run" in told
    assert "peer 2 joined the run" in told
    assert told.splitlines()[-1] == "same model"


def test_a_bootstrap_node_introduces_peers_and_keeps_its_identity(tmp_path: Path, forks: ForkServer) -> None:
    key = str(tmp_path / "bootstrap.key")
    example, through = "01_wrap_an_optimizer.py", "--initial-peers"

    with started("03_host_a_bootstrap_node.py", "--identity", key, forks=forks) as node:
        word, address = first_line(node).split()
        assert word == "--initial-peers"
        with started(example, "--new-run", "--seconds", "300", through, address, forks=forks, is_unhurried=True) as founder:
            assert "run next-byte" in first_line(founder)
            with started(example, "--seconds", "2", through, address, forks=forks) as joiner:
                told = output_of(joiner)
        node.send_signal(signal.SIGINT)
        farewell = output_of(node)
    with started("03_host_a_bootstrap_node.py", "--identity", key, forks=forks) as node:
        again = first_line(node).split()[-1]

    assert "members 2" in told
    assert farewell.splitlines() == ["left"]
    assert again.rpartition("/p2p/")[2] == address.rpartition("/p2p/")[2]


def test_a_bootstrap_node_from_python_imports_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys, trio, legion_p2p as legion\n"
        "async def main():\n"
        "    async with legion.open_bootstrap(listen=['/ip4/127.0.0.1/tcp/0']) as node:\n"
        "        assert node.addresses()\n"
        "trio.run(main)\n"
        "print('torch' in sys.modules)\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=LONGEST_S, env=environment())

    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr


IN_A_KERNEL = (
    """
from importlib import import_module

import torch
from torch.nn import functional as F

import legion_p2p as legion

example = import_module("01_wrap_an_optimizer")
torch.set_num_threads(1)
model = example.build_model()
""",
    """
opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
opt = legion.Optimizer(opt, model, run="in-a-kernel", initial_peers=[address], tokens_per_step=example.BATCH)
""",
    """
for x, y in example.batches(seed=7):
    F.cross_entropy(model(x), y).backward()
    opt.step()
    opt.zero_grad()
    if opt.steps % 60 == 0:
        break
print(opt.status.run.name, *(member.liveness for member in opt.status.members))
""",
    """
print("handed in:", opt.flush(timeout_s=60))
opt.close()
""",
)


def test_a_model_of_ones_own_trains_in_a_notebook_where_an_asyncio_loop_runs(
    monkeypatch: pytest.MonkeyPatch, forks: ForkServer
) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setattr("jupyter_client.launcher.Popen", forks.popen)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in IN_A_KERNEL])
    client = nbclient.NotebookClient(notebook, timeout=LONGEST_S, resources={"metadata": {"path": str(EXAMPLES)}})

    with started(
        "01_wrap_an_optimizer.py", "--run", "in-a-kernel", "--seconds", "600", forks=forks, is_unhurried=True
    ) as founder:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(f"address = {first_line(founder).split()[-1]!r}"))
        client.execute()

    told = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", ()))
    assert "in-a-kernel ALIVE ALIVE" in told
    assert "handed in: True" in told


def test_no_example_is_left_out() -> None:
    mine = "".join(
        (Path(__file__).parent / name).read_text(encoding="utf-8")
        for name in ("test_examples.py", "test_ranks.py", "run_notebook.py")
    )

    left_out = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb") and path.name not in mine]

    assert left_out == []
