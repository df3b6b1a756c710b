"""Which trackers there are, what each needs, and how it is opened."""

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from legion_p2p.config.forms import NONE
from legion_p2p.config.training import TRACKERS
from legion_p2p.errors import UsageError
from legion_p2p.reporting.tracker import ReportedRun, Tracker

OTEL = "otel"
OTEL_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
"""One of them in the environment, and reports go there as well: how programs with OpenTelemetry are usually configured."""


def _tensorboard(run: ReportedRun) -> Tracker:
    from legion_p2p.reporting.tensorboard import TensorboardTracker

    return TensorboardTracker(run)


def _wandb(run: ReportedRun) -> Tracker:
    from legion_p2p.reporting.wandb import WandbTracker

    return WandbTracker(run)


def _trackio(run: ReportedRun) -> Tracker:
    from legion_p2p.reporting.trackio import TrackioTracker

    return TrackioTracker(run)


def _otel(run: ReportedRun) -> Tracker:
    from legion_p2p.reporting.otel import OtelTracker

    return OtelTracker(run)


_OPENED: Mapping[str, Callable[[ReportedRun], Tracker]] = MappingProxyType({
    "wandb": _wandb,
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    OTEL: _otel,
})  # fmt: skip
_MODULES = MappingProxyType({OTEL: "opentelemetry.exporter.otlp.proto.http"})
"""What has to be there, where it is not called like the tracker."""


def usable(names: Iterable[str]) -> tuple[str, ...]:
    """`names` without "none", and OpenTelemetry where the environment asks for it.

    Raises: UsageError, if the package of one is not installed here.
    """
    wanted = [name for name in dict.fromkeys(names) if name != NONE]
    if any(os.environ.get(variable) for variable in OTEL_VARIABLES) and OTEL not in wanted:
        wanted.append(OTEL)
    for name in wanted:
        if name not in _OPENED:
            raise UsageError(f"{name!r} is no tracker that is known here: give {TRACKERS}")
        if not _is_installed(_MODULES.get(name, name)):
            raise UsageError(f'reports to {name} need its package: pip install "legion_p2p[{name}]"')
    return tuple(wanted)


def open_tracker(name: str, run: ReportedRun) -> Tracker:
    """One of those that are `usable`. Raises: whatever its library raises."""
    return _OPENED[name](run)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package around it
        return False
