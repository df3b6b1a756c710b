"""OpenTelemetry's metrics over OTLP and HTTP. Its own variables apply, such as OTEL_EXPORTER_OTLP_ENDPOINT."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from legion_p2p.observe.measures import MEASURES
from legion_p2p.reporting.tracker import ReportedRun


class OtelTracker:
    """Instruments of the same names as elsewhere, which the library reads and exports in a rhythm of its own."""

    def __init__(self, run: ReportedRun) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.metrics import Observation
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource

        self._observed = Observation
        self._values: dict[str, float] = {}
        about = {"service.name": "legion-peer", "service.instance.id": run.name, "legion.run": run.project}
        self._provider = MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], Resource.create(about))
        meter = self._provider.get_meter("legion_p2p")
        for measure in MEASURES:
            make = meter.create_observable_counter if measure.kind == "counter" else meter.create_observable_gauge
            make(f"legion.{measure.name}", [self._reader(measure.name)], description=measure.meaning)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._values |= values

    def close(self) -> None:
        self._provider.shutdown()

    def _reader(self, name: str) -> Callable[[object], Iterable[Any]]:
        def read(_: object) -> Iterable[Any]:
            return [self._observed(self._values[name])] if name in self._values else []

        return read
