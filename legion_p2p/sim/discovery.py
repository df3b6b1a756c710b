"""Finding others in a simulated world: providers of a key, each asked whether it still is one."""

from collections.abc import Mapping

import msgspec
import trio

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.contact import Contact
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError, LegionError, UnreachableError, UsageError
from legion_p2p.net.limits import MAX_KEY_CHARS, MAX_KEYS_PROVIDED, MAX_SEARCHED
from legion_p2p.sim.fabric import Fabric, Station
from legion_p2p.sim.providers import PROVIDER_LIFETIME_S

CONFIRM_TIMEOUT_S = 5.0
MAX_CONFIRMING = 6  # of those found, asked at once


class SimDiscovery:
    """See services.ports.Discovery."""

    def __init__(self, world: Fabric, network: Station) -> None:
        self._world = world
        self._network = network
        self._provided: dict[str, trio.CancelScope] = {}
        self._unreachable: BoundedMap[str, dict[PeerId, str]] = BoundedMap(MAX_SEARCHED)
        network.messenger.serve_internally("discovery", self._answer)

    async def provide(self, key: str) -> None:
        _check_key(key)
        if key in self._provided:
            return
        if len(self._provided) >= MAX_KEYS_PROVIDED:
            raise UsageError(f"more than {MAX_KEYS_PROVIDED} keys provided by one peer")
        scope = self._provided[key] = trio.CancelScope()
        await trio.sleep(2 * self._world.delay(self._network.peer_id, self._network.peer_id))
        self._world.start(self._renew, key, scope)
        await trio.lowlevel.checkpoint()

    async def withdraw(self, key: str) -> None:
        _check_key(key)
        scope = self._provided.pop(key, None)
        if scope is not None:
            scope.cancel()
        await trio.lowlevel.checkpoint()

    async def find(self, key: str, limit: int = 20) -> tuple[Contact, ...]:
        _check_key(key)
        me = self._network.peer_id
        await trio.sleep(2 * self._world.delay(me, me))
        confirmed: dict[PeerId, Contact] = {}
        self._unreachable[key] = {}
        candidates = [contact for contact in self._world.providers.of(key) if contact.peer_id != me]
        self._world.random.shuffle(candidates)
        while candidates and len(confirmed) < limit:
            async with trio.open_nursery() as nursery:
                for contact in candidates[:MAX_CONFIRMING]:
                    nursery.start_soon(self._confirm, key, contact, confirmed)
            del candidates[:MAX_CONFIRMING]
        return tuple(confirmed[peer] for peer in sorted(confirmed))[:limit]

    async def _confirm(self, key: str, contact: Contact, confirmed: dict[PeerId, Contact]) -> None:
        messenger = self._network.messenger
        messenger.book.hear(contact.peer_id, contact.addresses)
        self._unreachable[key][contact.peer_id] = f"{', '.join(contact.addresses)}: no answer in {CONFIRM_TIMEOUT_S:.0f} s"
        with trio.move_on_after(CONFIRM_TIMEOUT_S):
            try:
                if await messenger.call(contact.peer_id, "discovery", msgspec.msgpack.encode(key)) == b"yes":
                    confirmed[contact.peer_id] = Contact(contact.peer_id, messenger.book.of(contact.peer_id))
            except UnreachableError as failed:
                self._unreachable[key][contact.peer_id] = f"{', '.join(contact.addresses)}: {failed.reason}"
                return
            except LegionError:
                pass  # not providing: not found
            del self._unreachable[key][contact.peer_id]

    def unreachable(self, key: str) -> Mapping[PeerId, str]:
        return self._unreachable.get(key, {})

    async def _answer(self, peer: PeerId, body: bytes) -> bytes:
        try:
            key = msgspec.msgpack.decode(body, type=str)
        except msgspec.DecodeError as bad:
            raise DecodeError(f"not a question: {bad}") from bad
        return b"yes" if key in self._provided else b"no"

    async def _renew(self, key: str, scope: trio.CancelScope) -> None:
        with scope:
            while self._network.alive:
                if not self._network.frozen:
                    self._world.providers.store(key, self._network.peer_id, self._network.address)
                with trio.move_on_after(PROVIDER_LIFETIME_S / 3):
                    await self._network.died.wait()


def _check_key(key: str) -> None:
    if not 0 < len(key) <= MAX_KEY_CHARS:
        raise UsageError(f"key of {len(key)} characters, 1 to {MAX_KEY_CHARS} are allowed")
