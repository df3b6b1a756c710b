"""Coordinates of 200 peers, scored against the delays that made them."""

import math
import random

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from legion_p2p.core.coordinates import (
    MAX_COORDINATE_S,
    MIN_HEIGHT_S,
    ORIGIN,
    STEADY_S,
    UNSETTLED,
    Coordinate,
    Locator,
    SteadyCoordinate,
)
from legion_p2p.core.identity import PeerId
from legion_p2p.core.witnesses import Witness, is_believed

N = 200
ROUND_S = 2.0


class Planet:
    """Peers in 40 towns on a sphere: fibre at 200 km a millisecond on detours of their own for each pair, behind access links.

    The detours break the triangle inequality, as real routes do: no coordinates fit these delays exactly.
    """

    def __init__(self, seed: int, n: int = N) -> None:
        rng = np.random.default_rng(seed)
        towns = rng.normal(size=(40, 3))
        towns /= np.linalg.norm(towns, axis=1, keepdims=True)
        at = rng.integers(0, 40, n)
        km_NN = np.arccos(np.clip(towns[at] @ towns[at].T, -1, 1)) * 6371
        detour_NN = np.triu(rng.lognormal(np.log(1.5), 0.15, (n, n)), 1)
        access_N = rng.choice([0.004, 0.010, 0.018, 0.030], n) * rng.lognormal(0, 0.3, n)
        self.n = n
        self.rtt_NN = 2 * km_NN / 200e3 * (detour_NN + detour_NN.T) + access_N[:, None] + access_N + 0.002
        self.locators = [Locator(random.Random(1000 * seed + i)) for i in range(n)]
        self.random = random.Random(seed)
        self.now = 0.0

    def sample(self, i: int, j: int) -> float:
        """A measured round trip: up to 10 % late, and now and then very late."""
        late_s = self.random.expovariate(20) if self.random.random() < 0.05 else 0.0
        return float(self.rtt_NN[i, j]) * self.random.uniform(1, 1.1) + late_s

    def measure(self, i: int) -> None:
        j = self.random.choice([k for k in (self.random.randrange(self.n), self.random.randrange(self.n)) if k != i] or [i - 1])
        self.locators[i].observe(PeerId(str(j)), self.locators[j].coordinate, self.sample(i, j), self.now)

    def run(self, n_rounds: int, per_round: int = 4) -> None:
        for _ in range(n_rounds):
            self.now += ROUND_S
            for i in range(self.n):
                for _ in range(per_round):
                    self.measure(i)

    def errors(self) -> np.ndarray:
        """Relative error of each pair's expected round trip."""
        position_ND = np.array([locator.coordinate.position for locator in self.locators])
        height_N = np.array([locator.coordinate.height for locator in self.locators])
        expected_NN = np.linalg.norm(position_ND[:, None] - position_ND, axis=-1) + height_N[:, None] + height_N
        pairs = np.triu_indices(self.n, 1)
        return np.abs(expected_NN - self.rtt_NN)[pairs] / self.rtt_NN[pairs]


@pytest.fixture(scope="module")
def planet() -> Planet:
    planet = Planet(seed=1)
    planet.run(45)
    return planet


def test_the_median_error_of_200_peers_is_at_most_15_percent(planet):
    errors = planet.errors()

    assert np.median(errors) <= 0.15
    assert np.percentile(errors, 90) <= 0.6


def test_the_cloud_stays_around_the_origin(planet):
    center_D = np.mean([locator.coordinate.position for locator in planet.locators], axis=0)

    assert np.linalg.norm(center_D) < 0.05


def test_a_newcomer_is_placed_by_forty_round_trips(planet):
    newcomer = Locator(random.Random(7))
    i = 0  # it stands where peer 0 does
    for _ in range(40):
        j = planet.random.randrange(1, N)
        newcomer.observe(PeerId(str(j)), planet.locators[j].coordinate, planet.sample(i, j), planet.now)

    expected = np.array([newcomer.coordinate.rtt_s(planet.locators[j].coordinate) for j in range(1, N)])
    assert np.median(np.abs(expected - planet.rtt_NN[0, 1:]) / planet.rtt_NN[0, 1:]) <= 0.3
    assert newcomer.coordinate.error < 0.6


def witnesses_of(planet: Planet, i: int, claimed: Coordinate) -> list[Witness]:
    """Five that measure peer `i`: three near where it says it is, two elsewhere."""
    others = sorted((k for k in range(N) if k != i), key=lambda k: claimed.rtt_s(planet.locators[k].coordinate))
    chosen = planet.random.sample(others[:20], 3) + planet.random.sample(others[20:], 2)
    return [Witness(planet.locators[j].coordinate, planet.sample(i, j)) for j in chosen]


