"""A status as Prometheus reads it: the text format, with the process's own memory, CPU time and file descriptors."""

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from legion_p2p.observe.status import ServiceStatus, Status
from legion_p2p.observe.words import n_lost

CONTENT_TYPE = CONTENT_TYPE_LATEST


def metrics_text(status: Status) -> bytes:
    """What `GET /metrics` answers. Byte counters are totals since the start."""
    registry = CollectorRegistry()
    registry.register(_Collected(status))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Collected(Collector):
    """A status, as Prometheus's client library wants it."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status, service = self._status, self._status.service or ServiceStatus()
        gauges = {
            "uptime_seconds": ("Since this node started.", status.uptime_s),
            "connected_peers": ("Peers that there is a connection with now.", status.n_connected),
            "lost_contacts": ("Of the peers that this node was given, those without a connection now.", n_lost(status)),
            "dht_records": ("Records of the DHT held for others.", service.n_records),
            "relay_reservations": ("Peers that others can reach through this node now.", service.n_reservations),
            "relay_circuits": ("Between two peers each, open now.", service.n_circuits),
            "known_peers": ("Peers that this node would know again after a restart.", service.n_known),
        }
        counters = {
            "sent_bytes": ("Of requests and replies.", status.sent_bytes),
            "received_bytes": ("Of requests and replies.", status.received_bytes),
            "relayed_bytes": ("Carried for peers that cannot reach each other.", service.relayed_bytes),
            "relay_refusals": ("Reservations and circuits that were refused.", service.n_relay_refusals),
            "connections": ("Made, in either direction.", service.n_connections),
            "refused_connections": ("Turned away: too many, or of a peer that misbehaved.", service.n_refused),
            "dht_questions": ("Of the DHT, answered.", service.n_questions),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"legion_{name}", text, value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"legion_{name}", text, value)
