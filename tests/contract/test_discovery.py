"""What services may rely on when they look for peers."""

import pytest
import trio

from legion_p2p.errors import UsageError
from legion_p2p.net.limits import MAX_KEY_CHARS
from tests.contract.conftest import eventually
from tests.waiting import PATIENCE_S


async def test_nobody_provides_an_unknown_key(swarm, clock):
    a, b = await swarm.start_connected(2)

    assert await b.discovery.find("nothing") == ()
    assert await a.discovery.find("nothing") == ()


async def test_a_provider_is_found_with_addresses(swarm, clock):
    a, b = await swarm.start_connected(2)

    await a.discovery.provide("run")

    (contact,) = await b.discovery.find("run")
    assert contact.peer_id == a.peer_id
    assert set(a.messenger.addresses()) <= set(contact.addresses)
    assert not any("/p2p/" in address for address in contact.addresses)


async def test_a_provider_is_found_through_a_third_peer(swarm, clock):
    _, a, b = await swarm.start_connected(3)
    await a.discovery.provide("run")
    assert a.peer_id not in b.messenger.connected()

    async def is_found():
        return [contact.peer_id for contact in await b.discovery.find("run")] == [a.peer_id]

    await eventually(is_found)
    assert await b.messenger.request(a.peer_id, b"direct") == b"direct"


async def test_providing_alone_succeeds_and_is_found_when_somebody_comes(swarm, clock):
    a = await swarm.start()
    with trio.fail_after(PATIENCE_S):
        await a.discovery.provide("run")

    b = await swarm.start()
    b.knows(a)
    a.messenger.serve(lambda peer, body: _nothing())
    await b.messenger.request(a.peer_id, b"")

    assert [contact.peer_id for contact in await b.discovery.find("run")] == [a.peer_id]


async def test_nobody_finds_itself(swarm, clock):
    a, _ = await swarm.start_connected(2)

    await a.discovery.provide("run")

    assert await a.discovery.find("run") == ()


async def test_keys_do_not_mix(swarm, clock):
    hub, a, b = await swarm.start_connected(3)
    await a.discovery.provide("one")
    await b.discovery.provide("other")

    assert [contact.peer_id for contact in await hub.discovery.find("one")] == [a.peer_id]
    assert [contact.peer_id for contact in await hub.discovery.find("other")] == [b.peer_id]


async def test_all_providers_are_found_up_to_the_limit(swarm, clock):
    hub, *others = await swarm.start_connected(5)
    for peer in others:
        await peer.discovery.provide("run")

    async def all_are_found():
        return {contact.peer_id for contact in await hub.discovery.find("run")} == {peer.peer_id for peer in others}

    await eventually(all_are_found)
    assert len(await hub.discovery.find("run", limit=2)) == 2


async def test_who_withdrew_is_no_longer_found(swarm, clock):
    hub, a, b = await swarm.start_connected(3)
    await a.discovery.provide("run")

    async def is_found():
        return bool(await b.discovery.find("run"))

    await eventually(is_found)

    await a.discovery.withdraw("run")

    assert await b.discovery.find("run") == ()
    assert await hub.discovery.find("run") == ()


async def test_who_provides_again_is_found_again(swarm, clock):
    a, b = await swarm.start_connected(2)
    await a.discovery.provide("run")
    await a.discovery.withdraw("run")
    await a.discovery.provide("run")

    assert [contact.peer_id for contact in await b.discovery.find("run")] == [a.peer_id]


async def test_withdrawing_what_was_never_provided_does_nothing(swarm, clock):
    (a,) = await swarm.start_connected(1)

    await a.discovery.withdraw("run")


async def test_the_dead_are_not_found(swarm, clock):
    hub, a, b = await swarm.start_connected(3)
    await a.discovery.provide("run")
    await b.discovery.provide("run")

    async def both_are_found():
        return len(await hub.discovery.find("run")) == 2

    await eventually(both_are_found)

    await a.kill()

    assert [contact.peer_id for contact in await hub.discovery.find("run")] == [b.peer_id]


async def test_many_keys_are_provided_at_once(swarm, clock):
    hub, a = await swarm.start_connected(2)
    keys = [f"run/region/{shard}" for shard in range(64)]

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(a.discovery.provide, key)

    for key in keys[::16]:
        assert [contact.peer_id for contact in await hub.discovery.find(key)] == [a.peer_id]


@pytest.mark.parametrize("key", ["", "x" * (MAX_KEY_CHARS + 1)], ids=["empty", "too long"])
async def test_a_key_that_cannot_be_is_the_callers_mistake(swarm, clock, key):
    (a,) = await swarm.start_connected(1)

    with pytest.raises(UsageError, match="key of"):
        await a.discovery.provide(key)
    with pytest.raises(UsageError, match="key of"):
        await a.discovery.find(key)


async def _nothing() -> bytes:
    return b""


async def test_a_provider_that_cannot_be_reached_is_named_with_what_was_tried(swarm, clock):
    a, b, c = await swarm.start_connected(3)
    await b.discovery.provide("run")
    await eventually(lambda: finds(c, b))
    await eventually(lambda: is_noted(b, a, c))  # the first attempt may have come before others serve the DHT

    where = b.messenger.addresses()
    await b.kill()

    async def is_unreachable():
        await c.discovery.find("run")
        return b.peer_id in c.discovery.unreachable("run")

    await eventually(is_unreachable)
    assert any(address in c.discovery.unreachable("run")[b.peer_id] for address in where)
    assert c.discovery.unreachable("another key") == {}


async def is_noted(provider, *others):
    """Another node holds a record of it, so that it is named after it has gone."""
    if not hasattr(provider.discovery, "dht"):  # the network in memory notes everything at once
        return True
    return any(provider.peer_id in other.discovery.dht.providers.by_peer() for other in others)


async def finds(peer, provider):
    return provider.peer_id in {contact.peer_id for contact in await peer.discovery.find("run")}
