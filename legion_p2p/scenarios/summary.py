"""What came of a simulation."""

import statistics
from dataclasses import dataclass
from typing import Any

from legion_p2p.scenarios.scenario import Scenario
from legion_p2p.scenarios.swarm_plan import SwarmPlan
from legion_p2p.scenarios.trace import Record
from legion_p2p.scenarios.watch import Holding
from legion_p2p.sim.swarm_peer import SimPeer


@dataclass(frozen=True)
class SimOutcome:
    """What came of a simulation."""

    record: Record
    plan: SwarmPlan
    virtual_s: float
    wall_s: float
    cpu_s: float
    n_shards: int
    n_elements: int
    joined_after_s: tuple[float, ...]
    """Of each start that led into the run: virtual seconds until every shard was there."""
    n_dead_wrongly: int
    """Reports of the death of a member that was alive, and that no fault kept from the others."""
    agreed: bool | None
    """At the end all held the same; None: nobody waited for it, or nobody was left."""
    places: dict[str, tuple[float, ...]]
    """Network coordinates of the peers that were there at the end, by name: seconds."""
    regions: dict[str, str]
    """The region of each of them."""


def n_behind(holdings: list[Holding]) -> int:
    """Peers that hold some shard two or more versions behind the newest of their region."""
    newest: dict[tuple[str, int], int] = {}
    for holding in holdings:
        key = (holding.region, holding.shard)
        newest[key] = max(newest.get(key, 0), holding.version)
    return len({holding.peer for holding in holdings if newest[holding.region, holding.shard] - holding.version >= 2})


def position_of(peer: SimPeer) -> tuple[float, ...]:
    """Where a peer is, by its network coordinate."""
    coordinate = peer.engine.regions.coordinate
    return () if coordinate is None else tuple(coordinate.position)


def summary_of(name: str, seed: int, scenario: Scenario, outcome: SimOutcome) -> dict[str, Any]:
    """What summary.json says."""
    record, samples = outcome.record, outcome.record.samples
    last = samples[-1] if samples else None
    n_peer_s = sum(sample.n_started for sample in samples) * scenario.sample_every_s()
    losses = [sample.loss for sample in samples if sample.loss is not None]
    return {
        "scenario": name,
        "about": scenario.about,
        "seed": seed,
        "hash": record.digest,
        "virtual_s": round(outcome.virtual_s, 3),
        "wall_s": round(outcome.wall_s, 2),
        "cpu_s": round(outcome.cpu_s, 2),
        "times_real_time": round(outcome.virtual_s / max(outcome.wall_s, 1e-9), 2),
        "cpu_ms_per_peer_and_s": round(1000 * outcome.cpu_s / max(n_peer_s, 1e-9), 3),
        "n_peers": len(outcome.plan.peers),
        "n_at_the_end": last.n_joined if last else 0,
        "n_shards": outcome.n_shards,
        "n_elements": outcome.n_elements,
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "steps": last.n_steps if last else 0,
        "goodput": round(last.n_included / max(1, last.n_steps), 4) if last else 0.0,
        "updates_per_shard": round(last.n_updates / max(1, outcome.n_shards), 2) if last else 0.0,
        "sent_bytes_per_peer_and_s": round(last.sent_bytes / max(n_peer_s, 1e-9), 1) if last else 0.0,
        "gossip_bytes_per_peer_and_s": round(last.gossip_bytes / max(n_peer_s, 1e-9), 1) if last else 0.0,
        "join_median_s": round(statistics.median(outcome.joined_after_s), 3) if outcome.joined_after_s else None,
        "join_longest_s": round(max(outcome.joined_after_s), 3) if outcome.joined_after_s else None,
        "n_faults": len(record.faults),
        "n_dead_wrongly": outcome.n_dead_wrongly,
        "agreed": outcome.agreed,
        "violations": record.violations,
        "events": dict(sorted(record.counts.items())),
    }
