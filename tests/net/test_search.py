"""Searching for the providers of a key, some of which never answer."""

from collections.abc import Sequence
from typing import Any

import msgspec
import trio

from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.net.address_book import AddressBook
from legion_p2p.net.discovery import CONFIRM_TIMEOUT_S, Libp2pDiscovery
from legion_p2p.net.limits import NetConfig
from legion_p2p.net.provider_search import REST_S

PEERS = [Identity(bytes([i]) * 32).peer_id for i in range(1, 60)]


class Messenger:
    """Peers that answer after a time; never, where none is given."""

    peer_id = Identity(b"m" * 32).peer_id

    def __init__(self, answers_after_s: dict[PeerId, float]) -> None:
        self.answers_after_s = answers_after_s
        self.asked: list[PeerId] = []

    def serve_internally(self, service: str, handler: Any) -> None: ...

    def connected(self) -> frozenset[PeerId]:
        return frozenset()

    async def call(self, peer: PeerId, service: str, body: bytes) -> bytes:
        self.asked.append(peer)
        await trio.sleep(self.answers_after_s.get(peer, float("inf")))
        return msgspec.msgpack.encode((True, ()))


class Dht:
    def __init__(self, named: Sequence[PeerId], lasts_s: float = 0.0) -> None:
        self.named = named
        self.lasts_s = lasts_s
        self.providers = self

    def get_providers(self, place: bytes) -> list[Any]:
        return []

    async def lookup(self, place: bytes, n: int, heard: Any, n_to_ask: Any) -> list[Any]:
        heard(self.named)
        await trio.sleep(self.lasts_s)  # other nodes are asked
        return []


async def found(
    named: Sequence[PeerId], answers_after_s: dict[PeerId, float], lookup_s: float = 0.0
) -> tuple[list[PeerId], float]:
    messenger = Messenger(answers_after_s)
    discovery = Libp2pDiscovery(messenger, Dht(named, lookup_s), AddressBook(), NetConfig(), tuple)  # type: ignore[arg-type]
    began = trio.current_time()
    contacts = await discovery.find("key")
    return [contact.peer_id for contact in contacts], trio.current_time() - began


async def test_one_that_never_answers_costs_a_moment_and_not_what_the_others_said(autojump_clock):
    peers, took_s = await found(PEERS[:4], {PEERS[1]: 0.1, PEERS[3]: 0.4})

    assert peers == [PEERS[1], PEERS[3]]
    assert took_s == 0.1 + REST_S < CONFIRM_TIMEOUT_S


async def test_where_all_answer_nobody_waits(autojump_clock):
    peers, took_s = await found(PEERS[:3], dict.fromkeys(PEERS, 0.2))

    assert len(peers) == 3
    assert took_s == 0.2


async def test_twenty_silent_ones_in_front_delay_an_answer_by_two_timeouts_at_most(autojump_clock):
    peers, took_s = await found(PEERS[:21], {PEERS[20]: 0.1})

    assert peers == [PEERS[20]]
    assert took_s <= 2 * CONFIRM_TIMEOUT_S + 0.1 + REST_S


async def test_where_nobody_answers_the_search_ends(autojump_clock):
    peers, took_s = await found(PEERS[:12], {})

    assert peers == []
    assert took_s == CONFIRM_TIMEOUT_S


async def test_a_lookup_that_asks_nodes_that_are_gone_is_not_waited_for_once_one_has_confirmed(autojump_clock):
    peers, took_s = await found(PEERS[:1], {PEERS[0]: 0.3}, lookup_s=6.0)

    assert peers == [PEERS[0]]
    assert took_s == 0.3 + REST_S


async def test_where_nobody_has_confirmed_the_lookup_is_waited_for(autojump_clock):
    peers, took_s = await found([], {}, lookup_s=2.0)

    assert peers == []
    assert took_s == 2 * 2.0  # and a thorough one after it
