"""Reports to experiment trackers: the thread with trackers that misbehave, and each real package, offline."""

import http.server
import importlib.util
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from legion_p2p.config import Training
from legion_p2p.config.training import TRACKER_NAMES
from legion_p2p.errors import ClosedError, UsageError
from legion_p2p.observe.events import Event
from legion_p2p.observe.status import RunStatus, Status
from legion_p2p.reporting import trackers as trackers_module
from legion_p2p.reporting.reports import VAL_LOSS, Reports
from legion_p2p.reporting.tracker import ReportedRun
from legion_p2p.reporting.trackers import OTEL_VARIABLES, open_tracker, usable
from tests.unit.test_measures import STATUS
from tests.waiting import eventually

RUN = ReportedRun("my-run", "peer-1", {"run": "my-run"}, Path())


def needs(module: str) -> pytest.MarkDecorator:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    return pytest.mark.skipif(found is None, reason=f"{module} is not installed here")


class Kept:
    """A tracker that keeps what it is told, and fails where it is told to."""

    def __init__(self, fails_at: int = 0) -> None:
        self.run: ReportedRun | None = None
        self.told: list[tuple[int, dict[str, float]]] = []
        self.closed = False
        self._fails_at = fails_at

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append((step, dict(values)))
        if len(self.told) == self._fails_at:
            raise RuntimeError("quota exceeded\nand a long story")

    def close(self) -> None:
        self.closed = True


def reports_to(kept: dict[str, Kept], get_status: Callable[[], Status | None], told: list[str], every_s: float = 0.01) -> Reports:
    def opened(name: str, run: ReportedRun) -> Kept:
        kept[name].run = run
        return kept[name]

    return Reports(list(kept), get_status, tell=told.append, folder=Path("x"), every_s=every_s, opened=opened)


def test_numbers_are_reported_by_the_runs_step_which_never_falls_and_once_more_at_the_end() -> None:
    kept, told, now = {"a": Kept()}, [], [STATUS]
    reports = reports_to(kept, lambda: now[0], told)
    eventually(lambda: kept["a"].told)
    now[0] = msgspec.structs.replace(STATUS, run_step=11, loss=1.5)

    reports.close()

    steps = [step for step, _ in kept["a"].told]
    assert set(steps) == {12} and kept["a"].closed and not told
    assert kept["a"].told[-1][1]["loss"] == 1.5 and kept["a"].told[-1][1]["tokens"] == 4096


def test_nothing_is_opened_before_the_peer_is_in_a_run() -> None:
    kept, told = {"a": Kept()}, []
    now: list[Status | None] = [None]
    reports = reports_to(kept, lambda: now[0], told)
    time.sleep(0.03)
    now[0] = msgspec.structs.replace(STATUS, run=None)
    time.sleep(0.03)
    assert kept["a"].run is None

    now[0] = STATUS
    eventually(lambda: kept["a"].told)
    reports.close()

    run = kept["a"].run
    assert run is not None and run.project == "a--run" and run.config["peer_id"] == STATUS.peer_id and run.folder == Path("x")


def test_a_runs_name_leads_to_no_other_folder() -> None:
    kept, told = {"a": Kept()}, []
    named = msgspec.structs.replace(STATUS, run=RunStatus("id", "../../etc/\x1b[31m" + "x" * 500))
    reports_to(kept, lambda: named, told, every_s=60).close()

    run = kept["a"].run
    assert run is not None and "/" not in run.project and not run.project.startswith(".") and len(run.project) <= 100


def test_one_that_fails_is_told_of_once_and_the_others_go_on() -> None:
    kept, told = {"bad": Kept(fails_at=2), "good": Kept()}, []
    reports = reports_to(kept, lambda: STATUS, told)
    eventually(lambda: len(kept["good"].told) > 5)

    reports.close()

    assert told == ["reports to bad have ended: quota exceeded"]
    assert len(kept["bad"].told) == 2 and not kept["bad"].closed and kept["good"].closed


def test_one_that_cannot_be_opened_is_told_of_and_training_goes_on() -> None:
    told: list[str] = []

    def refuses(name: str, run: ReportedRun) -> Kept:
        raise OSError("no network")

    Reports(["a"], lambda: STATUS, tell=told.append, every_s=60, opened=refuses).close()

    assert told == ["reports to a have ended: no network"]