def test_who_says_where_it_is_is_believed_and_who_claims_another_place_is_not(planet):
    honest = lying = 0
    for i in range(N):
        here = planet.locators[i].coordinate
        elsewhere = planet.locators[int(np.argmax(planet.rtt_NN[i]))].coordinate
        honest += is_believed(here, witnesses_of(planet, i, here)) is True
        lying += is_believed(elsewhere, witnesses_of(planet, i, elsewhere)) is True

    assert honest >= 0.9 * N
    assert lying <= 0.05 * N


def test_too_few_witnesses_decide_nothing():
    sure = Coordinate(ORIGIN.position, 0.01, 0.1)

    assert is_believed(sure, [Witness(sure, 0.02)] * 2) is None
    assert is_believed(sure, [Witness(sure, 0.02)] * 3) is True
    assert is_believed(sure, [Witness(ORIGIN, 0.02)] * 9) is None  # they do not know where they are themselves


def test_one_late_packet_moves_nothing(planet):
    a, b = Locator(random.Random(1)), Locator(random.Random(1))
    there = Coordinate((0.05, 0.0, 0.0, 0.0), 0.01, 0.1)
    for locator, last_s in ((a, 0.1), (b, 5.0)):
        for t in range(6):
            locator.observe(PeerId("x"), there, 0.1, float(t))
        locator.observe(PeerId("x"), there, last_s, 6.0)

    assert a.coordinate == b.coordinate


def test_two_at_the_same_place_move_apart():
    locator = Locator(random.Random(1))
    for t in range(200):
        locator.observe(PeerId("x"), Coordinate(ORIGIN.position, 0.001, 0.1), 0.1, float(t))

    assert locator.coordinate.rtt_s(Coordinate(ORIGIN.position, 0.001, 0.1)) == pytest.approx(0.1, rel=0.05)


def test_a_coordinate_that_trembles_is_announced_as_it_was_and_one_that_moves_is_followed():
    steady = SteadyCoordinate()
    first = Coordinate((0.0, 0.0, 0.0, 0.0), 0.01, 0.15)
    assert steady.look(first) is first

    for t in range(20):
        assert steady.look(Coordinate((0.001 * (t % 3), 0.0, 0.0, 0.0), 0.01 + 0.001 * (t % 2), 0.1 + 0.01 * (t % 10))) is first

    moved = Coordinate((0.5 * STEADY_S, 0.0, 0.0, 0.0), 0.01 + 0.6 * STEADY_S, 0.15)
    assert steady.look(moved) is moved  # a round trip to it takes longer by more than STEADY_S
    unsure = Coordinate(moved.position, moved.height, 0.4)
    assert steady.look(unsure) is unsure


@given(st.lists(st.tuples(st.floats(-0.05, 0.05), st.floats(1e-3, 1.5)), min_size=1, max_size=30))
def test_what_is_announced_is_never_further_off_than_nobody_minds(places):
    steady = SteadyCoordinate()
    for x, error in places:
        here = Coordinate((x, 0.0, 0.0, 0.0), 0.01, error)
        told = steady.look(here)
        assert abs(told.position[0] - x) <= STEADY_S and (told.error < UNSETTLED) == (error < UNSETTLED)


finite = st.floats(-MAX_COORDINATE_S, MAX_COORDINATE_S)
coordinates = st.builds(
    Coordinate, st.tuples(finite, finite, finite, finite), st.floats(MIN_HEIGHT_S, MAX_COORDINATE_S), st.floats(0, 10)
)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from("abc"), coordinates, st.floats()), max_size=20))
def test_whatever_others_claim_the_coordinate_stays_within_its_bounds(samples):
    locator = Locator(random.Random(0))
    for t, (peer, theirs, rtt_s) in enumerate(samples):
        locator.observe(PeerId(peer), theirs, rtt_s, float(t))

    packed = msgspec.msgpack.encode(locator.coordinate)
    assert msgspec.msgpack.decode(packed, type=Coordinate) == locator.coordinate


@pytest.mark.parametrize(
    ("position", "height", "error"),
    [
        ((0.0,) * 3, 0.1, 0.1),
        ((0.0,) * 5, 0.1, 0.1),
        ((math.nan,) * 4, 0.1, 0.1),
        ((11.0,) * 4, 0.1, 0.1),
        ((0.0,) * 4, 0.0, 0.1),
        ((0.0,) * 4, 0.1, 11.0),
    ],
)
def test_a_coordinate_that_cannot_be_is_not_decoded(position, height, error):
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode([position, height, error]), type=Coordinate)
