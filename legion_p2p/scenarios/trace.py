"""What a simulation leaves: a line for each thing that happened, samples of the whole, and a hash that two equal runs share.

The hash is over every event of every peer, in order. What is written is less: `member.changed` is only counted, and of the
`round.closed` that all members of a region say of one version only the first is a line.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from legion_p2p.observe.events import Event
from legion_p2p.sim.swarm_peer import SimPeer

COUNTED_ONLY = frozenset({"member.changed", "announcement.refused"})
SAMPLE, FAULT, PEER, VIOLATION = "sim.sample", "sim.fault", "sim.peer", "sim.violation"
"""Names of the lines that are the simulator's own."""

GONE = frozenset({"killed", "left", "failed"})

Write = Callable[[bytes], object]
_encoder = msgspec.json.Encoder()


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """How the swarm is at one moment."""

    at_s: float
    loss: float | None
    """Of the common model; with several regions the mean of theirs."""
    n_started: int
    """Peers that have been started and have not gone."""
    n_joined: int
    """Those of them that are in the run."""
    n_known: int
    """Members that the median peer knows and does not hold for dead, itself included."""
    n_steps: int
    """Local steps of all peers so far."""
    n_included: float
    """Those of them that are in an update."""
    n_updates: int
    """Versions that owners have made so far, of all shards and regions."""
    n_behind: int
    """Peers whose copy of some shard is two or more versions older than the newest."""
    sent_bytes: int
    """Requests and replies of all peers so far."""
    gossip_bytes: int
    """Gossip that reached peers so far, each message counted once for each of them."""


class Record:
    """Collects what happens. `write` gets the lines of trace.jsonl; None: they are only hashed and counted."""

    def __init__(self, now: Callable[[], float], write: Write | None = None) -> None:
        self.samples: list[Sample] = []
        self.faults: list[dict[str, Any]] = []
        self.violations: list[dict[str, Any]] = []
        self.counts: Counter[str] = Counter()
        self.presence: dict[str, list[tuple[float, float]]] = {}
        """When each peer was there, by name: from, until; those that are there at the end until infinity."""
        self._now = now
        self._write = write
        self._hash = hashlib.blake2b(digest_size=16)
        self._closed: set[tuple[int, int, str]] = set()

    @property
    def digest(self) -> str:
        """The hash of all that happened so far."""
        return self._hash.hexdigest()

    def event(self, peer: SimPeer, event: Event) -> None:
        """Something happened at a peer."""
        self.counts[event.name] += 1
        line = _encoder.encode({"at": round(event.at, 6), "peer": peer.name, "event": event.name, **event.fields})
        self._hash.update(line)
        if self._write is None or event.name in COUNTED_ONLY:
            return
        if event.name == "round.closed":
            fields = event.fields
            key = (fields["shard"], fields["version"], fields["digest"])
            if key in self._closed:
                return
            self._closed.add(key)
        self._write(line + b"\n")

    def sample(self, sample: Sample) -> None:
        self.samples.append(sample)
        self._line(SAMPLE, msgspec.to_builtins(sample))

    def fault(self, kind: str, peers: list[str], for_s: float) -> None:
        fields = {"kind": kind, "peers": peers, "for_s": for_s}
        self.faults.append({"at_s": round(self._now(), 6), **fields})
        self._line(FAULT, fields)

    def peer(self, name: str, what: str, **fields: Any) -> None:
        """Something that the simulator did with a peer, or found of it."""
        times = self.presence.setdefault(name, [])
        if what == "started":
            times.append((self._now(), math.inf))
        elif what in GONE and times:
            times[-1] = (times[-1][0], self._now())
        self._line(PEER, {"peer": name, "what": what, **fields})

    def violation(self, kind: str, text: str, **fields: Any) -> None:
        """What should never happen."""
        found = {"kind": kind, "text": text, **fields}
        self.violations.append({"at_s": round(self._now(), 6), **found})
        self._line(VIOLATION, found)

    def _line(self, name: str, fields: dict[str, Any]) -> None:
        line = _encoder.encode({"at": round(self._now(), 6), "event": name, **fields})
        self._hash.update(line)
        if self._write is not None:
            self._write(line + b"\n")
