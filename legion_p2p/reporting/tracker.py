"""What a tracker is, and whose numbers it gets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec


class ReportedRun(msgspec.Struct, frozen=True):
    """Whose numbers they are."""

    project: str
    """The run's name."""
    name: str
    """Of this peer, in short."""
    config: dict[str, Any]
    folder: Path
    """Where a tracker that writes files puts them."""


class Tracker(Protocol):
    """Where numbers go. Called from one thread."""

    def report(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers by name; `step` is the run's, and never falls."""

    def close(self) -> None:
        """Nothing comes any more."""
