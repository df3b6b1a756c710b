"""Keeping connections to the initial peers: those that fail or are lost are tried again, with growing pauses."""

from collections.abc import Callable, Sequence

import trio

from legion_p2p.core.addresses import DNSADDR
from legion_p2p.core.dial_advice import advice
from legion_p2p.core.identity import PeerId
from legion_p2p.core.observers import Observers
from legion_p2p.errors import NetworkError, NoContactError
from legion_p2p.net.changes import NetworkChanges
from legion_p2p.net.dialer import Dialer, jittered
from legion_p2p.net.limits import NetConfig
from legion_p2p.net.names import Names, addresses_by_texts
from legion_p2p.net.networks import own_networks
from legion_p2p.net.peer_score import REFUSED, Refusals

REDIAL_FIRST_S = 0.5
STILL_THERE_S = 1.0  # how often a lost initial peer is noticed


class Contacts:
    """The initial peers of one peer."""

    def __init__(
        self, dialer: Dialer, refusals: Refusals, nursery: trio.Nursery, initial: Sequence[tuple[str, PeerId]],
        changes: NetworkChanges, config: NetConfig, names: Names, report: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`report`: takes a line about a contact that was made or lost."""
        self.reports: dict[str, str | None] = {f"{where}/p2p/{peer}": "not tried yet" for where, peer in initial}
        """Of each: why the last attempt failed, or None while it is connected."""
        self._dialer = dialer
        self._refusals = refusals
        self._nursery = nursery
        self._initial = tuple(initial)
        self._changes = changes
        self._config = config
        self._names = names
        self._report = report
        self._keeping = False
        self.connected: Observers[PeerId] = Observers()
        """Told of each that was dialed and answered."""

    async def join(self) -> None:
        """Return when one of them answers; all are kept from now on.

        Raises: NoContactError, if all of them failed at the first attempt.
        """
        if not self._initial:
            return
        decided = trio.Event()
        waiting = set(self.reports)

        def tried(address: str) -> None:
            waiting.discard(address)
            if not waiting or self.reports[address] is None:
                decided.set()

        self.keep(tried)
        await decided.wait()
        if all(reason is not None for reason in self.reports.values()):
            reasons = {address: reason or "" for address, reason in self.reports.items()}
            raise NoContactError(reasons, advice(reasons, own_networks(), has_key=bool(self._config.network_key)))

    def keep(self, tried: Callable[[str], None] = lambda address: None) -> None:
        """Connect to them in the background, again and again."""
        if self._keeping:
            return
        self._keeping = True
        for where, peer in self._initial:
            self._nursery.start_soon(self._keep, where, peer, tried)

    async def _attempt(self, peer: PeerId, where: str) -> str | None:
        """Connect; None if there is a connection then, else why not. A `/dnsaddr` is looked up at each attempt."""
        if not where.startswith(DNSADDR):
            return await self._dialer.try_address(peer, where)
        try:
            found = await addresses_by_texts(self._names, where.removeprefix(DNSADDR), peer)
        except NetworkError as failed:
            return str(failed)
        reasons: list[str] = []
        for address in found:
            reason = await self._dialer.try_address(peer, address)
            if reason is None:
                return None
            reasons.append(f"{address}: {reason}")
        return "; ".join(reasons)

    async def _keep(self, where: str, peer: PeerId, tried: Callable[[str], None]) -> None:
        address = f"{where}/p2p/{peer}"
        is_own = peer == self._dialer.me
        pause_s = REDIAL_FIRST_S
        while True:
            if self._dialer.connections(peer):
                reason = None
            elif is_own:
                reason = "that address ends in this peer's own id: it is this peer itself, or another one with a copy of its key"
            elif self._refusals.is_refused(peer):
                reason = REFUSED
            else:
                reason = await self._attempt(peer, where)
                if reason is None:
                    self.connected.tell(peer)
            if reason != self.reports[address]:
                self._report(f"{address}: {reason or 'connected'}")
            self.reports[address] = reason
            tried(address)
            if is_own:
                return
            if reason is None:
                pause_s = REDIAL_FIRST_S
                await trio.sleep(STILL_THERE_S)
                continue
            pause_s = self._changes.pause_s(pause_s, trio.current_time())
            with trio.move_on_after(jittered(pause_s)) as pause:
                await self._changes.happened.wait()
            pause_s = min(2 * pause_s, self._config.redial_max_s) if pause.cancelled_caught else REDIAL_FIRST_S
