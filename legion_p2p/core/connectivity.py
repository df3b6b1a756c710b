"""Noticing that the network under a peer changed or went away, and that the machine slept.

A peer looks every second or so; each look is a `Sight`.

    HEARING -> QUIET    connections are open, and nothing arrived on any of them for `quiet_s`: they are asked for a sign of life
    QUIET   -> AWAY     no sign came for `patience_s` more: the network is away, and all its connections are given up
    QUIET, AWAY -> HEARING   anything arrives

Beside these states:

    the clock that runs on while a machine sleeps went further than the other one   -> the machine slept
    both clocks went further than there is time between two looks                   -> the process was stopped, or starved of CPU
    the addresses of the machine are others than at the last look                   -> they changed

Silence is not counted over a time in which this peer itself stood still. Never happens: AWAY without having been QUIET; a peer
without connections is QUIET, because nobody could be heard.
"""

from enum import Enum

import msgspec


class ConnectivityConfig(msgspec.Struct, frozen=True):
    """How patient to be."""

    quiet_s: float = 5.0
    """Seconds of silence on all connections, until they are asked; members announce every 2 s. Shorter: idle peers ask more."""

    patience_s: float = 5.0
    """Seconds that the others have to answer. Longer: a network that went away is noticed later."""

    slept_s: float = 5.0
    """Looks are a second apart; if the clock that runs on went this much further than the other, the machine slept."""

    stopped_s: float = 15.0
    """If both clocks went further than this, the process was stopped. Shorter: a busy machine looks the same."""


PATIENT = ConnectivityConfig()


class Sight(msgspec.Struct, frozen=True):
    """What one look saw."""

    now: float
    """Monotonic, in seconds; may stand still while the machine sleeps."""
    running_on: float
    """Another clock, in seconds, that runs on while the machine sleeps; where there is none, the same."""
    hosts: frozenset[str]
    """IP addresses of the interfaces that are up, without loopback and link-local ones."""
    received_bytes: int
    """On all connections together, since the start."""
    n_connections: int


class Slept(msgspec.Struct, frozen=True):
    """This peer stood still: any of its connections may have ended meanwhile, without a sign."""

    seconds: float
    is_machine: bool
    """The whole machine slept; else only this process was stopped."""


class AddressesChanged(msgspec.Struct, frozen=True):
    """The machine has other addresses than before: connections from those that are gone are dead."""

    gone: tuple[str, ...]
    new: tuple[str, ...]


class Quiet(msgspec.Struct, frozen=True):
    """Nothing was heard for a while: ask for a sign of life."""


class WentAway(msgspec.Struct, frozen=True):
    """Nobody answers: every connection is dead."""

    silent_s: float


class CameBack(msgspec.Struct, frozen=True):
    """Something arrives again."""

    away_s: float


Change = Slept | AddressesChanged | Quiet | WentAway | CameBack


class Connectivity(Enum):
    HEARING = "HEARING"
    QUIET = "QUIET"
    AWAY = "AWAY"


class ConnectivityWatch:
    """The connectivity of one peer, as far as it can tell by itself."""

    def __init__(self, first: Sight, config: ConnectivityConfig = PATIENT) -> None:
        self.state = Connectivity.HEARING
        self._config = config
        self._last = first
        self._heard_at = first.now
        self._asked_at = first.now
        self._lost_all_hosts = False

    @property
    def is_cut_off(self) -> bool:
        """Whether the silence of others says nothing about them: nobody at all is heard, or this machine lost its addresses."""
        return self.state is not Connectivity.HEARING or self._lost_all_hosts

    def look(self, sight: Sight) -> tuple[Change, ...]:
        """What changed since the last look, in the order in which to act on it."""
        before, self._last = self._last, sight
        changes: list[Change] = []
        slept = self._standstill(before, sight)
        if slept is not None:
            changes.append(slept)
            self._heard_at = sight.now
            if self.state is Connectivity.QUIET:
                self.state = Connectivity.HEARING
        if sight.hosts != before.hosts:
            self._lost_all_hosts = not sight.hosts
            changes.append(AddressesChanged(_ordered(before.hosts - sight.hosts), _ordered(sight.hosts - before.hosts)))
        changes += self._listen(before, sight)
        return tuple(changes)

    def _standstill(self, before: Sight, sight: Sight) -> Slept | None:
        passed_s, passed_on_s = sight.now - before.now, sight.running_on - before.running_on
        if passed_on_s - passed_s > self._config.slept_s:
            return Slept(passed_on_s, is_machine=True)
        if passed_s > self._config.stopped_s:
            return Slept(passed_s, is_machine=False)
        return None

    def _listen(self, before: Sight, sight: Sight) -> list[Change]:
        if sight.received_bytes != before.received_bytes:
            was, self.state = self.state, Connectivity.HEARING
            away_s = sight.now - self._heard_at
            self._heard_at = sight.now
            return [CameBack(away_s)] if was is Connectivity.AWAY else []
        if self.state is Connectivity.AWAY:
            return []
        if not sight.n_connections:
            self.state, self._heard_at = Connectivity.HEARING, sight.now
            return []
        if self.state is Connectivity.HEARING and sight.now - self._heard_at >= self._config.quiet_s:
            self.state, self._asked_at = Connectivity.QUIET, sight.now
            return [Quiet()]
        if self.state is Connectivity.QUIET and sight.now - self._asked_at >= self._config.patience_s:
            self.state = Connectivity.AWAY
            return [WentAway(sight.now - self._heard_at)]
        return []


def _ordered(hosts: frozenset[str]) -> tuple[str, ...]:
    """IPv4 first: it is what people recognize."""
    return tuple(sorted(hosts, key=lambda host: (":" in host, host)))
