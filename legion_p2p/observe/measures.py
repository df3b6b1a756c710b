"""The numbers that a peer or a node tells to monitoring: their names, what they mean, and where they are in a status.

One table for what Prometheus reads (observe/prometheus.py), for reports to experiment trackers (reporting/), and docs/metrics.md.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from legion_p2p.observe.status import Status
from legion_p2p.observe.words import n_lost

PREFIX = "legion_"


class Measure(msgspec.Struct, frozen=True):
    """One number. A counter is a total since the start; its name is written without `_total`."""

    name: str
    kind: Literal["gauge", "counter"]
    meaning: str
    read: Callable[[Status], float | None]
    """None: it is not known, and nothing is told."""
    of_run: bool = False
    """Only a peer in a run has it."""

    @property
    def full_name(self) -> str:
        """As Prometheus has it."""
        return f"{PREFIX}{self.name}" + ("_total" if self.kind == "counter" else "")


def _gauge(name: str, meaning: str, read: Callable[[Status], float | None]) -> Measure:
    return Measure(name, "gauge", meaning, read)


def _counter(name: str, meaning: str, read: Callable[[Status], float | None]) -> Measure:
    return Measure(name, "counter", meaning, read)


def _run_gauge(name: str, meaning: str, read: Callable[[Status], float | None]) -> Measure:
    return Measure(name, "gauge", meaning, read, of_run=True)


def _run_counter(name: str, meaning: str, read: Callable[[Status], float | None]) -> Measure:
    return Measure(name, "counter", meaning, read, of_run=True)


def _service(name: str) -> Callable[[Status], float]:
    """A field of what a peer does for others; 0 where it does nothing for them."""
    return lambda status: float(getattr(status.service, name)) if status.service is not None else 0.0


def _round(name: str) -> Callable[[Status], float | None]:
    """A field of the last round that this peer saw close."""
    return lambda status: None if status.last_round is None else float(getattr(status.last_round, name))


def _swarm_speed(status: Status) -> float:
    others = sum(m.tokens_per_s for m in status.members if m.training and m.peer_id != status.peer_id)
    return others + status.tokens_per_s


def _mean_loss(status: Status) -> float | None:
    losses = [m.loss for m in status.members if m.training and m.loss is not None]
    return sum(losses) / len(losses) if losses else None


MEASURES = (
    _gauge("uptime_seconds", "Since this node started.", lambda s: s.uptime_s),
    _gauge("connected_peers", "Peers that there is a connection with now.", lambda s: s.n_connected),
    _gauge("lost_contacts", "Of the peers that this node was given, those without a connection now.", n_lost),
    _gauge("dht_records", "Records of the DHT held for others.", _service("n_records")),
    _gauge("relay_reservations", "Peers that others can reach through this node now.", _service("n_reservations")),
    _gauge("relay_circuits", "Between two peers each, open now.", _service("n_circuits")),
    _gauge("known_peers", "Peers that this node would know again after a restart.", _service("n_known")),
    _counter("sent_bytes", "Of requests and replies.", lambda s: s.sent_bytes),
    _counter("received_bytes", "Of requests and replies.", lambda s: s.received_bytes),
    _counter("relayed_bytes", "Carried for peers that cannot reach each other.", _service("relayed_bytes")),
    _counter("relay_refusals", "Reservations and circuits that were refused.", _service("n_relay_refusals")),
    _counter("connections", "Made, in either direction.", _service("n_connections")),
    _counter("refused_connections", "Turned away: too many, or of a peer that misbehaved.", _service("n_refused")),
    _counter("dht_questions", "Of the DHT, answered.", _service("n_questions")),
    _run_gauge("step", "Optimizer steps of this peer.", lambda s: s.step),
    _run_gauge("run_step", "Steps of the run, by what most of its members say.", lambda s: s.run_step),
    _run_gauge("loss", "Training loss of this peer, smoothed, in nats per token.", lambda s: s.loss),
    _run_gauge("mean_loss", "Mean training loss of the members that train and tell it.", _mean_loss),
    _run_gauge("tokens_per_second", "Training speed of this peer, smoothed.", lambda s: s.tokens_per_s),
    _run_gauge("swarm_tokens_per_second", "Training speed of all members together, as they tell it.", _swarm_speed),
    _run_gauge("members", "Members of the run that this peer knows, itself included.", lambda s: len(s.members)),
    _run_gauge("training_members", "Those that train.", lambda s: sum(m.training for m in s.members)),
    _run_gauge("shards", "Of the model.", lambda s: len(s.shards)),
    _run_gauge("owned_shards", "Those that this peer owns.", lambda s: sum(one.owner == s.peer_id for one in s.shards)),
    _run_gauge("local_steps", "Between two pushes of this peer, now.", lambda s: s.local_steps),
    _run_gauge("blocked_fraction", "Share of the time that the network held up training.", lambda s: s.blocked_fraction),
    _run_gauge("included_members", "In the last round that closed here.", _round("n_included")),
    _run_gauge("expected_members", "In the same round.", _round("n_expected")),
    _run_gauge("upload_bits_per_second", "What sending has lately reached.", lambda s: s.upload_bps),
    _run_gauge("download_bits_per_second", "What receiving has lately reached.", lambda s: s.download_bps),
    _run_gauge("upload_limit_bits_per_second", "In force now.", lambda s: s.upload_limit_bps),
    _run_gauge("download_limit_bits_per_second", "In force now.", lambda s: s.download_limit_bps),
    _run_gauge("remaining_seconds", "Until this peer's own target, by its speed.", lambda s: s.remaining_s),
    _run_gauge("mfu", "Model FLOPs utilisation of this peer, from 0 to 1.", lambda s: s.mfu),
    _run_counter("tokens", "Trained by this peer.", lambda s: s.tokens),
    _run_counter("rounds", "Of all shards together, that this peer saw close.", lambda s: s.rounds),
    _run_counter("region_bytes", "Exchanged with members of the same region, both ways.", lambda s: s.bytes_in_region),
    _run_counter("across_bytes", "Exchanged with members of other regions, both ways.", lambda s: s.bytes_across),
)  # fmt: skip
"""In the order in which they are told."""


def measured(status: Status) -> Iterator[tuple[Measure, float]]:
    """What is known of a status."""
    for measure in MEASURES:
        if status.run is not None or not measure.of_run:
            value = measure.read(status)
            if value is not None:
                yield measure, float(value)
