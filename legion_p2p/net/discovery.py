"""Finding the peers that provide a key: the Discovery of services.ports, over the DHT.

A DHT record cannot be withdrawn and outlives its peer, so it is only a hint: `find` asks every peer it heard of directly whether
it provides the key now, and returns those that say yes. Peers connected already are asked as well, so that two peers find each
other before the DHT has heard of either.

A key is announced when `provide` is called, then after 2, 4, 8, ... s while the neighbourhood may still be filling up, and from
then on every third of a record's lifetime. All keys that are due go together, one stream per node.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from random import SystemRandom

import msgspec
import trio
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.contact import Contact
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError, LegionError, UnreachableError, UsageError
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.dht import ALPHA, Dht, K, multihash_of
from legion_p2p.net.dialer import jittered
from legion_p2p.net.limits import (
    MAX_ADDRESSES_PER_PEER,
    MAX_KEY_CHARS,
    MAX_KEYS_PROVIDED,
    MAX_SEARCHED,
    MAX_UNREACHABLE,
    NetConfig,
)
from legion_p2p.net.messenger import Libp2pMessenger
from legion_p2p.net.provider_search import ProviderSearch

SERVICE = "discovery"
CONFIRM_TIMEOUT_S = 5.0  # for a candidate to be dialed and to answer; a live one on a slow link or a busy machine needs 2
LOOKUP_BUDGET_S = 8.0  # after which `find` makes do with what it heard
PROVIDE_BUDGET_S = 10.0  # after which `provide` returns, and the announcing goes on in the background
MAX_OPERATIONS = 3  # lookups at once: each is some 10 questions of 10 ms CPU
MAX_CONNECTED_ASKED = 16  # peers connected already that are asked without a hint
FRESH_TARGETS_S = 60.0  # how long the nodes found closest to a key are taken for the closest
TICK_S = 0.25
MAINTENANCE_S = 1.0
MAX_REASON_CHARS = 400  # of what was tried to reach one peer: some addresses, with a reason for each
SWEEP_TABLE_S = 30.0
MAX_QUESTION_BYTES = 256

log = logging.getLogger("legion_p2p.net")


class _Question(msgspec.Struct, frozen=True, array_like=True):
    key: bytes


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    provides: bool
    addresses: tuple[str, ...] = ()


class _Provided:
    """A key that this peer provides."""

    def __init__(self, now: float) -> None:
        self.due_at = now
        self.n_rounds = 0
        self.attempted = trio.Event()
        self.targets: list[ID] = []
        self.targets_until = now


class Libp2pDiscovery:
    """See services.ports.Discovery."""

    def __init__(
        self, messenger: Libp2pMessenger, dht: Dht, book: AddressBook, config: NetConfig, addresses: Callable[[], tuple[str, ...]]
    ) -> None:
        self._messenger = messenger
        self.dht = dht
        self._book = book
        self._config = config
        self._addresses = addresses
        self._provided: dict[bytes, _Provided] = {}
        self._unreachable: BoundedMap[bytes, BoundedMap[PeerId, str]] = BoundedMap(MAX_SEARCHED)
        self._operations = trio.CapacityLimiter(MAX_OPERATIONS)
        self._wake = Notify()
        messenger.serve_internally(SERVICE, self._answer)

    async def provide(self, key: str) -> None:
        place = _place(key)
        provided = self._provided.get(place)
        if provided is None:
            if len(self._provided) >= MAX_KEYS_PROVIDED:
                raise UsageError(f"more than {MAX_KEYS_PROVIDED} keys provided by one peer")
            provided = self._provided[place] = _Provided(trio.current_time())
            self._remember_own(place)
            self._wake.notify()
        with trio.move_on_after(PROVIDE_BUDGET_S):
            await provided.attempted.wait()

    async def withdraw(self, key: str) -> None:
        place = _place(key)
        if self._provided.pop(place, None) is not None:
            self.dht.providers.remove(place, ID.from_base58(self._messenger.peer_id))
        await trio.lowlevel.checkpoint()

    def renew(self) -> None:
        """Announce everything again now: this peer has other addresses, or had no network for a while."""
        for provided in self._provided.values():
            provided.due_at = provided.targets_until = trio.current_time()
            provided.n_rounds = 0
        self._wake.notify()

    async def find(self, key: str, limit: int = 20) -> tuple[Contact, ...]:
        place = _place(key)
        self._unreachable[place] = BoundedMap(MAX_UNREACHABLE)
        search = ProviderSearch(self._messenger.peer_id, lambda peer: self.confirm(peer, place), limit)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(search.confirm_candidates, nursery)
            search.add(PeerId(str(info.peer_id)) for info in self._held_here(place))
            connected = sorted(self._messenger.connected())
            search.add(SystemRandom().sample(connected, min(len(connected), MAX_CONNECTED_ASKED)))
            search.look_up(partial(self._look_up, place, search), nursery)
            await search.settled()
            if not search.confirmed:
                # all peers that were named are dead, or have withdrawn: others, further off, may know of more
                search.is_thorough = True
                search.look_up(partial(self._look_up, place, search), nursery)
                await search.settled()
            nursery.cancel_scope.cancel()  # of those that may still answer, nobody waits for more
        return tuple(search.confirmed.values())

    def unreachable(self, key: str) -> Mapping[PeerId, str]:
        return dict(self._unreachable.get(_place(key), {}))

    async def _look_up(self, place: bytes, search: ProviderSearch) -> None:
        async with self._operations:
            with trio.move_on_after(LOOKUP_BUDGET_S):
                await self.dht.lookup(place, ALPHA, search.add, search.n_nodes_to_ask)

    def tasks(self) -> tuple[Callable[[], Awaitable[None]], ...]:
        """What has to run until the end: announcing what is provided, and keeping the routing table."""
        return (self._announce_for_ever, self._learn_for_ever, self._look_around_for_ever)

    # answering

    async def _answer(self, peer: PeerId, body: bytes) -> bytes:
        if len(body) > MAX_QUESTION_BYTES:
            raise DecodeError(f"question of {len(body)} bytes, limit is {MAX_QUESTION_BYTES}")
        try:
            question = msgspec.msgpack.decode(body, type=_Question)
        except msgspec.DecodeError as bad:
            raise DecodeError(f"not a question: {bad}") from bad
        provides = question.key in self._provided
        return msgspec.msgpack.encode(_Answer(provides, self._addresses() if provides else ()))

    async def confirm(self, peer: PeerId, place: bytes) -> Contact | None:
        """Ask `peer` whether it provides the key now; where it may be found if it does."""
        with trio.move_on_after(CONFIRM_TIMEOUT_S):
            try:
                reply = await self._messenger.call(peer, SERVICE, msgspec.msgpack.encode(_Question(place)))
                answer = msgspec.msgpack.decode(reply, type=_Answer)
            except LegionError as failed:
                log.debug("%s did not confirm a key: %s", peer, failed)
                if isinstance(failed, UnreachableError):
                    self._note_unreachable(peer, place, failed.reason)
                return None
            except msgspec.DecodeError as bad:
                self._messenger.report(peer, f"not an answer of discovery: {bad}")
                return None
            if not answer.provides:
                return None
            # hearsay even of itself: only what worked, or what the caller tells us, goes in front
            self._book.hear(peer, answer.addresses[:MAX_ADDRESSES_PER_PEER])
            return Contact(peer, self._book.of(peer))
        self._note_unreachable(peer, place, f"no answer in {CONFIRM_TIMEOUT_S:.0f} s")
        return None

    def _note_unreachable(self, peer: PeerId, place: bytes, reason: str) -> None:
        unreachable = self._unreachable.get(place)
        if unreachable is not None:
            at = [address for address in self._book.of(peer) if address not in reason]
            unreachable[peer] = "; ".join((*([", ".join(at)] if at else []), reason))[:MAX_REASON_CHARS]

    # announcing

    async def _announce_for_ever(self) -> None:
        while True:
            now = trio.current_time()
            due = [place for place, provided in self._provided.items() if provided.due_at <= now]
            if due:
                try:
                    await self._announce(due)
                except Exception:
                    log.exception("announcing %d keys failed", len(due))
                    for place in due:
                        if place in self._provided:
                            self._provided[place].due_at = trio.current_time() + 1.0
            now = trio.current_time()
            if not any(provided.due_at <= now for provided in self._provided.values()):  # what came meanwhile does not wait
                with trio.move_on_after(TICK_S):
                    await self._wake.wait()

    async def _announce(self, places: list[bytes]) -> None:
        keys_of: dict[ID, list[bytes]] = {}
        for place in places:
            provided = self._provided.get(place)
            if provided is None:
                continue
            self._remember_own(place)
            for target in await self._targets(place, provided):
                keys_of.setdefault(target, []).append(place)
        n_stored = dict.fromkeys(places, 0)
        slots = trio.CapacityLimiter(MAX_OPERATIONS)

        async def announce_to(target: ID, keys: list[bytes]) -> None:
            async with slots:
                n_acknowledged = await self.dht.announce(target, keys)
            for place in keys[:n_acknowledged]:
                n_stored[place] += 1

        async with trio.open_nursery() as nursery:
            for target, keys in keys_of.items():
                nursery.start_soon(announce_to, target, keys)
        for place in places:
            provided = self._provided.get(place)
            if provided is not None:
                self._plan_next(provided, n_stored[place])

    async def _targets(self, place: bytes, provided: _Provided) -> list[ID]:
        n = self._config.replication
        if self.dht.size() <= K:
            # all peers fit into one bucket, so that asking finds no more
            return self.dht.closest_known(place, n)
        if trio.current_time() >= provided.targets_until or len(provided.targets) < n:
            async with self._operations:
                with trio.move_on_after(LOOKUP_BUDGET_S):
                    provided.targets = await self.dht.lookup(place, n)
                    provided.targets_until = trio.current_time() + jittered(FRESH_TARGETS_S)
        return provided.targets

    def _plan_next(self, provided: _Provided, n_stored: int) -> None:
        pause_s = min(self._config.provider_lifetime_s / 3, 2.0 ** (provided.n_rounds + 1))
        if n_stored:
            provided.n_rounds = min(provided.n_rounds + 1, 16)
        else:
            provided.n_rounds = 0
            provided.targets_until = float("-inf")
            pause_s = min(pause_s, 1.0)
        provided.due_at = trio.current_time() + jittered(pause_s)
        provided.attempted.set()

    def _remember_own(self, place: bytes) -> None:
        me = ID.from_base58(self._messenger.peer_id)
        self.dht.providers.add_provider(place, PeerInfo(me, list(self.dht.own_addresses())))

    def _held_here(self, place: bytes) -> list[PeerInfo]:
        return self.dht.providers.get_providers(place)

    # the routing table

    async def _learn_for_ever(self) -> None:
        """Put connected peers into the routing table, once identify has told what they speak; drop those that have gone."""
        known: set[PeerId] = set()
        sweep_at = 0.0
        while True:
            connected = self._messenger.connected()
            known &= connected
            for peer in connected - known:
                if await self.dht.learn(ID.from_base58(peer)):
                    known.add(peer)
            self.dht.providers.cleanup_expired()
            if trio.current_time() >= sweep_at:
                self.dht.drop_stale()
                sweep_at = trio.current_time() + SWEEP_TABLE_S
            await trio.sleep(MAINTENANCE_S)

    async def _look_around_for_ever(self) -> None:
        """Look up ourselves: at once when there is anybody to ask, then at growing intervals, and again when all are lost."""
        pause_s = 1.0
        while True:
            if self.dht.size() == 0:
                pause_s = 1.0
                await trio.sleep(TICK_S)
                continue
            async with self._operations:
                with trio.move_on_after(LOOKUP_BUDGET_S):
                    await self.dht.lookup(ID.from_base58(self._messenger.peer_id).to_bytes(), ALPHA)
            await trio.sleep(jittered(pause_s))
            pause_s = min(2 * pause_s, 300.0)


def _place(key: str) -> bytes:
    if not 0 < len(key) <= MAX_KEY_CHARS:
        raise UsageError(f"key of {len(key)} characters, 1 to {MAX_KEY_CHARS} are allowed")
    return multihash_of(key)
