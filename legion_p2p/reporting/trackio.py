"""Trackio. Its own variables apply: TRACKIO_DIR, TRACKIO_SPACE_ID, ..."""

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

from legion_p2p.reporting.tracker import ReportedRun


class TrackioTracker:
    """A run in the project of the swarm's run."""

    def __init__(self, run: ReportedRun) -> None:
        import trackio

        self._finish: Any = trackio.finish
        with contextlib.redirect_stdout(sys.stderr):  # it prints how to look at it, and stdout is the user's
            self._run = trackio.init(
                run.project, name=run.name, config=run.config, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False
            )

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._finish()
