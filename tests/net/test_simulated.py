"""The faults that the network in memory can have, and its repeatability."""

import pytest
import trio

from legion_p2p.core.access_link import LinkProfile
from legion_p2p.core.identity import Identity
from legion_p2p.core.priority import Priority
from legion_p2p.core.reach import ConnectionKind, OwnReach, Reach
from legion_p2p.errors import UnreachableError
from legion_p2p.net.limits import DIAL_TIMEOUT_S
from legion_p2p.sim.network import World
from legion_p2p.sim.request import BREAK_AFTER_S

IDENTITIES = [Identity(bytes([n]) * 32) for n in range(6)]


async def echo(peer, body):
    return body


async def answer_nothing(peer, body):
    return b""


def join_all(world, n):
    peers = [world.join(identity) for identity in IDENTITIES[:n]]
    for peer in peers:
        peer.messenger.serve(echo)
        for other in peers:
            if other is not peer:
                peer.messenger.add_addresses(other.peer_id, other.messenger.addresses())
    return peers


async def test_a_request_takes_two_delays_and_dialing_two_more(autojump_clock):
    async with World(delay_s=0.1) as world:
        a, b = join_all(world, 2)

        began = trio.current_time()
        await a.messenger.request(b.peer_id, b"")
        assert trio.current_time() - began == pytest.approx(0.4)

        began = trio.current_time()
        await a.messenger.request(b.peer_id, b"")
        assert trio.current_time() - began == pytest.approx(0.2)
        assert a.messenger.rtt_s(b.peer_id) == pytest.approx(0.2)


async def test_bulk_takes_its_turn_at_the_links_rate_and_control_does_not_wait(autojump_clock):
    async with World(delay_s=0.01, rate_bytes_s=1e6) as world:
        a, b = join_all(world, 2)
        await a.messenger.request(b.peer_id, b"")
        began = trio.current_time()
        done = []

        async def bulk():
            await a.messenger.request(b.peer_id, bytes(1_000_000), priority=Priority.ROUND)
            done.append(trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bulk)
            nursery.start_soon(bulk)
            await trio.sleep(0.001)
            await a.messenger.request(b.peer_id, b"")
            assert trio.current_time() - began < 0.1

        assert done == [pytest.approx(2.02), pytest.approx(3.02)]


async def test_delays_may_differ_by_pair(autojump_clock):
    near, far = IDENTITIES[1].peer_id, IDENTITIES[2].peer_id
    async with World(delay_s=lambda source, target: 0.2 if far in (source, target) else 0.01) as world:
        a, _, _ = join_all(world, 3)

        for peer, rtt_s in ((near, 0.02), (far, 0.4)):
            await a.messenger.request(peer, b"")
            assert a.messenger.rtt_s(peer) == pytest.approx(rtt_s)


async def test_all_bulk_of_a_peer_shares_its_access_link(autojump_clock):
    links = {
        identity.peer_id: LinkProfile(up_bps=8e6, down_bps=32e6, inside_s=0.01, across_s=0.1, place=place)
        for identity, place in zip(IDENTITIES, (1, 1, 2), strict=False)
    }
    async with World(links=links) as world:
        a, near, far = join_all(world, 3)
        for other, rtt_s in ((near, 0.01), (far, 0.1)):
            await a.messenger.request(other.peer_id, b"")
            assert a.messenger.rtt_s(other.peer_id) == pytest.approx(rtt_s)
            other.messenger.serve(answer_nothing)
        began, done = trio.current_time(), {}

        async def bulk(other):
            await a.messenger.request(other.peer_id, bytes(1_000_000), priority=Priority.ROUND)
            done[other] = trio.current_time() - began

        async with trio.open_nursery() as nursery:
            nursery.start_soon(bulk, near)
            await trio.sleep(0.001)
            nursery.start_soon(bulk, far)

        # 2 s for both upwards, in turns, and 0.25 s for each downwards; the last piece of one goes before that of the other
        assert done == {near: pytest.approx(2.25 + 0.01 - 0.04), far: pytest.approx(2.25 + 0.1)}
        assert a.messenger.bandwidth().upload_limit_bps == 8e6


async def test_a_killed_peer_fails_requests_one_delay_later(autojump_clock):
    async with World(delay_s=0.1) as world:
        a, b = join_all(world, 2)

        async def never(peer, body):
            await trio.sleep_forever()

        b.messenger.serve(never)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_fails, a, b)
            await trio.sleep(5)
            killed_at = trio.current_time()
            world.kill(b.peer_id)
        assert trio.current_time() - killed_at == pytest.approx(0.1)
        assert a.messenger.connected() == frozenset()
        with pytest.raises(UnreachableError):
            await b.messenger.request(a.peer_id, b"")


