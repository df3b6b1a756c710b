"""Two hundred peers in four places find their regions, each by itself, while a fifth of them is replaced every hour.

Announcements are data here: what all announced in one period everybody sees in the next, which is the worst case for decisions
that are made at the same time.
"""

import random
from collections import Counter
from dataclasses import dataclass

import numpy as np

from legion_p2p.core.coordinates import Locator
from legion_p2p.core.identity import PeerId
from legion_p2p.core.regions import Placed, RegionChoice, regions_of

PERIOD_S = 20.0
PERIODS_PER_HOUR = 180
N = 200
ACROSS_S = np.array([[0, 90, 150, 120], [90, 0, 100, 200], [150, 100, 0, 170], [120, 200, 170, 0]]) / 1000


@dataclass
class Peer:
    id: PeerId
    place: int
    access_s: float
    detour: float
    locator: Locator
    choice: RegionChoice
    came: int


class Swarm:
    """Peers at four places; round trips between places as ACROSS_S, each peer's with a detour of its own, and its access link."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.places = range(len(ACROSS_S))
        self.peers: list[Peer] = []
        self.announced: list[Placed] = []
        self.period = 0
        self.n_made = 0
        self.n_moved: list[int] = []

    def add(self, n: int) -> None:
        for _ in range(n):
            self.n_made += 1
            peer_id = PeerId(f"peer-{self.n_made}")
            rng = random.Random(self.n_made)
            place = self.random.choice(self.places)
            peer = Peer(
                peer_id, place, rng.uniform(0.002, 0.015), rng.uniform(0.95, 1.1), Locator(rng),
                RegionChoice(peer_id), self.period,
            )  # fmt: skip
            self.peers.append(peer)

    def rtt_s(self, a: Peer, b: Peer) -> float:
        across_s = float(ACROSS_S[a.place, b.place]) * a.detour * b.detour
        late_s = self.random.expovariate(20) if self.random.random() < 0.05 else 0.0
        return (across_s + a.access_s + b.access_s + 0.001) * self.random.uniform(1, 1.1) + late_s

    def measure(self, peer: Peer, n_heard: int) -> None:
        """A newcomer asks 16 others and thinks about it; the rest hear of `n_heard` each period."""
        others = [other for other in self.peers if other is not peer]
        newcomer = peer.locator.n_heard == 0
        asked = self.random.sample(others, min(16 if newcomer else n_heard, len(others)))
        for _ in range(8 if newcomer else 1):
            for other in asked:
                peer.locator.observe(other.id, other.locator.coordinate, self.rtt_s(peer, other), self.period * PERIOD_S)

    def tick(self, n_heard: int = 1) -> None:
        """One announcement period."""
        self.period += 1
        regions = regions_of(self.announced)
        n_moved = 0
        for peer in self.peers:
            self.measure(peer, n_heard)
            before = peer.choice.region
            after = peer.choice.look(peer.locator.coordinate, regions)
            n_moved += bool(before) and before != after
        self.n_moved.append(n_moved)
        self.announced = [Placed(p.id, p.choice.region, p.locator.coordinate) for p in self.peers]

    def replace_one(self) -> Peer:
        gone = self.peers.pop(self.random.randrange(len(self.peers)))
        for peer in self.peers:
            peer.locator.forget(gone.id)
        self.add(1)
        return self.peers[-1]

    def main_regions(self) -> dict[int, str]:
        """Where most of each place are."""
        return {
            place: Counter(p.choice.region for p in self.peers if p.place == place).most_common(1)[0][0] for place in self.places
        }

    def is_right(self, peer: Peer) -> bool:
        return peer.choice.region == self.main_regions()[peer.place]


def test_an_hour_of_two_hundred_peers_in_four_places():
    swarm = Swarm(seed=1)
    swarm.add(N)
    for _ in range(50):
        swarm.tick(n_heard=4)
    settled = len(swarm.n_moved)
    assert len(set(swarm.main_regions().values())) == 4

    newcomers: list[tuple[Peer, bool]] = []
    waiting: list[Peer] = []
    for period in range(PERIODS_PER_HOUR):
        if period % (PERIODS_PER_HOUR * 5 // N) == 0:
            waiting.append(swarm.replace_one())
        swarm.tick()
        newcomers += [(peer, swarm.is_right(peer)) for peer in waiting if swarm.period - peer.came == 2]
        waiting = [peer for peer in waiting if swarm.period - peer.came < 2]

    right = [swarm.is_right(peer) for peer in swarm.peers]
    assert len(newcomers) >= 39 and sum(ok for _, ok in newcomers) >= 0.95 * len(newcomers)
    assert sum(right) >= 0.95 * N
    assert max(swarm.n_moved[settled:]) < 0.02 * N
    assert len({p.choice.region for p in swarm.peers}) < 5
