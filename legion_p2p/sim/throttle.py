"""What a simulated peer's own connection lets through: one rate shared by all that it sends, or a whole emulated link."""

import math
import random
from collections import deque
from collections.abc import Callable

import trio

from legion_p2p.core.access_link import Flow, LinkDirection, LinkProfile
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority, PriorityGate

UPLINK_CHUNK_S, UPLINK_CHUNK_BYTES = 0.02, 1448  # transfers take turns at a peer's uplink in such pieces, the larger one counts


class Uplink:
    """A peer's way out: what goes first is decided in core/priority.py; of equal priority the connections take turns."""

    def __init__(self, bytes_s: float, start: Callable[..., None]) -> None:
        self.bytes_s = bytes_s
        """May be changed at any time; the piece that is on its way keeps its time."""
        self._start = start
        self._queues: dict[Priority, deque[_Sending]] = {}
        self._gate = PriorityGate()
        self._runs = False

    async def send(self, target: PeerId, n_bytes: int, priority: Priority) -> None:
        sending = _Sending(target, n_bytes)
        queue = self._queues.setdefault(priority, deque())
        same = next((s for s in queue if s.target == target), None)
        if same is None:
            queue.append(sending)
        else:
            same.behind.append(sending)  # one connection sends one after the other
        if not self._runs:
            self._runs = True
            self._start(self._run)
        await sending.done.wait()

    async def _run(self) -> None:
        while self._queues:
            priority = self._gate.choose(self._queues)
            self._gate.passed(priority)
            queue = self._queues[priority]
            sending = queue.popleft()
            piece = min(sending.n_bytes, max(UPLINK_CHUNK_BYTES, int(self.bytes_s * UPLINK_CHUNK_S)))
            queue.append(sending)
            await trio.sleep(piece / self.bytes_s)
            sending.n_bytes -= piece
            if not sending.n_bytes:
                queue.remove(sending)
                sending.done.set()
                if sending.behind:
                    following = sending.behind.popleft()
                    following.behind = sending.behind
                    queue.append(following)
                if not queue:
                    del self._queues[priority]
        self._runs = False


class _Sending:
    """A message on its way out; `behind`: those to the same peer that follow it."""

    def __init__(self, target: PeerId, n_bytes: int) -> None:
        self.target = target
        self.n_bytes = n_bytes
        self.done = trio.Event()
        self.behind: deque[_Sending] = deque()


class Access:
    """One peer's access link, both ways, with a flow for each other peer. Its rate upwards is an `Uplink`'s."""

    def __init__(self, profile: LinkProfile, rng: random.Random) -> None:
        self._profile = profile
        self._directions = LinkDirection(profile, math.inf, rng), LinkDirection(profile, profile.down_bps, rng)
        self._flows: tuple[dict[PeerId, Flow], dict[PeerId, Flow]] = ({}, {})

    def up(self, other: PeerId, place: int, n_bytes: int) -> float:
        """When this many bytes, sent now, reach the access link of a peer at `place`."""
        return self._due(0, other, self._profile.path_s(place), n_bytes)

    def down(self, other: PeerId, n_bytes: int) -> float:
        """When this many bytes, which reach this link now, have passed it."""
        return self._due(1, other, 0.0, n_bytes)

    def _due(self, direction: int, other: PeerId, path_s: float, n_bytes: int) -> float:
        link, flows = self._directions[direction], self._flows[direction]
        if other not in flows:
            flows[other] = link.flow(path_s)
        return link.due(flows[other], n_bytes, trio.current_time())