async def _fails(a, b):
    with pytest.raises(UnreachableError):
        await a.messenger.request(b.peer_id, b"")


async def test_the_handlers_of_a_killed_peer_stop_where_they_are(autojump_clock):
    went_on = []

    async def slow(peer, body):
        await trio.sleep(10)
        went_on.append(peer)
        return b""

    async with World() as world:
        a, b = join_all(world, 2)
        b.messenger.serve(slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_fails, a, b)
            await trio.sleep(1)
            world.kill(b.peer_id)
        await trio.sleep(20)

    assert went_on == []


async def test_a_frozen_peer_answers_when_it_thaws(autojump_clock):
    async with World(delay_s=0.1) as world:
        a, b = join_all(world, 2)
        await a.messenger.request(b.peer_id, b"")
        world.freeze(b.peer_id)

        with trio.move_on_after(1000) as patience:
            await a.messenger.request(b.peer_id, b"")
        assert patience.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.messenger.request, b.peer_id, b"")
            await trio.sleep(50)
            world.thaw(b.peer_id)
        assert a.messenger.connected() == {b.peer_id}


async def test_a_partition_swallows_packets_until_the_connection_breaks(autojump_clock):
    async with World(delay_s=0.1) as world:
        a, b, c = join_all(world, 3)
        await a.messenger.request(b.peer_id, b"")
        world.partition({a.peer_id}, {b.peer_id, c.peer_id})

        began = trio.current_time()
        await _fails(a, b)
        assert trio.current_time() - began == pytest.approx(BREAK_AFTER_S, abs=1)
        began = trio.current_time()
        await _fails(a, c)
        assert trio.current_time() - began == pytest.approx(DIAL_TIMEOUT_S)
        assert await b.messenger.request(c.peer_id, b"this side") == b"this side"

        world.heal()
        assert await a.messenger.request(b.peer_id, b"healed") == b"healed"


async def test_a_short_partition_is_only_a_delay(autojump_clock):
    async with World() as world:
        a, b = join_all(world, 2)
        await a.messenger.request(b.peer_id, b"")
        world.partition({a.peer_id}, {b.peer_id})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.messenger.request, b.peer_id, b"")
            await trio.sleep(10)
            world.heal()


async def test_lost_requests_are_unreachable_and_about_as_many_as_asked_for(autojump_clock):
    async with World(seed=3, loss=0.3) as world:
        a, b = join_all(world, 2)
        n_lost = 0
        for _ in range(200):
            try:
                await a.messenger.request(b.peer_id, b"")
            except UnreachableError:
                n_lost += 1
        assert 40 <= n_lost <= 80


async def test_bytes_may_be_corrupted_on_their_way(autojump_clock):
    async with World() as world:
        a, b = join_all(world, 2)
        world.corrupt = lambda source, target, data: data[::-1] if source == b.peer_id else data

        assert await a.messenger.request(b.peer_id, b"abc") == b"cba"


async def test_gossip_does_not_pass_a_partition_and_a_frozen_peer_hears_it_later(autojump_clock):
    async with World() as world:
        a, b, c = join_all(world, 3)
        for other in (b, c):
            await a.messenger.request(other.peer_id, b"")
        async with b.gossip.subscribe("t") as at_b, c.gossip.subscribe("t") as at_c:
            world.partition({a.peer_id}, {b.peer_id})
            world.freeze(c.peer_id)
            await a.gossip.publish("t", b"news")
            await trio.sleep(1)
            for channel in (at_b, at_c):
                with pytest.raises(trio.WouldBlock):
                    channel.receive_nowait()

            world.thaw(c.peer_id)
            assert at_c.receive_nowait() == b"news"


async def test_a_peer_cannot_be_in_a_world_twice(autojump_clock):
    from legion_p2p.errors import UsageError

    async with World() as world:
        world.join(IDENTITIES[0])
        with pytest.raises(UsageError):
            world.join(IDENTITIES[0])


