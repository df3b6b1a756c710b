"""What all tests share."""

import gc
import os
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from leftovers import pytest_configure, pytest_unconfigure

from tests.forking import ForkServer

__all__ = [
    "pytest_collection_finish",
    "pytest_configure",
    "pytest_unconfigure",
    "pytest_xdist_auto_num_workers",
    "pytest_xdist_make_scheduler",
]

gc.disable()  # until all is imported and collected
OBJECTS_BETWEEN_COLLECTIONS = 20_000  # 700 by default, which takes several per cent of the time of a simulated swarm

os.environ["LEGION_LAN"] = os.environ["LEGION_PORT_MAPPING"] = "no"  # tests that run side by side would meet each other
os.environ.pop("PYTHONUNBUFFERED", None)  # commands are started as users start them, with output that is buffered
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of a hundred processes compiles the package again
sys.dont_write_bytecode = False
torch.set_num_threads(1)
# A busy machine is not a failure; and two runs of the same code try the same examples, unless new ones are asked for.
settings.register_profile("any machine", deadline=None, derandomize="NEW_EXAMPLES" not in os.environ)
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """Starts processes that need not import torch."""
    server = ForkServer()
    try:
        yield server
    finally:
        server.close()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two more than there are cores: the end-to-end tests wait for more than half of their time."""
    return 2 + (os.cpu_count() or 1)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> None:
    """Files run in the order of their folders: the end-to-end tests side by side first, and at last many that only compute.

    By itself pytest-xdist begins with the files of most tests. Files of one long test were left for the end, where workers wait.
    """
    config.option.loadscopereorder = False


def pytest_collection_finish(session: pytest.Session) -> None:
    """The garbage collector need not look at what has been imported and collected: it stays until the end."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])
