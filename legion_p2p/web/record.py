"""What a page shows over time, gathered from a peer's events: live from a running peer, or again from its metrics.jsonl.

    step, eval, sample  -> curves
    round.closed        -> the newest rounds, and totals of all
    member.changed      -> marks in the curves
    checkpoint.stored   -> the newest checkpoints
    errors              -> the newest of them

Never grows without end: curves thin out, lists drop what is oldest, and of other peers at most `MAX_NAMED` are counted.
"""

import threading
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import msgspec

from legion_p2p.core.round import LATE
from legion_p2p.observe import human
from legion_p2p.observe.events import Event
from legion_p2p.observe.history import History
from legion_p2p.web.curve import MAX_POINTS, Curve, SteadyTime, number_of
from legion_p2p.web.page_blocks import ChartMark, Line

MAX_ROUNDS = 100
MAX_MARKS = 40
MAX_STORED = 40
MAX_TROUBLES = 50
MAX_NAMED = 256  # peers whose missed rounds are counted
MAX_REASON_CHARS = 200

SAMPLE = "sample"
"""The event of how a peer and its run stand, every few seconds."""


class ClosedRound(msgspec.Struct, frozen=True):
    """One round of one shard, as this peer saw it close."""

    at: float
    shard: int
    version: int
    n_included: int
    n_expected: int
    averaged_fraction: float
    missing: tuple[tuple[str, str], ...]
    """Members that are not in it, and why."""


class Stored(msgspec.Struct, frozen=True):
    """A checkpoint that this peer has stored."""

    at: float
    step: int
    cid: str
    took_s: float | None


class Trouble(msgspec.Struct, frozen=True):
    """An error event."""

    at: float
    event: str
    text: str


CURVES = (
    "loss", "swarm_loss", "val_loss", "tokens_per_s", "swarm_tokens_per_s", "sent_bytes", "received_bytes", "n_members",
)  # fmt: skip