def test_the_same_seed_gives_the_same_run():
    async def main(seed):
        log = []
        async with World(seed, delay_s=0.01, loss=0.2) as world:
            peers = join_all(world, 6)

            async def live(me):
                for n in range(20):
                    for other in peers:
                        if other is not me:
                            try:
                                await me.messenger.request(other.peer_id, b"%d" % n)
                                log.append((trio.current_time(), me.peer_id, other.peer_id, "ok"))
                            except UnreachableError:
                                log.append((trio.current_time(), me.peer_id, other.peer_id, "lost"))

            async with trio.open_nursery() as nursery:
                for peer in peers:
                    nursery.start_soon(live, peer)
                await trio.sleep(0.5)
                world.kill(peers[3].peer_id)
        return log

    def run(seed):
        return trio.run(main, seed, clock=trio.testing.MockClock(autojump_threshold=0))

    def relative(log):
        return [(round(when - log[0][0], 9), *what) for when, *what in log]

    assert relative(run(1)) == relative(run(1))
    assert relative(run(1)) != relative(run(2))


async def test_the_bodys_own_exception_comes_out_of_the_world(autojump_clock):
    with pytest.raises(ZeroDivisionError):
        async with World() as world:
            join_all(world, 2)
            raise ZeroDivisionError


async def test_a_hidden_peer_is_reached_over_connections_that_it_made(autojump_clock):
    async with World(delay_s=0.1) as world:
        a, b = join_all(world, 2)
        world.hide(a.peer_id)

        with pytest.raises(UnreachableError, match=f"no answer in {DIAL_TIMEOUT_S:.0f} s"):
            await b.messenger.request(a.peer_id, b"")
        await a.messenger.request(b.peer_id, b"")

        assert await b.messenger.request(a.peer_id, b"back") == b"back"
        assert b.reachability.connection(a.peer_id).kind is ConnectionKind.DIRECT


async def test_peers_behind_the_same_router_dial_each_other(autojump_clock):
    async with World(delay_s=0.1) as world:
        a, b, c = join_all(world, 3)
        world.hide(a.peer_id, but_from=[b.peer_id])

        assert await b.messenger.request(a.peer_id, b"hi") == b"hi"
        with pytest.raises(UnreachableError):
            await c.messenger.request(a.peer_id, b"")


async def test_a_hidden_peer_is_reached_through_its_relay_which_costs_its_delay_and_upload(autojump_clock):
    async with World(delay_s=0.1, up_bytes_s=1e6) as world:
        a, b, relay = join_all(world, 3)
        world.hide(a.peer_id, relays=[relay.peer_id])

        began = trio.current_time()
        await b.messenger.request(a.peer_id, b"")
        await b.messenger.request(a.peer_id, b"")
        assert b.reachability.connection(a.peer_id).kind is ConnectionKind.RELAYED
        assert b.reachability.connection(a.peer_id).relay == relay.peer_id
        assert a.reachability.connection(b.peer_id).relay == relay.peer_id
        assert b.reachability.connection(a.peer_id).rtt_s == pytest.approx(0.4)

        began = trio.current_time()
        a.messenger.serve(answer_nothing)
        await b.messenger.request(a.peer_id, bytes(1_000_000), priority=Priority.ROUND)
        assert trio.current_time() - began == pytest.approx(2.4, abs=0.1)  # one second for each of the two that send it


async def test_what_a_relay_carries_breaks_with_it(autojump_clock):
    async with World(delay_s=0.1) as world:
        a, b, relay, other = join_all(world, 4)
        world.hide(a.peer_id, relays=[relay.peer_id, other.peer_id])
        await b.messenger.request(a.peer_id, b"")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1)
            world.kill(relay.peer_id)
            with pytest.raises(UnreachableError, match="broke"):
                await b.messenger.request(a.peer_id, b"")

        assert await b.messenger.request(a.peer_id, b"hi") == b"hi"
        assert b.reachability.connection(a.peer_id).relay == other.peer_id


async def test_a_peer_that_is_shown_again_is_dialed_directly(autojump_clock):
    async with World(delay_s=0.1) as world:
        a, b = join_all(world, 2)
        world.hide(a.peer_id)
        world.show(a.peer_id)

        await b.messenger.request(a.peer_id, b"")

        assert b.reachability.connection(a.peer_id).kind is ConnectionKind.DIRECT


async def test_what_a_peer_found_out_of_its_reach_is_told_once(autojump_clock):
    async with World() as world:
        (a,) = join_all(world, 1)
        told = []
        a.reachability.changed.add(told.append)

        for _ in range(2):
            a.reachability.found(OwnReach(Reach.RELAYED))

        assert told == [OwnReach(Reach.RELAYED)] == [a.reachability.own()]
