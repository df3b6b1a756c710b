"""Peers on the same LAN: what they say of themselves by mDNS, and which of them are dialed.

    HEARD      -> dialed, a few at a time, while fewer than MAX_CONNECTED neighbours are connected
    dialed     -> connected, or FAILED: tried again after a pause that doubles from FIRST_PAUSE_S to MAX_PAUSE_S
    any        -> forgotten when it says goodbye, or when it has failed and its place is needed

Anybody on a LAN can announce thousands of peers. Never happens: more than MAX_NEIGHBOURS are remembered; a new one takes the
place of one that has not failed; an address outside of this machine's own networks is dialed because a neighbour named it.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

import msgspec

from legion_p2p.core.addresses import is_circuit, parse_peer_address
from legion_p2p.core.dnsaddr import PREFIX
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import UsageError

MAX_NEIGHBOURS = 64  # remembered: one is enough to come into a run, and members learn of each other anyway
MAX_CONNECTED = 8  # neighbours; beyond these nobody is dialed for being near
MAX_DIALED_AT_ONCE = 4
MAX_SAID = 8  # addresses in one announcement: those of a machine with a few interfaces
MAX_TEXT_BYTES = 1300  # of one announcement: more does not fit into one packet
FIRST_PAUSE_S = 5.0
MAX_PAUSE_S = 300.0


def announcement(peer: PeerId, addresses: Sequence[str]) -> bytes:
    """What a peer says of itself: text records as they go into the packet, as libp2p's specification of mDNS has them."""
    said = b""
    for address in [a for a in addresses if not is_circuit(a) and a.split("/")[1] in ("ip4", "ip6")][:MAX_SAID]:
        text = f"{PREFIX}{address}/p2p/{peer}".encode()
        if len(text) < 256 and len(said) + len(text) < MAX_TEXT_BYTES:
            said += bytes([len(text)]) + text
    return said


def addresses_in(said: bytes, peer: PeerId, is_near: Callable[[str], bool]) -> tuple[str, ...]:
    """Where an announcement says that `peer` is, as far as that is near; it is not believed about anywhere else."""
    found: dict[str, None] = {}
    for text in _texts(said[:MAX_TEXT_BYTES]):
        if not text.startswith(PREFIX):
            continue
        try:
            where, named = parse_peer_address(text.removeprefix(PREFIX))
        except UsageError:
            continue
        family, host = where.split("/")[1:3]
        if named == peer and family in ("ip4", "ip6") and not is_circuit(where) and is_near(host):
            found.setdefault(where)
    return tuple(found)[:MAX_SAID]


def _texts(said: bytes) -> Iterator[str]:
    at = 0
    while at < len(said):
        length = said[at]
        yield said[at + 1 : at + 1 + length].decode(errors="replace")
        at += 1 + length


class _Neighbour(msgspec.Struct):
    n_failed: int = 0
    dial_at: float = 0.0


class Neighbours:
    """The peers of a LAN that one peer heard of."""

    def __init__(self) -> None:
        self._known: dict[PeerId, _Neighbour] = {}

    def peers(self) -> tuple[PeerId, ...]:
        """Those that are remembered."""
        return tuple(self._known)

    def hear(self, peer: PeerId, now: float) -> None:
        """It is there, or there again."""
        known = self._known.get(peer)
        if known is not None:
            return
        if len(self._known) >= MAX_NEIGHBOURS:
            failed = max(self._known, key=lambda other: self._known[other].n_failed)
            if not self._known[failed].n_failed:
                return
            del self._known[failed]
        self._known[peer] = _Neighbour(dial_at=now)

    def gone(self, peer: PeerId) -> None:
        """It said goodbye."""
        self._known.pop(peer, None)

    def failed(self, peer: PeerId, now: float) -> None:
        """It could not be reached."""
        known = self._known.get(peer)
        if known is not None:
            known.n_failed += 1
            known.dial_at = now + min(FIRST_PAUSE_S * 2.0 ** (known.n_failed - 1), MAX_PAUSE_S)

    def to_dial(self, connected: Collection[PeerId], now: float) -> tuple[PeerId, ...]:
        """Whom to dial now, those that failed least first."""
        n_wanted = min(MAX_CONNECTED - sum(peer in connected for peer in self._known), MAX_DIALED_AT_ONCE)
        due = [(known.n_failed, peer) for peer, known in self._known.items() if peer not in connected and known.dial_at <= now]
        return tuple(peer for _, peer in sorted(due)[: max(0, n_wanted)])
