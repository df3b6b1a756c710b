"""Getting in, being told why not, and finding each other again."""

import socket

import pytest
import trio

from legion_p2p.core.identity import Identity
from legion_p2p.errors import NetworkError, NoContactError, UsageError
from legion_p2p.net.host import open_network
from legion_p2p.net.limits import NetConfig
from tests.net.conftest import LOOPBACK, QUICK, echo, eventually, opened
from tests.ports import free_port
from tests.waiting import PATIENCE_S


def dead_address() -> str:
    return f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{Identity.generate().peer_id}"


async def test_when_nobody_answers_the_error_names_each_and_why():
    async with opened() as other, open_network(Identity.generate(), listen=LOOPBACK, initial_peers=[]) as _:
        where = other.addresses()[0].partition("/p2p/")[0]
        refused = dead_address()
        impostor = f"{where}/p2p/{Identity.generate().peer_id}"
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen(1)  # takes the connection, and never says a word
            mute = f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}/p2p/{Identity.generate().peer_id}"
            async with open_network(Identity.generate(), initial_peers=[refused, impostor, mute]) as network:
                with trio.fail_after(PATIENCE_S), pytest.raises(NoContactError) as error:
                    await network.join()

    assert error.value.reasons[refused] == "connection refused"
    assert error.value.reasons[impostor] == f"the peer there has another id: {other.peer_id}"
    assert error.value.reasons[mute] == "no answer in 5 s"
    assert all(address in str(error.value) for address in (refused, impostor, mute))


async def test_a_name_that_does_not_resolve_is_said_so():
    address = f"/dns4/nobody.invalid/tcp/1/p2p/{Identity.generate().peer_id}"
    async with open_network(Identity.generate(), listen=(), initial_peers=[address]) as network:
        with trio.fail_after(PATIENCE_S), pytest.raises(NoContactError) as error:
            await network.join()

    assert "resolve" in error.value.reasons[address]


@pytest.mark.parametrize("protocol", ["dns", "dns4"])
async def test_a_contact_may_be_given_by_a_name_that_only_this_machine_knows(protocol):
    async with opened() as boot:
        port = boot.addresses()[0].split("/")[4]
        address = f"/{protocol}/localhost/tcp/{port}/p2p/{boot.peer_id}"
        async with opened(initial_peers=[address]) as network:
            assert await network.messenger.request(boot.peer_id, b"by name") == b"by name"


async def test_who_only_asks_the_dht_finds_and_is_not_asked():
    async with opened() as boot, opened(of=boot) as a, opened(of=boot, config=NetConfig(dht_server=False)) as client:
        await a.discovery.provide("run")
        with trio.fail_after(PATIENCE_S):
            while not await client.discovery.find("run"):  # noqa: ASYNC110
                await trio.sleep(0.1)
        await eventually(lambda: boot.discovery.dht.size() == 1)
        assert [str(peer) for peer in boot.discovery.dht.closest_known(b"x", 20)] == [a.peer_id]
        assert (client.peer_id, (a.peer_id,)) in [(one.asker, one.named) for one in boot.tally.introductions]


async def test_one_live_contact_among_dead_ones_is_enough():
    async with opened() as boot:
        dead = [dead_address() for _ in range(3)]
        async with open_network(
            Identity.generate(), listen=LOOPBACK, initial_peers=[*dead, *boot.addresses()], config=QUICK
        ) as network:
            with trio.fail_after(PATIENCE_S):
                await network.join()

            assert network.dial_reports[boot.addresses()[0]] is None
            assert await network.messenger.request(boot.peer_id, b"in") == b"in"
            await eventually(lambda: {network.dial_reports[address] for address in dead} == {"connection refused"})


async def test_without_initial_peers_there_is_nothing_to_join():
    async with open_network(Identity.generate(), listen=LOOPBACK) as network:
        await network.join()


