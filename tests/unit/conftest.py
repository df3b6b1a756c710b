"""What unit tests share."""

import os

import pytest


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cuts the power during a test, and waiting for the disk thousands of times takes most of the time of all of them."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
