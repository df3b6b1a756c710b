"""A status as Prometheus reads it: the text format, with the process's own memory, CPU time and file descriptors."""

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from legion_p2p.observe.human import clean
from legion_p2p.observe.measures import PREFIX, measured
from legion_p2p.observe.status import Status

CONTENT_TYPE = CONTENT_TYPE_LATEST
INFO = "run"
"""legion_run_info: which run, peer, region and state the numbers are of."""


def metrics_text(status: Status) -> bytes:
    """What `GET /metrics` answers."""
    registry = CollectorRegistry()
    registry.register(_Collected(status))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Collected(Collector):
    """A status, as Prometheus's client library wants it."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status
        for measure, value in measured(status):
            family = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
            yield family(PREFIX + measure.name, measure.meaning, value)
        if status.run is not None:
            labels = {"run": status.run.name, "run_id": status.run.id, "peer_id": status.peer_id}
            labels |= {"region": status.region, "state": status.state}
            about = {name: clean(text) for name, text in labels.items()}
            yield InfoMetricFamily(PREFIX + INFO, "The run, this peer, its region, and its state.", about)