def test_a_loss_on_held_out_text_is_reported_once() -> None:
    kept, told = {"a": Kept()}, []
    reports = reports_to(kept, lambda: STATUS, told, every_s=60)
    reports.on_event(Event("eval", 0.0, {"step": 3, VAL_LOSS: 1.25}))
    reports.on_event(Event("run.finished", 0.0, {VAL_LOSS: None}))

    reports.close()

    assert [values[VAL_LOSS] for _, values in kept["a"].told] == [1.25]


def test_a_peer_that_has_left_ends_its_reports_without_noise() -> None:
    kept, told = {"a": Kept()}, []
    left = threading.Event()

    def status() -> Status:
        if left.is_set():
            raise ClosedError("left")
        return STATUS

    reports = reports_to(kept, status, told)
    eventually(lambda: kept["a"].told)
    left.set()
    reports.close()

    assert kept["a"].closed and not told


def test_names_of_trackers_are_those_of_the_option_and_others_are_refused() -> None:
    assert set(TRACKER_NAMES) == {*trackers_module._OPENED, "none"}
    assert Training(report_to="tensorboard,none").report_to == ("tensorboard",)  # type: ignore[arg-type]
    assert usable(["none"]) == ()
    with pytest.raises(UsageError, match="'mlflow' is not allowed"):
        Training(report_to="mlflow")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'mlflow' is no tracker"):
        usable(["mlflow"])


def test_a_missing_package_is_named_before_anything_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers_module, "_is_installed", lambda module: False)

    with pytest.raises(UsageError, match=r'pip install "legion_p2p\[wandb\]"'):
        usable(["wandb"])


@pytest.mark.parametrize("variable", OTEL_VARIABLES)
def test_the_usual_variables_switch_opentelemetry_on(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers_module, "_is_installed", lambda module: True)
    monkeypatch.setenv(variable, "http://127.0.0.1:4318")

    assert usable([]) == ("otel",) and usable(["otel"]) == ("otel",)


# the real packages


@needs("tensorboard")
def test_tensorboard_reads_what_was_reported(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    tracker = open_tracker("tensorboard", msgspec.structs.replace(RUN, folder=tmp_path))
    tracker.report(3, {"loss": 2.5})
    tracker.report(4, {"loss": 1.5})
    tracker.close()

    (file,) = (tmp_path / "tensorboard" / "peer-1").iterdir()
    events = [event for event in EventFileLoader(str(file)).Load() if event.summary.value]
    assert [(event.step, event.summary.value[0].tag) for event in events] == [(3, "loss"), (4, "loss")]
    assert [event.summary.value[0].tensor.float_val[0] for event in events] == [2.5, 1.5]


@needs("wandb")
def test_wandb_takes_reports_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    try:
        tracker = open_tracker("wandb", msgspec.structs.replace(RUN, folder=tmp_path))
        tracker.report(3, {"loss": 2.5})
        tracker.close()
    finally:
        wandb.teardown()  # its process, which writes the file

    (file,) = tmp_path.rglob("*.wandb")
    written = file.read_bytes()
    assert b"loss" in written and b"2.5" in written and b"run_step" in written
    assert capsys.readouterr().out == ""


@needs("trackio")
def test_trackio_takes_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))

    for module in ("trackio.utils", "trackio.sqlite_storage"):  # read once, when it is imported
        monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path)
    tracker = open_tracker("trackio", RUN)
    tracker.report(3, {"loss": 2.5})
    tracker.close()

    (file,) = tmp_path.glob("*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select step, metrics from metrics").fetchall()
    assert [step for step, _ in rows] == [3] and b"2.5" in _bytes(rows[0][1])
    assert capsys.readouterr().out == ""


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


@needs("opentelemetry.exporter.otlp.proto.http")
def test_opentelemetry_exports_over_http_to_where_its_variables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    got: list[bytes] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Collector)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        tracker = open_tracker("otel", RUN)
        tracker.report(3, {"loss": 2.5, "tokens": 7.0})
        tracker.close()
    finally:
        server.shutdown()
        server.server_close()

    metrics = [
        metric
        for body in got
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    ]
    values = {m.name: (m.gauge.data_points or m.sum.data_points)[0].as_double for m in metrics}
    assert values == {"legion.loss": 2.5, "legion.tokens": 7.0}
    assert next(m for m in metrics if m.name == "legion.tokens").sum.is_monotonic
