"""One scenario with all combinations of other values for some of its fields, and how they compare."""

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from legion_p2p.scenarios.scenario import Scenario
from legion_p2p.scenarios.search import in_parallel
from legion_p2p.scenarios.simulation import simulate
from legion_p2p.scenarios.summary import summary_of

COMPARED = (
    "loss_last", "goodput", "updates_per_shard", "sent_bytes_per_peer_and_s", "join_median_s", "n_dead_wrongly", "cpu_s",
)  # fmt: skip
"""Fields of a summary that are compared, by their mean over seeds."""


class SweepRow(msgspec.Struct, frozen=True):
    """One combination."""

    chosen: dict[str, Any]
    n_seeds: int
    figures: dict[str, float | None]
    loss_spread: float | None
    """Standard deviation of the last loss over seeds."""
    n_violations: int


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value for each field, the last field changing first."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def sweep(
    name: str, scenarios: Sequence[tuple[dict[str, Any], Scenario]], n_seeds: int, *, n_jobs: int = 1,
    on_done: Callable[[], object] = lambda: None,
) -> Iterator[SweepRow]:  # fmt: skip
    """Simulate each of `scenarios` (what was chosen, and what it comes to) with seeds 0, 1, ..."""
    jobs = [(name, scenario, seed) for _, scenario in scenarios for seed in range(n_seeds)]
    summaries = in_parallel(_summary, jobs, n_jobs)
    for chosen, _ in scenarios:
        mine = []
        for _ in range(n_seeds):
            mine.append(next(summaries))
            on_done()
        yield row_of(chosen, mine)


def row_of(chosen: dict[str, Any], summaries: Sequence[Mapping[str, Any]]) -> SweepRow:
    """The means of the summaries of one combination."""
    figures: dict[str, float | None] = {}
    for field in COMPARED:
        known = [float(one[field]) for one in summaries if one[field] is not None]
        figures[field] = round(statistics.fmean(known), 6) if known else None
    losses = [one["loss_last"] for one in summaries if one["loss_last"] is not None]
    spread = round(statistics.stdev(losses), 6) if len(losses) > 1 else None
    return SweepRow(chosen, len(summaries), figures, spread, sum(len(one["violations"]) for one in summaries))


def _summary(job: tuple[str, Scenario, int]) -> dict[str, Any]:
    name, scenario, seed = job
    return summary_of(name, seed, scenario, simulate(scenario, seed))
