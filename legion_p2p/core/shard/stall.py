"""Whether the owner of a shard makes no progress while this peer's contribution waits for it.

    RESTING   nothing waits, or this peer owns the shard itself
    WAITING   a contribution waits, or waited a moment ago; no version has come since

    WAITING -> RESTING   a version has come, another peer owns the shard, or nothing has waited for as long as an owner may take
            -> RESTING   nothing has come for STALL_PERIODS typical rounds: `Stalled`

An owner that answers every probe may still make nothing. What follows from `Stalled` is decided by all members together, from
their announcements: core/stalls.py.

Never happens: an owner is reported while its own patience with absent members may still last (core/round.py), or in a run whose
rounds wait for everybody.
"""

from collections import deque

import msgspec

from legion_p2p.core.identity import PeerId
from legion_p2p.core.round import Pace, RoundConfig
from legion_p2p.core.shard.life_events import Advanced, Owners, Shared

STALL_PERIODS = 3.0  # typical rounds without a version; an owner itself waits at most `patience_periods` for absent members
MIN_STALL_S = 15.0  # however short rounds are: a narrow link or a busy machine holds up an update for seconds
MARGIN = 1.25  # on that patience: the last push of the round has to arrive, and the update to come back
IN_TRANSIT = 3.0  # times as long where a push or a version may be on a slow link; an owner can feign that, so not for ever
N_ANSWERS = 5  # waits that say what is typical here; the longest of them may have been an accident


class Stalled(msgspec.Struct, frozen=True):
    """This owner has made nothing of the shard for too long."""

    owner: PeerId


class StallWatch:
    """Watches the owner of one shard."""

    def __init__(self, me: PeerId, config: RoundConfig, pace: Pace) -> None:
        """`pace`: of the shard's versions, as this peer sees them come."""
        self._me = me
        self._waits_for_all = config.quorum >= 1
        self._pace = pace
        self._owner: PeerId | None = None
        self._since: float | None = None
        self._idle_since: float | None = None
        """Since when nothing waits."""
        self._is_waiting = False
        self._in_transit = False
        self._answers: deque[float] = deque(maxlen=N_ANSWERS)
        self._found: Stalled | None = None

    def handle(self, event: Shared, now: float) -> None:
        """Take in what happened."""
        match event:
            case Owners(owners):
                if owners.owner != self._owner:
                    self._owner, self._since = owners.owner, None
            case Advanced():
                if self._since is not None:
                    self._answers.append(now - self._since)
                self._since = None

    def look(self, is_waiting: bool, now: float, *, in_transit: bool = False) -> None:
        """Time has passed, or something happened. `is_waiting`: a contribution is packed that no version contains. `in_transit`:
        it has not been acknowledged, or the owner is said to have a version that has not come yet."""
        self._in_transit, self._is_waiting = in_transit, is_waiting
        if self._waits_for_all or self._owner in (None, self._me):
            self._since = None
        elif not is_waiting:  # the owner may have refused it as malformed, which makes no version either
            self._idle_since = now if self._idle_since is None else self._idle_since
            return
        elif self._since is None or (self._idle_since is not None and now - self._idle_since > self.patience_s()):
            self._since = now
        elif now >= self._since + self.patience_s():
            assert self._owner is not None
            self._found, self._since = Stalled(self._owner), now
        self._idle_since = None

    def poll(self) -> Stalled | None:
        """What was found, once."""
        found, self._found = self._found, None
        return found

    def next_deadline(self) -> float | None:
        """When `look` has something to do; None while only an event changes anything."""
        return None if self._since is None or not self._is_waiting else self._since + self.patience_s()

    def patience_s(self) -> float:
        """How long this owner may take."""
        usual = sorted(self._answers)[-2] if len(self._answers) > 1 else 0.0
        typical_s = max(usual, self._pace.period_s or 0.0)
        patience_s = max(STALL_PERIODS * typical_s, MARGIN * self._pace.patience_s(), MIN_STALL_S)
        return IN_TRANSIT * patience_s if self._in_transit else patience_s
