"""Event files, as `tensorboard --logdir FOLDER` shows them."""

import time
from collections.abc import Mapping

from legion_p2p.reporting.tracker import ReportedRun


class TensorboardTracker:
    """Writes into `FOLDER/tensorboard/PEER`, so that peers that share a folder are shown beside each other."""

    def __init__(self, run: ReportedRun) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(run.folder / "tensorboard" / run.name))

    def report(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary(value=[self._summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
