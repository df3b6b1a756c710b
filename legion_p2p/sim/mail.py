"""Gossip between simulated peers: which peers a message reaches over their connections, and when."""

import heapq
from collections.abc import Iterable
from functools import partial

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.sim.fabric import Fabric, Station

MAX_HELD = 1024  # messages that wait for a frozen peer


class Mail:
    """All gossip that is on its way in one world."""

    def __init__(self, world: Fabric) -> None:
        self._world = world
        self._routes: dict[tuple[str, PeerId], list[tuple[float, list[Station]]]] = {}
        self._wanting: dict[str, set[PeerId]] = {}

    def publish(self, source: Station, topic: str, data: bytes) -> None:
        """Pass a message on along connections between subscribers, at their delays."""
        now = trio.current_time()
        for delay_s, targets in self._route(topic, source):
            arriving = [(target, self._world.arrives(source.peer_id, target.peer_id, data)) for target in targets]
            self._world.timers.at(now + delay_s, partial(_deliver, topic, arriving))

    def connections_changed(self) -> None:
        """Messages may take other paths from now on."""
        self._routes.clear()

    def peers_changed(self) -> None:
        """A peer came, left, stopped or went on, subscribed or unsubscribed."""
        self._routes.clear()
        self._wanting.clear()

    def _route(self, topic: str, source: Station) -> list[tuple[float, list[Station]]]:
        """The peers that a message reaches, by how long it takes: the fastest path over connections between subscribers."""
        key = (topic, source.peer_id)
        if key not in self._routes:
            world = self._world
            wanting = self._wanting.get(topic)
            if wanting is None:
                wanting = self._wanting[topic] = {n.peer_id for n in world.networks() if n.alive and n.gossip.wants(topic)}
            hop_s = world.delay_s
            if world.gossip_takes_links:
                reached = self._flood_directly(source, wanting)
            else:
                reached = self._flood(source, wanting) if callable(hop_s) else self._flood_evenly(source, wanting, hop_s)
            by_delay: dict[float, list[Station]] = {}
            for peer, delay_s in reached.items():
                by_delay.setdefault(delay_s, []).append(world.network_of(peer))
            self._routes[key] = list(by_delay.items())
        return self._routes[key]

    def _flood(self, source: Station, wanting: set[PeerId]) -> dict[PeerId, float]:
        """Everybody that is reached, and when, in that order."""
        reached: dict[PeerId, float] = {}
        frontier = [(0.0, source.peer_id)]
        while frontier:
            delay_s, at = heapq.heappop(frontier)
            if at in reached:
                continue
            reached[at] = delay_s
            for to in self._next(at, wanting):
                if to not in reached:
                    heapq.heappush(frontier, (delay_s + self._world.delay(at, to), to))
        del reached[source.peer_id]
        return reached

    def _flood_directly(self, source: Station, wanting: set[PeerId]) -> dict[PeerId, float]:
        """`_flood`, where no detour is faster than a connection: only peers without one hear it from others."""
        me = source.peer_id
        reached = {to: self._world.delay(me, to) for to in sorted(self._next(me, wanting))}
        frontier = sorted((delay_s, to) for to, delay_s in reached.items())
        left = wanting - reached.keys() - {me}
        while frontier and left:
            delay_s, at = heapq.heappop(frontier)
            for to in sorted(self._next(at, left)):
                reached[to] = delay_s + self._world.delay(at, to)
                heapq.heappush(frontier, (reached[to], to))
                left.discard(to)
        return reached

    def _flood_evenly(self, source: Station, wanting: set[PeerId], hop_s: float) -> dict[PeerId, float]:
        """`_flood`, where all connections are equally fast, which is far quicker to compute."""
        reached: dict[PeerId, float] = {}
        left = wanting - {source.peer_id}
        frontier, delay_s = [source.peer_id], 0.0
        while frontier and left:
            delay_s += hop_s
            here: set[PeerId] = set()
            for at in frontier:
                here.update(self._next(at, left - here))
                if len(here) == len(left):
                    break
            left -= here
            frontier = sorted(here)
            reached.update(dict.fromkeys(frontier, delay_s))
        return reached

    def _next(self, at: PeerId, wanting: set[PeerId]) -> set[PeerId]:
        """The peers among these to which it passes a message on. A frozen peer passes nothing on, but gets it when it thaws."""
        network = self._world.network_of(at)
        if network.frozen:
            return set()
        connected = network.connections & wanting
        return {to for to in connected if not self._world.is_blocked(at, to)} if self._world.is_split else connected


def _deliver(topic: str, arriving: Iterable[tuple[Station, bytes]]) -> None:
    for target, data in arriving:
        if not target.alive:
            continue
        target.n_gossip += len(data)
        if target.frozen:
            target.held = [*target.held, (topic, data)][-MAX_HELD:]
        else:
            target.gossip.receive(topic, data)
