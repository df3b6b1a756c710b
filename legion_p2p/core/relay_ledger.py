"""What a relay lets pass: who may be reached through it, over how many circuits, and how fast.

A peer reserves, which lets others reach it here for RESERVATION_S; it renews before that. A circuit opens to a peer that has
reserved, and lasts until either end closes it: there is no total of bytes or seconds after which it breaks in the middle of a
transfer. What is limited is the rate. All peers that send share it equally, and a peer that has sent more than its hourly share
gets TRICKLE_BPS until the hour is over.

Can never happen: more reservations or circuits than the limits say; a circuit to a peer without a reservation; more bytes in any
second than the rate allows and one piece for each peer that sends.
"""

from collections import Counter

import msgspec

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import PeerId
from legion_p2p.core.units import parse_rate, parse_size
from legion_p2p.errors import UsageError

RESERVATION_S = 600.0  # how long a reservation holds; a peer that went away without a word holds its place no longer
TRICKLE_BPS = 64e3  # for a peer that has used up its hour: its announcements and requests still pass
MAX_PER_HOST = 32  # reservations from one IP address: a dormitory behind one router, but not a thousand invented identities
ACTIVE_S = 2.0  # a peer counts as one that sends for this long after its last bytes
HOUR_S = 3600.0
MAX_LIMIT = 10_000  # peers and circuits that a person may allow: more connections than a host takes
MAX_ACCOUNTS = 4096  # of peers that sent within the hour; the one that sent longest ago is forgotten first


class RelayLimits(msgspec.Struct, frozen=True):
    """What a relay gives to others."""

    rate_bps: float = 10e6
    """Bits per second that pass in all directions together. Higher: peers that only relays reach hold rounds up less."""
    max_reservations: int = 256
    """Peers that can be reached through it. Each costs a connection, and some hundred bytes a minute."""
    max_circuits: int = 512
    """Open at once; each costs two streams, and while it is used some 32 CPU seconds a GiB."""
    max_circuits_per_peer: int = 64
    """Of one peer, at either end."""
    hourly_bytes: int = 8 << 30
    """That one peer may send in an hour at full rate; then TRICKLE_BPS. 8 GiB is 19 Mbit/s without a pause."""


DEFAULT_RELAY = "10mbit"
RELAY_FORM = "no, or a rate such as 10mbit, with limits where wanted: 10mbit,peers=256,circuits=512,hourly=8gb"


def parse_relay(text: str) -> RelayLimits | None:
    """What a person allows to pass; None: nothing. Raises: UsageError, naming the allowed form."""
    if text == "no":
        return None
    rate, *limits = text.split(",")
    found = RelayLimits(rate_bps=parse_rate(rate))
    for limit in limits:
        name, _, value = limit.partition("=")
        if name not in ("peers", "circuits", "hourly"):
            raise UsageError(f"relay limit {limit!r}: allowed is {RELAY_FORM}")
        if name == "hourly":
            found = msgspec.structs.replace(found, hourly_bytes=int(parse_size(value)))
        elif value.isascii() and value.isdigit() and 1 <= int(value) <= MAX_LIMIT:
            found = msgspec.structs.replace(found, **{"max_reservations" if name == "peers" else "max_circuits": int(value)})
        else:
            raise UsageError(f"relay limit {limit!r}: must be 1 to {MAX_LIMIT}")
    return found


class _Account:
    """What one peer has sent through here."""

    __slots__ = ("free_at", "hour_began", "hour_bytes")

    def __init__(self, now: float) -> None:
        self.free_at = now
        self.hour_began = now
        self.hour_bytes = 0


