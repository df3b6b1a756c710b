"""Living through changes of the network: what `core.connectivity` notices is acted on here.

addresses changed    -> connections from those that are gone are closed at once
the machine slept    -> every connection is asked for a sign of life, and closed if it shows none
nothing arrives      -> some connections are asked; if nobody answers, all are closed
after each of these  -> no pause before dialing is waited out; peers whose connections were closed are dialed again, a few of them
                        every RETRY_S while nobody is reached, and all as soon as somebody is; contacts and the DHT hear of it
"""

import logging
from collections.abc import Callable
from random import SystemRandom

import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.connectivity import (
    PATIENT,
    AddressesChanged,
    CameBack,
    Change,
    ConnectivityConfig,
    ConnectivityWatch,
    Quiet,
    Sight,
    Slept,
    WentAway,
)
from legion_p2p.core.identity import PeerId
from legion_p2p.core.observers import Observers
from legion_p2p.errors import UnreachableError
from legion_p2p.net.dialer import Dialer, jittered
from legion_p2p.net.liveness import ConnectionLiveness
from legion_p2p.observe.events import Events
from legion_p2p.observe.human import duration_text

LOOK_EVERY_S = 1.0  # a look costs 0.1 ms
RETRY_S = 2.0  # between two attempts to reach peers that were lost to a change
MAX_TRIED = 8  # of them at once, while none is reached: whether the network is back, one of them tells
GIVE_UP_S = 60.0  # after the last change: by then services look for those that they need
ISOLATED_REDIAL_S = 3.0  # longest pause before contacts are dialed again, where a peer that had company is without any
ISOLATED_FOR_S = 600.0  # and for so long
MAX_ASKED = 4  # connections that are asked for a sign of life, where none gives one
MAX_LISTED = 4  # addresses in one line
_random = SystemRandom()

log = logging.getLogger("legion_p2p.net")


class NetworkChanges:
    """Notices changes, and brings this peer through them."""

    def __init__(
        self,
        dialer: Dialer,
        liveness: ConnectionLiveness,
        look: Callable[[], Sight],
        events: Events,
        config: ConnectivityConfig = PATIENT,
    ) -> None:
        self.happened = Notify()
        """Notified at each change after which it is worth dialing again."""
        self.changed: Observers[Change] = Observers()
        """Told of each such change, when it was acted on."""
        self.regained: Observers[PeerId] = Observers()
        """Told of each peer that was lost to a change, when it is connected again."""
        self._dialer = dialer
        self._liveness = liveness
        self._look = look
        self._events = events
        self._config = config
        self._lost: set[PeerId] = set()
        self._redialing: set[PeerId] = set()
        self._redial_now = Notify()
        self._give_up_at = float("-inf")
        self.is_cut_off = False
        """Nothing arrives from other machines, as far as this peer can tell; or it has no address."""
        self._had_company_at = float("-inf")

    def pause_s(self, wanted_s: float, now: float) -> float:
        """How long to wait before contacts are dialed again: not long, where a peer has just lost everybody."""
        if not self._liveness.n_connections() and now - self._had_company_at < ISOLATED_FOR_S:
            return min(wanted_s, ISOLATED_REDIAL_S)
        return wanted_s

    async def watch_forever(self) -> None:
        watch = ConnectivityWatch(self._look(), self._config)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._redial_forever, nursery)
            while True:
                await trio.sleep(LOOK_EVERY_S)
                sight = self._look()
                if sight.n_connections:
                    self._had_company_at = sight.now
                changes = watch.look(sight)
                self.is_cut_off = watch.is_cut_off
                for change in changes:
                    nursery.start_soon(self._act, change, sight)

    async def _act(self, change: Change, sight: Sight) -> None:
        if isinstance(change, Quiet):
            await self._liveness.ask(MAX_ASKED)
            return
        self._tell(change, is_cut_off=not sight.hosts)
        lost: frozenset[PeerId] = frozenset()
        if isinstance(change, AddressesChanged):
            lost = await self._liveness.drop(lambda host: host in change.gone)
        elif isinstance(change, WentAway):
            lost = await self._liveness.drop(lambda host: True)
        elif isinstance(change, Slept):
            lost = await self._liveness.check_all()
        self._lost |= lost
        self._give_up_at = trio.current_time() + GIVE_UP_S
        self._dialer.start_over()
        self._redial_now.notify()
        self.happened.notify()
        self.changed.tell(change)

    def _tell(self, change: Change, is_cut_off: bool) -> None:
        """A line each: what happened is no error, and nobody has to do anything about it."""
        if isinstance(change, Slept):
            what = "this machine slept" if change.is_machine else "this process stood still"
            self._events.emit("network.resumed", text=f"{what} for {_rounded(change.seconds)}")
        elif isinstance(change, WentAway):
            self._events.emit("network.away", text=f"nothing arrived for {_rounded(change.silent_s)}; trying again")
        elif isinstance(change, CameBack):
            self._events.emit("network.back", text=f"after {_rounded(change.away_s)}")
        elif isinstance(change, AddressesChanged) and is_cut_off:
            self._events.emit("network.away", text=f"{_listed(change.gone)} gone, and this machine has no other address")
        elif isinstance(change, AddressesChanged):
            parts = [f"{_listed(change.gone)} gone" if change.gone else "", f"{_listed(change.new)} new" if change.new else ""]
            self._events.emit("network.changed", text=", ".join(filter(None, parts)))

    async def _redial_forever(self, nursery: trio.Nursery) -> None:
        while True:
            with trio.move_on_after(jittered(RETRY_S)):
                await self._redial_now.wait()
            regained = {peer for peer in self._lost if self._dialer.connections(peer)}
            self._lost -= regained
            for peer in regained:
                self.regained.tell(peer)
            if not self.is_cut_off and trio.current_time() > self._give_up_at:
                self._lost.clear()
            chosen = list(self._lost - self._redialing)
            if not self._liveness.n_connections():
                chosen = _random.sample(chosen, min(max(0, MAX_TRIED - len(self._redialing)), len(chosen)))
            for peer in chosen:
                self._redialing.add(peer)
                nursery.start_soon(self._redial, peer)

    async def _redial(self, peer: PeerId) -> None:
        try:
            await self._dialer.connect(peer)
            self._redial_now.notify()  # where one is reached, the others are as well
        except UnreachableError as failed:
            log.debug("not back yet: %s", failed)
        finally:
            self._redialing.discard(peer)


def _rounded(seconds: float) -> str:
    return duration_text(60.0 * round(seconds / 60) if seconds >= 120 else float(round(seconds)))


def _listed(hosts: tuple[str, ...]) -> str:
    shown = ", ".join(hosts[:MAX_LISTED])
    more = f" and {len(hosts) - MAX_LISTED} more" if len(hosts) > MAX_LISTED else ""
    return f"{shown}{more} {'is' if len(hosts) == 1 else 'are'}"
