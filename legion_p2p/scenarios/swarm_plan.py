"""From a scenario and a seed to what exactly happens: which peer is there when, how fast it is, which fault comes when.

Everything random about a scenario is drawn here, before the simulation, from generators of its own for each group, peer and
fault. So one peer or fault less leaves all others as they are, which is what makes a scenario smaller piece by piece.
"""

import math
import random
from collections.abc import Iterator

import msgspec

from legion_p2p.errors import UsageError
from legion_p2p.scenarios.scenario import MAX_FAULTS, MAX_PEERS, Fault, Joins, PeerGroup, Scenario, Stays, peer_names

JITTER = 0.1  # of the hour at which somebody's day begins, as a share of the day
MIN_SESSION_S = 1.0  # a peer that goes before it has come shows nothing


class Attendance(msgspec.Struct, frozen=True):
    """A time during which a peer is there."""

    begin_s: float
    end_s: float
    """`math.inf`: it stays."""
    leaves: bool = False
    """It says goodbye."""


class PeerPlan(msgspec.Struct, frozen=True):
    """One peer, and when it is there."""

    name: str
    group: PeerGroup
    """In the one region that is this peer's."""
    step_s: float
    sessions: tuple[Attendance, ...]


class SwarmPlan(msgspec.Struct, frozen=True):
    """What happens."""

    peers: tuple[PeerPlan, ...]
    """The first one creates the run."""
    faults: tuple[Fault, ...]
    """Each with a moment, in this order."""


def plan_of(scenario: Scenario, seed: int) -> SwarmPlan:
    """What happens in this scenario with this seed. Raises: UsageError, where it comes to more peers or faults than can be."""
    peers: list[PeerPlan] = []
    for group in scenario.peers:
        for peer in _peers_of(group, scenario.duration_s, seed, creates=not peers):
            peers.append(peer)
            if len(peers) > MAX_PEERS:
                raise UsageError(f"group {group.name}: with those that come in place of others it is more than {MAX_PEERS} peers")
    faults: list[Fault] = []
    for i, fault in enumerate(scenario.faults):
        for one in _occurrences(fault, scenario.duration_s, random.Random(f"{seed}/fault/{i}")):
            faults.append(one)
            if len(faults) > MAX_FAULTS:
                raise UsageError(f"faults[{i}]: {fault.kind} every {fault.every_s:g} s comes to more than {MAX_FAULTS} faults")
    return SwarmPlan(tuple(peers), tuple(sorted(faults, key=lambda fault: fault.at_s or 0.0)))


def scenario_of_plan(scenario: Scenario, plan: SwarmPlan) -> Scenario:
    """A scenario in which nothing is left to chance: it has this plan with every seed."""
    groups = tuple(
        msgspec.structs.replace(
            peer.group, name=peer.name, count=1, step_s=peer.step_s, spread=0.0, joins=Joins(),
            stays=Stays(ends="leave" if any(session.leaves for session in peer.sessions) else "kill"),
            present=tuple((session.begin_s, session.end_s) for session in peer.sessions),
        )
        for peer in plan.peers
    )  # fmt: skip
    return msgspec.structs.replace(scenario, peers=groups, faults=plan.faults)


def _peers_of(group: PeerGroup, duration_s: float, seed: int, creates: bool) -> Iterator[PeerPlan]:
    names = peer_names(group)
    arrivals = _arrivals(group.joins, group.count, random.Random(f"{seed}/{group.name}/joins"))
    for i, name in enumerate(names):
        rng = random.Random(f"{seed}/{name}")
        step_s = group.step_s * math.exp(rng.gauss(0.0, group.spread)) if group.spread else group.step_s
        own = group
        if group.regions > 1:
            own = msgspec.structs.replace(group, region=f"{group.region}-{i % group.regions}", regions=1)
        if group.present:
            leaves = group.stays.ends == "leave"
            yield PeerPlan(name, own, step_s, tuple(Attendance(begin, end, leaves) for begin, end in group.present))
            continue
        begin_s = 0.0 if creates and i == 0 else arrivals[i]
        drawn = _sessions(group.stays, begin_s, duration_s, rng)
        if not group.stays.replaced:
            if sessions := tuple(drawn):
                yield PeerPlan(name, own, step_s, sessions)
            continue
        for generation, session in enumerate(drawn):  # each of them is another peer, as fast as the one before
            yield PeerPlan(name if not generation else f"{name}.{generation}", own, step_s, (session,))


def _arrivals(joins: Joins, count: int, rng: random.Random) -> list[float]:
    if joins.kind == "poisson":
        return sorted(
            joins.at_s + rng.uniform(0.0, joins.over_s) for _ in range(count)
        )  # the arrivals of a Poisson process, given how many they are
    return [joins.at_s + joins.over_s * i / max(1, count - 1) for i in range(count)]


def _sessions(stays: Stays, begin_s: float, duration_s: float, rng: random.Random) -> Iterator[Attendance]:
    leaves = stays.ends == "leave"
    if stays.kind == "always":
        yield Attendance(begin_s, math.inf)
        return
    if stays.kind == "daily":
        yield from _days(stays, begin_s, duration_s, rng)
        return
    while begin_s < duration_s:
        end_s = begin_s + max(MIN_SESSION_S, _session_s(stays, rng))
        yield Attendance(begin_s, end_s if end_s < duration_s else math.inf, leaves)
        if not (stays.replaced or stays.away_s):
            return
        begin_s = end_s + (rng.expovariate(1 / stays.away_s) if stays.away_s else 0.0)


def _session_s(stays: Stays, rng: random.Random) -> float:
    if stays.kind == "exponential":
        return rng.expovariate(1 / stays.mean_s)
    if stays.kind == "weibull":
        return rng.weibullvariate(stays.mean_s / math.gamma(1 + 1 / stays.shape), stays.shape)
    return stays.mean_s


def _days(stays: Stays, begin_s: float, duration_s: float, rng: random.Random) -> Iterator[Attendance]:
    """Each day at about the same hour, for about the same time."""
    morning_s = (stays.night + rng.uniform(-JITTER, JITTER)) * stays.day_s
    day = -1
    while day * stays.day_s + morning_s < duration_s:
        start_s = day * stays.day_s + morning_s + rng.gauss(0.0, JITTER / 4) * stays.day_s
        end_s = start_s + stays.online * stays.day_s * rng.uniform(1 - JITTER, 1 + JITTER)
        day += 1
        start_s = max(start_s, begin_s)
        if start_s < min(end_s - MIN_SESSION_S, duration_s):
            yield Attendance(start_s, end_s if end_s < duration_s else math.inf, stays.ends == "leave")
            begin_s = end_s + MIN_SESSION_S


def _occurrences(fault: Fault, duration_s: float, rng: random.Random) -> Iterator[Fault]:
    if fault.every_s is None:
        yield fault
        return
    end_s = duration_s if fault.until_s is None else min(fault.until_s, duration_s)
    at_s = fault.from_s + rng.expovariate(1 / fault.every_s)
    while at_s < end_s:
        yield msgspec.structs.replace(
            fault, at_s=round(at_s, 3), every_s=None, from_s=0.0, until_s=None, draw=rng.getrandbits(32)
        )
        at_s += rng.expovariate(1 / fault.every_s)
