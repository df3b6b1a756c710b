"""Keeping a port of the router forwarded to this peer.

WANTED -> HELD     when a router grants it
HELD   -> HELD     renewed at half of its time, or sooner: a router that was restarted has forgotten it
HELD   -> WANTED   when its time is over because renewals failed; or when this machine is in another network
WANTED -> WANTED   when no router grants it: asked again after a pause that doubles, because most of those never will

Never happens: a port counts as forwarded for longer than the router granted it.
"""

import math

import msgspec

LIFETIME_S = 3600  # asked for: a peer that was killed leaves its port open for this long
RENEW_S = 600.0  # at the latest; costs a packet or two
RETRY_S = 30.0  # after a renewal that failed
FIRST_PAUSE_S, MAX_PAUSE_S = 60.0, 3600.0  # after a refusal


class Forwarding(msgspec.Struct, frozen=True):
    """A port of a router that leads to this peer."""

    port: int
    """Outside."""
    lifetime_s: float
    """Until it ends, unless it is renewed; infinite where the router keeps no lifetimes."""


class PortLease:
    """One forwarded port, from the first wish to its end."""

    def __init__(self, now: float) -> None:
        self.held: Forwarding | None = None
        self._ask_at = now
        self._ends_at = now
        self._pause_s = FIRST_PAUSE_S

    def next_deadline(self) -> float:
        """When to ask the router again, or for the first time."""
        return self._ask_at if self.held is None else min(self._ask_at, self._ends_at)

    def granted(self, forwarding: Forwarding, now: float) -> bool:
        """A router forwards the port; True if that is another one than before."""
        is_new = self.held is None or self.held.port != forwarding.port
        self.held = forwarding
        self._ends_at = now + forwarding.lifetime_s
        self._ask_at = now + min(forwarding.lifetime_s / 2, RENEW_S)
        self._pause_s = FIRST_PAUSE_S
        return is_new

    def refused(self, now: float) -> None:
        """No router does, or none is there."""
        self.expire(now)
        if self.held is not None:
            self._ask_at = now + RETRY_S
            return
        self._ask_at = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)

    def expire(self, now: float) -> None:
        """What was held may be over."""
        if self.held is not None and now >= self._ends_at:
            self.held = None

    def moved(self, now: float) -> None:
        """Another network, with another router."""
        self.held, self._ask_at, self._ends_at, self._pause_s = None, now, math.inf, FIRST_PAUSE_S
