"""Which members are pinged, and how often."""

import random
from collections import defaultdict, deque

from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.pings import (
    N_NEIGHBOURS,
    N_PINGED,
    NEAR_SAMPLES,
    PING_AGAIN_S,
    PING_RARELY_S,
    PingPlan,
    RoundTrips,
)
from legion_p2p.core.regions import DEFAULTS, MANY_SAMPLES

ME = PeerId("me")
PERIOD_S = 2.0
NEAR_S, FAR_S = 0.010, 2 * DEFAULTS.radius_s


def crowd(n: int) -> list[PeerId]:
    return [PeerId(f"peer-{i}") for i in range(n)]


class Peer:
    """One that pings what its plan says, with round trips as given."""

    def __init__(self, members: list[PeerId], rtt_s: float, region: str = "here") -> None:
        self.plan = PingPlan(ME)
        self.plan.members(dict.fromkeys(members, region))
        self.rtt_s = rtt_s
        self.now = 0.0
        self.samples: defaultdict[PeerId, deque[float]] = defaultdict(lambda: deque(maxlen=MANY_SAMPLES))
        self.pinged: list[tuple[float, PeerId]] = []

    def known(self, peer: PeerId) -> RoundTrips:
        found = self.samples[peer]
        return RoundTrips(len(found), min(found)) if found else RoundTrips()

    def period(self, subjects: tuple[PeerId, ...] = ()) -> list[PeerId]:
        due = self.plan.due(subjects, self.known, self.now)
        for peer in due:
            self.plan.tried(peer, self.now)
            self.plan.measured(peer, self.rtt_s, self.known(peer), self.now)
            self.samples[peer].append(self.rtt_s)
            self.pinged.append((self.now, peer))
        self.now += PERIOD_S
        return due

    def run(self, for_s: float) -> int:
        """The pings of that time."""
        before = len(self.pinged)
        for _ in range(int(for_s / PERIOD_S)):
            self.period()
        return len(self.pinged) - before


def test_a_near_member_is_pinged_a_few_times_and_a_far_one_many_times_before_it_is_known() -> None:
    for rtt_s, enough in ((NEAR_S, NEAR_SAMPLES), (FAR_S, MANY_SAMPLES)):
        peer = Peer(crowd(1), rtt_s)

        peer.run(2 * MANY_SAMPLES * PERIOD_S)

        quick = [at for at, _ in peer.pinged[:enough]]
        assert quick == [PERIOD_S * i for i in range(enough)]
        assert peer.pinged[enough][0] - quick[-1] >= PING_AGAIN_S


def test_the_longer_round_trips_stay_the_same_the_rarer_the_pings_become() -> None:
    peer = Peer(crowd(1), NEAR_S)

    peer.run(20 * PING_RARELY_S)

    pauses = [
        later - at for (at, _), (later, _) in zip(peer.pinged[NEAR_SAMPLES - 1 :], peer.pinged[NEAR_SAMPLES:], strict=False)
    ]
    assert pauses == sorted(pauses) and PING_RARELY_S <= pauses[-1] < PING_RARELY_S + PERIOD_S
    assert len(pauses) < 20 + 5


def test_a_path_that_has_changed_is_pinged_until_nothing_else_is_remembered() -> None:
    peer = Peer(crowd(1), NEAR_S)
    peer.run(10 * PING_RARELY_S)
    peer.rtt_s = 2 * NEAR_S

    n_pings = peer.run(PING_RARELY_S + MANY_SAMPLES * PERIOD_S)

    assert MANY_SAMPLES - 1 <= n_pings <= MANY_SAMPLES + 2
    assert peer.known(peer.pinged[0][1]).least_s == 2 * NEAR_S


def test_one_late_answer_costs_one_more_ping() -> None:
    peer = Peer(crowd(1), NEAR_S)
    peer.run(10 * PING_RARELY_S)

    peer.plan.measured(peer.pinged[0][1], 9.0, peer.known(peer.pinged[0][1]), peer.now)

    assert len(peer.period()) == 1
    assert peer.run(PING_AGAIN_S - PERIOD_S) == 0