async def test_its_own_address_is_no_contact():
    identity, port = Identity.generate(), free_port()
    address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{identity.peer_id}"
    async with open_network(identity, listen=[f"/ip4/127.0.0.1/tcp/{port}"], initial_peers=[address]) as network:
        with trio.fail_after(PATIENCE_S), pytest.raises(NoContactError, match="itself"):
            await network.join()


@pytest.mark.parametrize(
    "address",
    ["", "hello", "127.0.0.1:4710", "/ip4/1.2.3.4/tcp/80", "/ip4/1.2.3/tcp/80/p2p/12D3KooW", "/ip4/127.0.0.1/udp/1/quic-v1"],
)
async def test_a_malformed_initial_peer_is_named_before_anything_is_dialed(address):
    with pytest.raises(UsageError) as error:
        async with open_network(Identity.generate(), initial_peers=[address]):
            pytest.fail("must not open")

    assert repr(address) in str(error.value)
    assert "/ip4/HOST/tcp/PORT/p2p/PEER_ID" in str(error.value)


async def test_a_contact_that_comes_later_is_found():
    identity, port = Identity.generate(), free_port()
    where = f"/ip4/127.0.0.1/tcp/{port}"
    async with open_network(
        Identity.generate(), listen=LOOPBACK, initial_peers=[f"{where}/p2p/{identity.peer_id}"], config=QUICK
    ) as network:
        with pytest.raises(NoContactError):
            await network.join()

        async with opened(identity, listen=[where]):
            await eventually(lambda: identity.peer_id in network.messenger.connected())
            assert await network.messenger.request(identity.peer_id, b"at last") == b"at last"


async def test_a_bootstrap_that_restarts_with_its_key_is_found_again_by_everyone():
    identity, port = Identity.generate(), free_port()
    where = [f"/ip4/127.0.0.1/tcp/{port}"]
    address = [f"{where[0]}/p2p/{identity.peer_id}"]

    async with trio.open_nursery() as nursery:
        peers = []

        async def peer(task_status):
            async with opened(initial_peers=address) as network:
                peers.append(network)
                task_status.started()
                await trio.sleep_forever()

        async with opened(identity, listen=where):
            for _ in range(3):
                await nursery.start(peer)
            await peers[0].discovery.provide("run")
        await eventually(lambda: not any(identity.peer_id in p.messenger.connected() for p in peers))

        async with opened(identity, listen=where) as again:
            await eventually(lambda: all(identity.peer_id in p.messenger.connected() for p in peers))
            await eventually(lambda: len(again.messenger.connected()) == 3)
            with trio.fail_after(PATIENCE_S):
                while not await peers[1].discovery.find("run"):  # noqa: ASYNC110
                    await trio.sleep(0.1)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("n", [10, pytest.param(16, marks=pytest.mark.long)])
async def test_many_peers_with_one_contact_become_one_network(n):
    complete = []

    async with opened() as boot, trio.open_nursery() as nursery:

        async def peer():
            async with opened(of=boot) as network:
                await network.discovery.provide("run")
                others = set()
                while len(others) < n - 1:
                    others |= {contact.peer_id for contact in await network.discovery.find("run", limit=n)}
                    await trio.sleep(1)
                complete.append(network.peer_id)
                await trio.sleep_forever()

        for _ in range(n):
            nursery.start_soon(peer)
        await eventually(lambda: len(complete) == n, within_s=400)  # many seconds of CPU; a busy machine gives it slowly
        nursery.cancel_scope.cancel()

    assert len(set(complete)) == n


async def test_gossip_flows_once_two_peers_have_talked():
    async with opened() as boot, opened(of=boot) as a, opened(of=boot) as b:  # noqa: SIM117
        async with b.gossip.subscribe("run") as heard, a.gossip.subscribe("run"):
            await a.discovery.provide("run")
            with trio.fail_after(PATIENCE_S):
                while a.peer_id not in {contact.peer_id for contact in await b.discovery.find("run")}:  # noqa: ASYNC110
                    await trio.sleep(0.1)
            await b.messenger.request(a.peer_id, b"hello")

            with trio.fail_after(PATIENCE_S):
                while True:
                    await a.gossip.publish("run", b"news")
                    with trio.move_on_after(0.2):
                        assert await heard.receive() == b"news"
                        break


