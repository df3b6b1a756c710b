"""When a peer may train, by the conditions of its user and by what the machine does.

Each condition that does not hold is a reason to pause, in words for the user. What wavers has two bounds, so that training does
not begin and end every few seconds:

    a program of the user's takes the processors   busy above BUSY_SHARE for BUSY_S, free again below FREE_SHARE for FREE_S
    the user types or moves the mouse              busy at once, free again after INPUT_S without
    temperature                                    too hot at the limit, cool again COOLER_C below it

A condition that the machine cannot measure does not pause the peer. A month's volume that is used up pauses until the month is
over."""

import msgspec

from legion_p2p.core.units import MIN_RATE_BPS

BUSY_SHARE = 0.5  # of all processors, taken by other programs: a build or a game, not a web page
FREE_SHARE = 0.25
BUSY_S = 6.0  # starting a program takes some seconds of every processor, and nobody minds
FREE_S = 60.0  # the pauses within one task of a person are shorter
INPUT_S = 120.0  # somebody who reads touches nothing for a minute
COOLER_C = 5.0
LESS_MEMORY = 0.95  # of the limit, where a pause for memory ends
SPENT_BPS = 32 * MIN_RATE_BPS  # both ways, once a month's volume is used up: enough to stay a member


class ConditionsConfig(msgspec.Struct, frozen=True):
    """The conditions under which a peer trains. By default there are none."""

    only_idle: bool = False
    on_battery: bool = True
    max_temperature_c: float | None = None
    max_memory_bytes: float | None = None
    monthly_bytes: float | None = None

    @property
    def asks_nothing(self) -> bool:
        """No condition is set."""
        return self == ConditionsConfig()


class MachineFacts(msgspec.Struct, frozen=True):
    """What the machine does now. None: it cannot be known here."""

    others_share: float | None = None
    """Share of all processors that other programs have taken since the last look."""
    input_age_s: float | None = None
    """Seconds since the user last typed or moved something."""
    on_battery: bool | None = None
    temperature_c: float | None = None
    """Of the hottest sensor."""
    memory_bytes: float | None = None
    """Of this process."""
    month_bytes: float = 0.0
    """Sent and received this month, to and from machines outside of the local network."""


class TrainingConditions:
    """The conditions of one user, looked at again and again."""

    def __init__(self, config: ConditionsConfig) -> None:
        self.config = config
        self._is_busy = config.only_idle  # until it has been seen to be free
        self._since: float | None = None
        """Since when the processors have been as they must be for a change of `_is_busy`."""
        self._is_hot = False
        self._is_large = False

    def look(self, facts: MachineFacts, now: float) -> tuple[str, ...]:
        """The conditions that do not hold, in words."""
        found = (
            self._busy(facts, now),
            "on battery" if facts.on_battery and not self.config.on_battery else "",
            self._hot(facts.temperature_c),
            self._large(facts.memory_bytes),
            self._spent(facts.month_bytes),
        )
        return tuple(filter(None, found))

    def is_spent(self, facts: MachineFacts) -> bool:
        """The month's volume is used up."""
        return bool(self._spent(facts.month_bytes))

    def _busy(self, facts: MachineFacts, now: float) -> str:
        if not self.config.only_idle:
            return ""
        if facts.others_share is not None:
            is_changing = facts.others_share > BUSY_SHARE if not self._is_busy else facts.others_share < FREE_SHARE
            if not is_changing:
                self._since = None
            elif self._since is None:
                self._since = now
            elif now - self._since >= (FREE_S if self._is_busy else BUSY_S):
                self._is_busy, self._since = not self._is_busy, None
        else:
            self._is_busy = False
        if facts.input_age_s is not None and facts.input_age_s < INPUT_S:
            return "the machine is in use"
        return "other programs are busy" if self._is_busy else ""

    def _hot(self, now_c: float | None) -> str:
        limit_c = self.config.max_temperature_c
        if limit_c is None or now_c is None:
            return ""
        self._is_hot = now_c > limit_c - (COOLER_C if self._is_hot else 0.0)
        return f"{now_c:.0f} degrees, {limit_c:.0f} allowed" if self._is_hot else ""

    def _large(self, now_bytes: float | None) -> str:
        limit = self.config.max_memory_bytes
        if limit is None or now_bytes is None:
            return ""
        self._is_large = now_bytes > limit * (LESS_MEMORY if self._is_large else 1.0)
        return f"{now_bytes / 1e9:.1f} GB of memory, {limit / 1e9:.1f} GB allowed" if self._is_large else ""

    def _spent(self, n_bytes: float) -> str:
        limit = self.config.monthly_bytes
        return f"this month's {limit / 1e9:g} GB are used up" if limit is not None and n_bytes >= limit else ""
