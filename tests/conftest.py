"""What all tests share."""

import os

import pytest
import torch

torch.set_num_threads(1)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: the end-to-end tests wait for much of their time."""
    return 1 + (os.cpu_count() or 1)