class RelayLedger:
    """The reservations and circuits of one relay. A method that may refuse returns why; empty: it does not."""

    def __init__(self, limits: RelayLimits) -> None:
        self.limits = limits
        self.relayed_bytes = 0
        self.n_refused = 0
        self.refusals: Counter[str] = Counter()
        """How often something was refused, by the reason."""
        self._reserved: dict[PeerId, tuple[str, float]] = {}  # peer -> (its host, until when)
        self._circuits: Counter[tuple[PeerId, PeerId]] = Counter()
        self._accounts: BoundedMap[PeerId, _Account] = BoundedMap(MAX_ACCOUNTS)
        self._active_until: dict[PeerId, float] = {}  # of peers that have a circuit

    @property
    def n_reservations(self) -> int:
        return len(self._reserved)

    @property
    def n_circuits(self) -> int:
        return self._circuits.total()

    def reserve(self, peer: PeerId, host: str, now: float) -> str:
        """Let others reach `peer`, which is connected from `host`, from now on; a renewal as well."""
        self._forget_old(now)
        if peer not in self._reserved:
            if len(self._reserved) >= self.limits.max_reservations:
                return self._refuse(f"it relays for {self.limits.max_reservations} peers already")
            if sum(1 for other, _ in self._reserved.values() if other == host) >= MAX_PER_HOST:
                return self._refuse(f"it relays for {MAX_PER_HOST} peers of that address already")
        self._reserved[peer] = (host, now + RESERVATION_S)
        return ""

    def release(self, peer: PeerId) -> None:
        """It is no longer connected, or has no more need."""
        self._reserved.pop(peer, None)

    def holds(self, peer: PeerId, now: float) -> bool:
        """Whether `peer` can be reached through here."""
        return peer in self._reserved and self._reserved[peer][1] > now

    def reserved(self) -> frozenset[PeerId]:
        return frozenset(self._reserved)

    def circuits(self) -> list[tuple[PeerId, PeerId, int]]:
        """Between whom circuits are open, and how many."""
        return [(source, target, n) for (source, target), n in self._circuits.items()]

    def hourly_bytes(self, peer: PeerId) -> int:
        """What `peer` has sent through here in the hour that runs for it."""
        account = self._accounts.get(peer)
        return 0 if account is None else account.hour_bytes

    def open(self, source: PeerId, target: PeerId, now: float) -> str:
        """A circuit begins. Where this is not refused, `close` follows."""
        if not self.holds(target, now):
            return self._refuse("that peer has no reservation here")
        if self.n_circuits >= self.limits.max_circuits:
            return self._refuse(f"it carries {self.limits.max_circuits} circuits already")
        for peer in (source, target):
            if sum(n for ends, n in self._circuits.items() if peer in ends) >= self.limits.max_circuits_per_peer:
                return self._refuse(f"it carries {self.limits.max_circuits_per_peer} circuits of one peer already")
        self._circuits[source, target] += 1
        return ""

    def close(self, source: PeerId, target: PeerId) -> None:
        """A circuit has ended."""
        self._circuits[source, target] -= 1
        if self._circuits[source, target] <= 0:
            del self._circuits[source, target]

    def pass_at(self, sender: PeerId, n_bytes: int, now: float) -> float:
        """When this many bytes that `sender` sent may pass on; they count from now."""
        account = self._accounts.get(sender)
        if account is None:
            account = _Account(now)
        if now - account.hour_began >= HOUR_S:
            account.hour_began, account.hour_bytes = now, 0
        account.hour_bytes += n_bytes
        self._accounts[sender] = account  # the newest now
        self.relayed_bytes += n_bytes
        self._active_until = {peer: until for peer, until in self._active_until.items() if until > now or peer == sender}
        self._active_until.setdefault(sender, now)
        rate_bps = self.limits.rate_bps / len(self._active_until)
        if account.hour_bytes > self.limits.hourly_bytes:
            rate_bps = min(rate_bps, TRICKLE_BPS)
        account.free_at = max(account.free_at, now) + 8 * n_bytes / rate_bps
        self._active_until[sender] = account.free_at + ACTIVE_S
        return account.free_at

    def _forget_old(self, now: float) -> None:
        for peer in [peer for peer, (_, until) in self._reserved.items() if until <= now]:
            del self._reserved[peer]

    def _refuse(self, reason: str) -> str:
        self.n_refused += 1
        self.refusals[reason] += 1  # bounded: a reason names a limit, and no peer
        return reason