async def test_gossip_that_is_nothing_of_its_topic_is_not_heard_and_costs_its_sender_the_connection():
    async with opened() as hub, opened(of=hub) as a:
        heard: list[bytes] = []
        at_hub = hub.gossip.listen("t", heard.append, lambda data: data == b"x")
        async with a.gossip.subscribe("t"), at_hub:
            with trio.fail_after(PATIENCE_S):
                while not heard:
                    await a.gossip.publish("t", b"x")
                    await trio.sleep(0.2)
            with trio.fail_after(PATIENCE_S):
                n = 0
                while not hub.messenger.refusals.is_refused(a.peer_id):
                    n += 1
                    await a.gossip.publish("t", b"garbage %d" % n)
                    await trio.sleep(0.1)

        assert set(heard) == {b"x"}


async def test_leaving_leaves_nothing_behind():
    import os

    async def used() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(trio.lowlevel.current_root_task().child_nurseries[0].child_tasks)

    async with opened() as a, opened(of=a) as b:
        await b.messenger.request(a.peer_id, b"warm")
    before = await used()
    tasks_before = trio.lowlevel.current_statistics().tasks_living

    with trio.fail_after(PATIENCE_S):
        async with opened() as a, opened(of=a) as b, b.gossip.subscribe("t"):
            await b.messenger.request(a.peer_id, b"hello")
            await a.discovery.provide("k")
        began = trio.current_time()
    del began

    await eventually(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks_before)
    assert await used() == before


async def test_leaving_does_not_wait_for_a_silent_peer():
    release = trio.Event()

    async def slow(peer, body):
        await release.wait()
        return body

    async with opened() as a:
        a.messenger.serve(slow)
        with trio.fail_after(PATIENCE_S):
            async with opened(of=a) as b, trio.open_nursery() as nursery:
                nursery.start_soon(b.messenger.request, a.peer_id, b"never answered")
                await eventually(lambda: a.messenger._server._handling.n_items)
                nursery.cancel_scope.cancel()
        release.set()


async def test_an_exception_inside_comes_out_as_it_is():
    with pytest.raises(ZeroDivisionError):
        async with opened() as a, opened(of=a):
            raise ZeroDivisionError


async def test_a_port_in_use_is_said_so():
    async with opened() as a:
        where = a.addresses()[0].partition("/p2p/")[0]

        with pytest.raises(NetworkError, match="address already in use"):
            async with open_network(Identity.generate(), listen=[where]):
                pytest.fail("must not open")


async def test_a_wildcard_is_told_as_addresses_that_can_be_dialed():
    async with open_network(Identity.generate()) as network:
        addresses = network.addresses()

        assert addresses
        assert not any("/0.0.0.0/" in address for address in addresses)
        assert addresses[-1].startswith("/ip4/127.0.0.1/")
        assert all(address.endswith(f"/p2p/{network.peer_id}") for address in addresses)
        async with open_network(Identity.generate(), initial_peers=addresses) as other:
            network.messenger.serve(echo)
            await other.join()
            assert await other.messenger.request(network.peer_id, b"x") == b"x"


async def test_announced_addresses_replace_those_found_out():
    public = "/ip4/203.0.113.7/tcp/4710"
    async with open_network(Identity.generate(), listen=LOOPBACK, announce=[public]) as network:
        assert network.addresses() == (f"{public}/p2p/{network.peer_id}",)
        assert network.messenger.addresses() == (public,)


async def test_connections_that_ended_do_not_use_up_room():
    async with opened() as boot:
        for _ in range(25):
            async with opened(of=boot):
                pass
        (listener,) = boot._host.get_network().listeners.values()

        await eventually(lambda: len(listener._sockets) == 0)
        await eventually(lambda: not boot.messenger.connected())
