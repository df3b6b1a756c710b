"""Which relays a peer that others cannot dial keeps reservations with.

CANDIDATE -> ASKED -> HELD, until the relay refuses, the reservation ends, or the connection to the relay is lost; then it is a
CANDIDATE again that rests for a while. Two relays are kept, so that the loss of one leaves the peer reachable. Relays that were
given by a person come first, then those that were found.

Can never happen: more than WANTED reservations held or asked for; a relay that is asked again before its rest is over; more
candidates than MAX_CANDIDATES.
"""

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId

WANTED = 2  # relays at a time: one may end without a word
MAX_CANDIDATES = 64  # relays that are remembered; the one heard of longest ago is forgotten first
RENEW_SHARE = 0.5  # of its time after which a reservation is renewed
FIRST_REST_S = 2.0  # after a refusal or a failure; doubled each time
MAX_REST_S = 300.0


class _Relay:
    """A relay as seen from here."""

    def __init__(self) -> None:
        self.asking = False
        self.renew_at: float | None = None
        self.until = float("-inf")
        self.rest_until = float("-inf")
        self.rest_s = FIRST_REST_S
        self.addresses: tuple[str, ...] = ()


class Reservations:
    """Decides which relay is asked next."""

    def __init__(self) -> None:
        self._relays: BoundedMap[PeerId, _Relay] = BoundedMap(MAX_CANDIDATES)

    def hear(self, relay: PeerId) -> None:
        """This peer relays, as far as anybody knows, and is connected."""
        if relay not in self._relays:
            if len(self._relays) >= MAX_CANDIDATES:
                spare = next((peer for peer, other in self._relays.items() if not other.asking and other.renew_at is None), None)
                if spare is None:
                    return
                del self._relays[spare]
            self._relays[relay] = _Relay()

    def poll(self, now: float, connected: frozenset[PeerId]) -> PeerId | None:
        """The relay to ask now, for the first time or again; None: no relay. `granted` or `failed` follows."""
        for peer, relay in self._relays.items():
            if relay.renew_at is not None and not relay.asking and peer not in connected:
                self.lost(peer, now)
        due = [(peer, relay) for peer, relay in self._relays.items() if not relay.asking and relay.rest_until <= now]
        for peer, relay in due:
            if relay.renew_at is not None and relay.renew_at <= now:
                relay.asking = True
                return peer
        n_busy = sum(1 for relay in self._relays.values() if relay.asking or relay.renew_at is not None)
        for peer, relay in due:
            if relay.renew_at is None and n_busy < WANTED and peer in connected:
                relay.asking = True
                return peer
        return None

    def granted(self, relay: PeerId, for_s: float, addresses: tuple[str, ...], now: float) -> None:
        """It lets others reach this peer, at any of these addresses of its own."""
        held = self._relays.get(relay)
        if held is None:
            return
        held.asking = False
        held.rest_s = FIRST_REST_S
        held.renew_at = now + RENEW_SHARE * for_s
        held.until = now + for_s
        held.addresses = addresses

    def failed(self, relay: PeerId, now: float) -> None:
        """It refused, or did not answer. A reservation that it granted before holds until its end."""
        asked = self._relays.get(relay)
        if asked is None:
            return
        asked.asking = False
        if asked.until <= now:
            asked.renew_at = None
        asked.rest_until = now + asked.rest_s
        asked.rest_s = min(2 * asked.rest_s, MAX_REST_S)

    def lost(self, relay: PeerId, now: float) -> None:
        """The connection to it ended, and the reservation with it."""
        held = self._relays.get(relay)
        if held is not None:
            held.renew_at = None
            held.until = now
            held.rest_until = now

    def release(self) -> tuple[PeerId, ...]:
        """None is needed any longer; those that were held."""
        held = tuple(peer for peer, relay in self._relays.items() if relay.renew_at is not None)
        for peer in held:
            self._relays[peer] = _Relay()
        return held

    def lacks(self) -> bool:
        """Whether fewer are held or asked for than wanted: further candidates would help."""
        return sum(1 for relay in self._relays.values() if relay.asking or relay.renew_at is not None) < WANTED

    def held(self, now: float) -> dict[PeerId, tuple[str, ...]]:
        """The relays through which this peer can be reached, and where each is dialed."""
        return {peer: relay.addresses for peer, relay in self._relays.items() if relay.renew_at is not None and relay.until > now}
