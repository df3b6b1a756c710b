"""A peer's link to all others: how fast it takes bytes, and when they come out at its other end.

A `LinkDirection` is the link up or down, shared by all connections of the peer; a `Flow` is one connection's part of it.

    add -> waiting -- in turns with other flows, as the rate allows --> in flight -- delay, jitter, retransmission --> due -> take

A direction takes bytes up to QUEUE_S ahead of its rate. That is its queue, and it lets a waker be late without losing rate. Bytes
in flight do not hold up those behind them: a delay costs no throughput.

Never happens: bytes of a flow come out in another order than they went in; a flow holds more in flight than `limit_bytes` and one
chunk; one flow keeps the others from their turn. Not modelled: TCP's slow start and congestion control, so the rate is the one
that is set whatever the loss; and that what is lost and sent again takes up the link twice.
"""

import math
from collections import deque
from random import Random

import msgspec

MSS_BYTES = 1448  # payload of a TCP segment; what is lost is lost in such pieces
CHUNK_S = 0.005  # flows take turns at such pieces of the rate: shorter is fairer and costs more wake-ups
MAX_CHUNK_BYTES = 1 << 16
QUEUE_S = 0.05  # a waker may be late by this much; longer only adds delay under load
MIN_RTO_S = 0.2  # Linux's shortest retransmission timeout (TCP_RTO_MIN)
FAST_RETRANSMIT_SEGMENTS = 4  # a loss is noticed without a timeout when three segments follow it (RFC 5681)
MAX_RETRANSMISSIONS = 6  # of one piece; TCP would go on, and the connection would seem dead
LATE_RETRANSMISSIONS = 8  # timeouts during which the rate goes on; with 2 of them a link of 8 % loss stays 6 % below its rate
MAX_FLIGHT_BYTES = 64 << 20  # of one flow: 1 Gbit/s for half a second
MAX_WAITING_BYTES = 1 << 16  # of one flow: what stands for the socket's send buffer


class LinkProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One peer's access link, and what lies between it and peers at other places.

    Between two peers the delays of both links and of the path between their places add up, and the slower rate counts.
    """

    up_bps: float = math.inf
    down_bps: float = math.inf
    rtt_s: float = 0.0
    """Round trip that this link adds to every connection; half of it each way."""
    jitter_s: float = 0.0
    """The delay each way wanders by at most this, smoothly. No more than half of `rtt_s` shows: no delay is below zero."""
    loss: float = 0.0
    """Fraction of segments lost, each way: as streams retransmit them, they and all behind them come later."""
    place: int = 0
    """Where this peer is, as a number; 0: nowhere in particular, without any delay to anybody but the link's own."""
    inside_s: float = 0.0
    """Round trip between two peers at the same place."""
    across_s: float = 0.0
    """Round trip between two peers at different places, unless `paths` has it."""
    paths: tuple[tuple[int, int, float], ...] = ()
    """Round trips between pairs of places: (place, place, seconds), in either order."""
    lanes: tuple[tuple[str, "LinkProfile"], ...] = ()
    """For messages that this peer sends on a lane (control, bulk): another link before this one; only its way up counts."""

    def path_s(self, other: int) -> float:
        """Round trip of the path to a peer at place `other`, both access links excluded."""
        if not self.place or not other:
            return 0.0
        for a, b, rtt_s in self.paths:
            if {a, b} == {self.place, other}:
                return rtt_s
        return self.inside_s if other == self.place else self.across_s


NO_LINK = LinkProfile()


class Flow:
    """One connection's bytes in one direction. Made by `LinkDirection.flow`."""

    def __init__(self, delay_s: float, rtt_s: float) -> None:
        self.delay_s = delay_s
        self.rtt_s = rtt_s
        self.waiting: deque[memoryview] = deque()
        self.flying: deque[tuple[float, memoryview]] = deque()
        self.n_waiting = 0
        self.n_flying = 0
        self.in_turn = False
        self.last_due = -math.inf

    @property
    def is_open(self) -> bool:
        """Takes more: a caller that adds should wait otherwise."""
        return self.n_waiting < MAX_WAITING_BYTES

    @property
    def is_empty(self) -> bool:
        return not self.waiting and not self.flying

    def next_due(self) -> float | None:
        return self.flying[0][0] if self.flying else None

    def rest(self) -> list[memoryview]:
        """Everything that has not come out yet, in order; the flow is empty afterwards."""
        left = [data for _, data in self.flying] + list(self.waiting)
        self.flying.clear()
        self.waiting.clear()
        self.n_flying = self.n_waiting = 0
        return left


