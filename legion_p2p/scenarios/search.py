"""Looking for what must never happen: one seed after the other, and then the smallest scenario that still shows it.

A scenario is made smaller by leaving out faults and peers, halves first (delta debugging; Zeller and Hildebrandt 2002), as
long as a violation of the same kind remains. The result leaves nothing to chance: `present` and `at_s` say all that happens.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

import msgspec

from legion_p2p.errors import ConfigError
from legion_p2p.scenarios.scenario import Scenario
from legion_p2p.scenarios.simulation import simulate
from legion_p2p.scenarios.swarm_plan import SwarmPlan, plan_of, scenario_of_plan

CRASHED = "crashed"
MAX_TRIES = 150  # simulations to make one scenario smaller

T = TypeVar("T")
R = TypeVar("R")


class FoundViolation(msgspec.Struct, frozen=True):
    """A violation, and the smallest scenario that was found to show it."""

    seed: int
    kind: str
    text: str
    at_s: float
    scenario: Scenario
    n_tries: int


def violations_of(scenario: Scenario, seed: int, plan: SwarmPlan | None = None) -> list[dict[str, Any]]:
    """What is violated with this seed; the simulation ends at the first. One that ends by an error shows a mistake as well.

    Raises: UsageError, where the mistake is the scenario's, such as a link trace that is not there.
    """
    plan = plan or plan_of(scenario, seed)
    try:
        return simulate(scenario, seed, stop_at_violation=True, plan=plan).record.violations
    except Exception as failed:
        while isinstance(failed, ExceptionGroup):
            failed = failed.exceptions[0]
        if isinstance(failed, ConfigError):
            raise failed from None
        return [{"at_s": scenario.duration_s, "kind": CRASHED, "text": f"{type(failed).__name__}: {failed}"[:300]}]


def violations_in(
    scenario: Scenario, seeds: Iterable[int], *, n_jobs: int = 1, tell: Callable[[str], object] = lambda text: None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Of each of these seeds at which something is violated, the first violation."""
    for seed, found in in_parallel(_look_at_seed, [(scenario, seed) for seed in seeds], n_jobs):
        tell(f"seed {seed}: " + (f"{found[0]['kind']}: {found[0]['text']}" if found else "nothing"))
        if found:
            yield seed, found[0]


def search(
    scenario: Scenario, seeds: Iterable[int], *, n_jobs: int = 1, tell: Callable[[str], object] = lambda text: None
) -> FoundViolation | None:
    """The first seed of these at which something is violated, with the smallest scenario; None: all is well."""
    for seed, found in violations_in(scenario, seeds, n_jobs=n_jobs, tell=tell):
        return smallest(scenario, seed, found, tell)
    return None


def smallest(
    scenario: Scenario, seed: int, first: dict[str, Any], tell: Callable[[str], object] = lambda text: None
) -> FoundViolation:
    """Leave out faults and peers as long as a violation of the kind of `first` remains."""
    kind, n_tries = first["kind"], 0
    found = first
    if not scenario.settle_s or first["at_s"] < scenario.duration_s:  # nothing that comes later matters
        scenario = msgspec.structs.replace(scenario, duration_s=min(scenario.duration_s, first["at_s"] + 1.0))
    plan = plan_of(scenario, seed)
    plan = msgspec.structs.replace(plan, faults=tuple(f for f in plan.faults if (f.at_s or 0.0) <= scenario.duration_s))

    def shows(candidate: SwarmPlan) -> bool:
        nonlocal n_tries, found
        if n_tries >= MAX_TRIES:
            return False
        n_tries += 1
        alike = next((one for one in violations_of(scenario, seed, candidate) if one["kind"] == kind), None)
        found = alike or found
        tell(f"  {len(candidate.faults)} faults, {len(candidate.peers)} peers: {'shows it' if alike else 'does not'}")
        return alike is not None

    first_peer, rest = plan.peers[0], plan.peers[1:]
    faults = fewest(plan.faults, lambda some: shows(SwarmPlan(plan.peers, tuple(some))))
    peers = fewest(rest, lambda some: shows(SwarmPlan((first_peer, *some), tuple(faults))))
    small = scenario_of_plan(scenario, SwarmPlan((first_peer, *peers), tuple(faults)))
    small = msgspec.structs.replace(small, about=f"{kind} with seed {seed}: {found['text']}"[:500])
    return FoundViolation(seed, kind, found["text"], found["at_s"], small, n_tries)


def fewest(items: Sequence[T], shows: Callable[[Sequence[T]], bool]) -> list[T]:
    """Some of `items`, in their order, that still show it, and of which none can be left out alone. All of them show it."""
    kept = list(items)
    size = len(kept)
    while size:
        at, before = 0, len(kept)
        while at < len(kept):
            fewer = kept[:at] + kept[at + size :]
            if shows(fewer):
                kept = fewer
            else:
                at += size
        if size > 1:
            size //= 2
        elif len(kept) == before:
            break
    return kept


def in_parallel(work: Callable[[T], R], jobs: Sequence[T], n_jobs: int) -> Iterator[R]:
    """Results in the order of the jobs, computed by `n` processes; with one, in this process."""
    if n_jobs <= 1:
        yield from map(work, jobs)
        return
    with ProcessPoolExecutor(n_jobs, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(work, jobs)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _look_at_seed(job: tuple[Scenario, int]) -> tuple[int, list[dict[str, Any]]]:
    scenario, seed = job
    return seed, violations_of(scenario, seed)