class RunRecord:
    """A sink for `Events`, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._curves = {name: Curve() for name in CURVES}
        self._time = SteadyTime()
        self._at = 0.0
        """Of the event that is heard now, on the line of the curves."""
        self._marks: deque[tuple[float, str]] = deque(maxlen=MAX_MARKS)
        self._steps = History(MAX_POINTS)
        self._rounds: deque[ClosedRound] = deque(maxlen=MAX_ROUNDS)
        self._stored: deque[Stored] = deque(maxlen=MAX_STORED)
        self._troubles: deque[Trouble] = deque(maxlen=MAX_TROUBLES)
        self._missed: Counter[str] = Counter()
        self._signed: Counter[str] = Counter()
        self.began: float | None = None
        self.ended: float | None = None
        self.run = ""
        self.n_rounds = 0
        """Of all shards together; the same for the next."""
        self.n_own = 0
        """Rounds with this peer's own work."""
        self.n_complete = 0
        """Rounds with every member that was expected."""
        self.averaged = 0.0
        """Sum of the shares that were averaged."""
        self.finished: Mapping[str, Any] = {}
        """Fields of the event that says that training has ended."""

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._at = self._time.of(event.at)
            if self.began is None:
                self.began = self._at
            self.ended = self._at
            if event.is_error:
                self._troubles.append(Trouble(event.at, event.name, str(event.fields.get("text", ""))))
            heard = _HEARD.get(event.name)
            if heard is not None:
                heard(self, event.at, event.fields)

    # what was heard

    def _run(self, at: float, fields: Mapping[str, Any]) -> None:
        self.run = str(fields.get("name", self.run))

    def _step(self, at: float, fields: Mapping[str, Any]) -> None:
        step = fields.get("step")
        self._steps.add(self._at, number_of(step) or 0.0)
        for name in ("loss", "tokens_per_s"):
            self._curves[name].add(self._at, fields.get(name), step)

    def _eval(self, at: float, fields: Mapping[str, Any]) -> None:
        self._curves["val_loss"].add(self._at, fields.get("val_loss"), fields.get("step"))

    def _sample(self, at: float, fields: Mapping[str, Any]) -> None:
        step = fields.get("step")
        self._steps.add(self._at, number_of(step) or 0.0)
        for name in CURVES:
            self._curves[name].add(self._at, fields.get(name), step)

    def _round(self, at: float, fields: Mapping[str, Any]) -> None:
        missing = tuple(_missing(one) for one in _list(fields.get("failed"))[:MAX_NAMED])
        share = number_of(fields.get("averaged_fraction"))
        closed = ClosedRound(
            at, _int(fields.get("shard")), _int(fields.get("version")), _int(fields.get("n_included")),
            _int(fields.get("n_expected")), 0.0 if share is None else share, missing,
        )  # fmt: skip
        self._rounds.append(closed)
        self.n_rounds += 1
        self.n_complete += not missing
        self.averaged += closed.averaged_fraction
        if fields.get("has_own") is True:
            self.n_own += 1
            owner = human.clean(str(fields.get("owner", "")), 100)
            if owner in self._signed or len(self._signed) < MAX_NAMED:
                self._signed[owner] += 1
        for peer, _ in missing:
            if peer in self._missed or len(self._missed) < MAX_NAMED:
                self._missed[peer] += 1

    def _member(self, at: float, fields: Mapping[str, Any]) -> None:
        what = _CHANGES.get((fields.get("before") == "ALIVE", str(fields.get("after"))))
        if what is not None:
            self._marks.append((self._at, f"{human.short_id(str(fields.get('peer', '')))} {what}"))

    def _checkpoint(self, at: float, fields: Mapping[str, Any]) -> None:
        cid = human.clean(str(fields.get("cid", "")), 100)
        self._stored.append(Stored(at, _int(fields.get("step")), cid, number_of(fields.get("wall_s"))))

    def _finished(self, at: float, fields: Mapping[str, Any]) -> None:
        self.finished = dict(fields)
        self._sample(at, fields)

    def mark(self, at: float, text: str) -> None:
        """Something that the curves should show, which no event says."""
        with self._lock:
            self._marks.append((self._time.of(at), text))

    # what there is

    def line(self, name: str, label: str, began: float | None = None) -> Line:
        """A curve of `CURVES`, over seconds since `began`; None: since the record begins."""
        with self._lock:
            return self._curves[name].line(label, self.began or 0.0 if began is None else began)

    def newest(self, name: str) -> float | None:
        """The last value of a curve; None: there is none."""
        return next(iter(reversed(self.line(name, "").y)), None)

    @property
    def newest_step(self) -> float:
        """The last step that was told of."""
        with self._lock:
            return self._steps.points[-1][1] if self._steps.points else 0.0

    def marks(self, began: float | None = None) -> tuple[ChartMark, ...]:
        with self._lock:
            began = self.began or 0.0 if began is None else began
            return tuple(ChartMark(round(at - began, 2), text, self._step_at(at)) for at, text in self._marks)

    def rounds(self) -> list[ClosedRound]:
        """The newest, the last one first."""
        with self._lock:
            return list(reversed(self._rounds))

    def stored(self) -> list[Stored]:
        """The newest, the last one first."""
        with self._lock:
            return list(reversed(self._stored))

    def troubles(self) -> list[Trouble]:
        """The newest, the last one first."""
        with self._lock:
            return list(reversed(self._troubles))

    def missed(self) -> list[tuple[str, int]]:
        """The peers that were missing from rounds, and how often; the most frequent first."""
        with self._lock:
            return self._missed.most_common()

    def signed(self) -> list[tuple[str, int]]:
        """Which owners have signed updates with this peer's own work, and how many, most first."""
        with self._lock:
            return self._signed.most_common()

    def _step_at(self, at: float) -> float | None:
        """At which step this peer was."""
        return next((step for when, step in reversed(self._steps.points) if when <= at), None)


_HEARD = {
    "run.created": RunRecord._run,
    "run.joined": RunRecord._run,
    "run.resumed": RunRecord._run,
    "step": RunRecord._step,
    "eval": RunRecord._eval,
    SAMPLE: RunRecord._sample,
    "round.closed": RunRecord._round,
    "member.changed": RunRecord._member,
    "checkpoint.stored": RunRecord._checkpoint,
    "run.finished": RunRecord._finished,
}
_CHANGES = {(False, "ALIVE"): "is here", (True, "DEAD"): "is gone", (False, "DEAD"): "is gone", (True, "absent"): "left"}
"""Marks, by whether a member was alive before, and what it is now. A member that is suspected often turns out to be there."""


def _missing(one: Any) -> tuple[str, str]:
    """A member that is not in a round, as the event has it: a struct, or what JSON made of one."""
    found = one if isinstance(one, Mapping) else {name: getattr(one, name, "") for name in ("peer_id", "reason")}
    reason = str(found.get("reason", ""))
    return str(found.get("peer_id", ""))[:100], reason if reason == LATE else human.clean(reason, MAX_REASON_CHARS)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _int(value: Any) -> int:
    number = number_of(value)
    return 0 if number is None else int(number)