class LinkDirection:
    """One direction of a peer's link."""

    def __init__(self, profile: LinkProfile, rate_bps: float, rng: Random) -> None:
        self.rate_bps = rate_bps
        """May be changed at any time; bytes that have passed already keep their time."""
        self._profile = profile
        self._rng = rng
        self._free_at = -math.inf
        self._turns: deque[Flow] = deque()
        self._moved: dict[Flow, None] = {}
        self._wander = _Wander(profile.jitter_s, rng)

    @property
    def is_free(self) -> bool:
        """Neither delays nor limits anything."""
        p = self._profile
        return self.rate_bps == math.inf and not (p.rtt_s or p.jitter_s or p.loss)

    @property
    def chunk_bytes(self) -> int:
        """What a flow may send in one turn."""
        if self.rate_bps == math.inf:
            return MAX_CHUNK_BYTES
        return int(min(max(self.rate_bps / 8 * CHUNK_S, MSS_BYTES), MAX_CHUNK_BYTES))

    def flow(self, path_s: float = 0.0) -> Flow:
        """A new connection; `path_s`: round trip beyond this link."""
        rtt_s = self._profile.rtt_s + path_s
        return Flow(rtt_s / 2, rtt_s)

    def limit_bytes(self, flow: Flow) -> int:
        """What a flow may have in flight: the rate times the longest it usually takes, and a little to begin with."""
        if self.rate_bps == math.inf:
            return MAX_FLIGHT_BYTES
        longest_s = flow.delay_s + 2 * self._profile.jitter_s + QUEUE_S
        if self._profile.loss:
            longest_s += LATE_RETRANSMISSIONS * (flow.rtt_s + MIN_RTO_S)
        return int(min(self.rate_bps / 8 * longest_s + MAX_WAITING_BYTES, MAX_FLIGHT_BYTES))

    def add(self, flow: Flow, data: bytes | memoryview, now: float) -> None:
        """Bytes enter. They are taken even where the flow is not open."""
        view = memoryview(data)
        if len(view):
            flow.waiting.append(view)
            flow.n_waiting += len(view)
            self._queue(flow)
            self.advance(now)

    def advance(self, now: float) -> None:
        """Let pass what the rate allows by `now`."""
        while self._turns and self._free_at - QUEUE_S <= now:
            flow = self._turns.popleft()
            flow.in_turn = False
            if flow.n_flying < self.limit_bytes(flow) and flow.waiting:
                self._pass(flow, now)
                self._moved[flow] = None
                self._queue(flow)

    def poll(self) -> list[Flow]:
        """The flows that had more bytes put in flight since the last call: tasks that wait for them should look again."""
        moved, self._moved = list(self._moved), {}
        return moved

    def next_time(self) -> float | None:
        """When `advance` would let more pass; None: not before something is added or taken."""
        return self._free_at - QUEUE_S if self._turns else None

    def take(self, flow: Flow, most_bytes: int, now: float) -> bytes | memoryview:
        """Up to that many bytes that are due by `now`; empty where none are."""
        taken: list[memoryview] = []
        n_taken = 0
        while flow.flying and flow.flying[0][0] <= now and n_taken < most_bytes:
            due, data = flow.flying[0]
            piece = data[: most_bytes - n_taken]
            if len(piece) == len(data):
                flow.flying.popleft()
            else:
                flow.flying[0] = (due, data[len(piece) :])
            taken.append(piece)
            n_taken += len(piece)
        flow.n_flying -= n_taken
        if n_taken and flow.waiting:
            self._queue(flow)
            self.advance(now)
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def _queue(self, flow: Flow) -> None:
        if flow.waiting and not flow.in_turn:
            flow.in_turn = True
            self._turns.append(flow)

    def _pass(self, flow: Flow, now: float) -> None:
        data, rest = flow.waiting[0][: self.chunk_bytes], flow.waiting[0][self.chunk_bytes :]
        if len(rest):
            flow.waiting[0] = rest
        else:
            flow.waiting.popleft()
        size = len(data)
        flow.n_waiting -= size
        flow.n_flying += size
        flow.flying.append((self.due(flow, size, now), data))

    def due(self, flow: Flow, n_bytes: int, now: float) -> float:
        """When this many bytes come out if they enter now. The caller keeps the bytes, and bounds their number."""
        self._free_at = max(self._free_at, now) + 8 * n_bytes / self.rate_bps
        delay_s = max(0.0, flow.delay_s + self._wander.at(now)) + self._retransmission_s(n_bytes, flow.rtt_s)
        flow.last_due = max(flow.last_due, self._free_at + delay_s)
        return flow.last_due

    def _retransmission_s(self, n_bytes: int, rtt_s: float) -> float:
        """How much later a piece comes whole because segments of it were lost."""
        loss = self._profile.loss
        if not loss:
            return 0.0
        n_segments = math.ceil(n_bytes / MSS_BYTES)
        wait_s = rtt_s if n_segments >= FAST_RETRANSMIT_SEGMENTS else rtt_s + MIN_RTO_S
        late_s = 0.0
        for _ in range(MAX_RETRANSMISSIONS):
            if self._rng.random() >= 1 - (1 - loss) ** n_segments:
                break
            late_s += wait_s
            wait_s = 2 * max(wait_s, rtt_s + MIN_RTO_S)  # a retransmission that is lost waits for the timer, which doubles
            n_segments = 1
        return late_s


class _Wander:
    """Jitter: a delay that moves between -`most_s` and `most_s`, straight from one random point to the next."""

    def __init__(self, most_s: float, rng: Random) -> None:
        self._most_s = most_s
        self._rng = rng
        self._step_s = max(0.02, 4 * most_s)
        self._from = (-math.inf, 0.0)
        self._to = (-math.inf, 0.0)

    def at(self, now: float) -> float:
        if not self._most_s:
            return 0.0
        if now >= self._to[0]:
            last = self._to if now - self._to[0] < self._step_s else (now, self._draw())
            self._from, self._to = last, (last[0] + self._step_s, self._draw())
        share = (now - self._from[0]) / self._step_s
        return self._from[1] + share * (self._to[1] - self._from[1])

    def _draw(self) -> float:
        return self._rng.uniform(-self._most_s, self._most_s)
