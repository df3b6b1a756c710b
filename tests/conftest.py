"""What all tests share."""

import os
import sys

import pytest
import torch
from hypothesis import settings
from leftovers import pytest_configure, pytest_unconfigure

__all__ = ["pytest_configure", "pytest_unconfigure", "pytest_xdist_auto_num_workers"]

os.environ["LEGION_LAN"] = os.environ["LEGION_PORT_MAPPING"] = "no"  # tests that run side by side would meet each other
os.environ.pop("PYTHONUNBUFFERED", None)  # commands are started as users start them, with output that is buffered
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of a hundred processes compiles the package again
sys.dont_write_bytecode = False
torch.set_num_threads(1)
settings.register_profile("any machine", deadline=None)  # a busy machine is not a failure
settings.load_profile("any machine")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: the end-to-end tests wait for much of their time."""
    return 1 + (os.cpu_count() or 1)