def test_a_peer_that_has_moved_looks_at_all_again_soon() -> None:
    peer = Peer(crowd(8), NEAR_S)
    peer.run(10 * PING_RARELY_S)
    peer.rtt_s = FAR_S
    while len({one for at, one in peer.pinged if at >= 10 * PING_RARELY_S}) < 2:
        peer.period()
    noticed_at = peer.now

    peer.run(PING_AGAIN_S + 8 * PERIOD_S)

    assert {one for at, one in peer.pinged if at >= noticed_at - PERIOD_S} == set(crowd(8))


def test_a_round_trip_that_was_measured_by_the_way_saves_a_ping() -> None:
    peer = Peer(crowd(1), NEAR_S)
    peer.run(NEAR_SAMPLES * PERIOD_S)
    (other,) = crowd(1)

    for _ in range(100):
        peer.plan.measured(other, NEAR_S, peer.known(other), peer.now)
        assert peer.period() == []


def test_the_pings_of_a_settled_peer_do_not_grow_with_the_members_of_its_region() -> None:
    rates = []
    for n in (2 * N_NEIGHBOURS, 20 * N_NEIGHBOURS):
        peer = Peer(crowd(n), NEAR_S)
        peer.run(1000)
        rates.append(peer.run(1200) / 1200)

    assert rates[0] == rates[1] <= N_NEIGHBOURS / PING_RARELY_S


def test_every_region_has_neighbours_and_each_peer_has_others() -> None:
    members = crowd(200)
    region_of = {peer: "here" if i % 4 else "there" for i, peer in enumerate(members)}
    plans = [PingPlan(PeerId(f"me-{i}")) for i in range(100)]
    for plan in plans:
        plan.members(region_of)

        assert sum(region_of[peer] == "there" for peer in plan.neighbours) == N_NEIGHBOURS
        assert len(plan.neighbours) == 2 * N_NEIGHBOURS
    assert {peer for plan in plans for peer in plan.neighbours} == set(members)


def test_those_that_it_is_a_witness_of_are_measured_though_they_are_no_neighbours() -> None:
    peer = Peer(crowd(100), NEAR_S)
    subject = next(one for one in crowd(100) if one not in peer.plan.neighbours)

    assert subject in peer.period((subject, PeerId("one that left")))
    for _ in range(100):
        peer.period((subject,))
    assert len(peer.samples[subject]) >= NEAR_SAMPLES and {one for _, one in peer.pinged} == {*peer.plan.neighbours, subject}


def test_one_that_does_not_answer_keeps_nobody_from_being_pinged() -> None:
    plan = PingPlan(ME)
    plan.members(dict.fromkeys(crowd(10), "here"))
    asked: set[PeerId] = set()

    for n in range(4):
        for peer in plan.due((), lambda _: RoundTrips(), n * PERIOD_S):
            plan.tried(peer, n * PERIOD_S)
            asked.add(peer)

    assert asked == set(crowd(10))


@given(st.randoms(use_true_random=False), st.integers(0, 60))
def test_whatever_is_measured_few_are_pinged_in_a_period_and_all_of_them_are_members(rng: random.Random, n: int) -> None:
    members = crowd(n)
    peer = Peer(members, NEAR_S)
    for _ in range(30):
        peer.rtt_s = rng.choice([1e-6, NEAR_S, FAR_S, 9.0])
        subjects = tuple(rng.sample(crowd(60), rng.randrange(17)))

        due = peer.period(subjects)

        assert len(due) == len(set(due)) <= N_PINGED + 1 and set(due) <= set(members)
        if rng.random() < 0.1:
            members = crowd(rng.randrange(60))
            peer.plan.members(dict.fromkeys(members, "here"))
