"""What services may rely on when they send requests."""

from functools import partial

import pytest
import trio

from legion_p2p.core.identity import Identity
from legion_p2p.core.priority import Priority, ThrottledReply
from legion_p2p.core.reach import NO_CONNECTION, ConnectionKind, Reach
from legion_p2p.core.spliced import Spliced
from legion_p2p.errors import CodecError, RefusedError, UnreachableError, UsageError
from legion_p2p.net.limits import MAX_BODY_BYTES, MAX_REQUESTS_OUT, MAX_SCORE
from tests.contract.conftest import echo, eventually
from tests.waiting import PATIENCE_S


@pytest.fixture(params=["memory", "libp2p", "lanes"])
def kind(request: pytest.FixtureRequest) -> str:
    """Only requests can tell whether there are lanes."""
    return request.param


async def test_a_request_is_answered_by_the_others_handler(swarm, clock):
    a, b = await swarm.start_connected(2)

    async def handler(peer, body):
        return peer.encode() + b" said " + body

    a.messenger.serve(handler)

    assert await b.messenger.request(a.peer_id, b"hi") == b.peer_id.encode() + b" said hi"


async def test_both_sides_may_ask_over_one_connection(swarm, clock):
    a, b = await swarm.start_connected(2)

    # a was never told where b is: b's connection is used
    assert await a.messenger.request(b.peer_id, b"back") == b"back"
    assert b.peer_id in a.messenger.connected()
    assert a.peer_id in b.messenger.connected()


async def test_both_sides_may_dial_at_the_same_time(swarm, clock):
    a, b = [await swarm.start() for _ in range(2)]
    replies = []
    for one, other in ((a, b), (b, a)):
        one.messenger.serve(echo)
        one.knows(other)

    async def ask(one, other):
        replies.append(await one.messenger.request(other.peer_id, one.peer_id.encode()))

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask, a, b)
                nursery.start_soon(ask, b, a)

    assert sorted(replies) == sorted([a.peer_id.encode()] * 3 + [b.peer_id.encode()] * 3)


async def test_many_requests_at_once_get_each_its_own_reply(swarm, clock):
    a, b = await swarm.start_connected(2)
    replies = {}

    async def ask(n):
        replies[n] = await b.messenger.request(a.peer_id, b"%d" % n)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for n in range(3 * MAX_REQUESTS_OUT["control"]):
                nursery.start_soon(ask, n)

    assert replies == {n: b"%d" % n for n in range(3 * MAX_REQUESTS_OUT["control"])}


async def test_a_slow_handler_does_not_hold_up_other_requests(swarm, clock):
    a, b = await swarm.start_connected(2)
    release = trio.Event()

    async def handler(peer, body):
        if body == b"slow":
            await release.wait()
        return body

    a.messenger.serve(handler)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.messenger.request, a.peer_id, b"slow")

        with trio.fail_after(PATIENCE_S):
            assert await b.messenger.request(a.peer_id, b"quick") == b"quick"
        release.set()


async def test_25_megabytes_arrive_whole_while_control_goes_on(swarm, clock):
    a, b = await swarm.start_connected(2)
    body = bytes(range(256)) * 100_000
    n_pings = 0

    async def ping():
        nonlocal n_pings
        while True:
            assert await b.messenger.request(a.peer_id, b"ping") == b"ping"
            n_pings += 1
            await trio.sleep(0.001)

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ping)
            reply = await b.messenger.request(a.peer_id, body, priority=Priority.ROUND)
            nursery.cancel_scope.cancel()

    assert len(reply) == len(body)
    assert reply == body
    assert n_pings >= 1  # some came through in between; how quick they were is measured in tests/net
    assert b.messenger.traffic().sent_bytes > len(body)
    assert b.messenger.traffic().received_bytes > len(body)


@pytest.mark.parametrize("priority", [Priority.ROUND, Priority.DOWNLOAD], ids=lambda priority: priority.name)
async def test_what_lies_in_several_places_arrives_in_one_piece(swarm, clock, priority):
    a, b = await swarm.start_connected(2)
    payload = bytes(range(256)) * 2000

    async def handler(peer, body):
        return Spliced(b"got", memoryview(bytes(body)), b"whole")

    a.messenger.serve(handler)

    reply = await b.messenger.request(a.peer_id, Spliced(b"head", memoryview(payload), b"tail"), priority)
    assert reply == b"gothead" + payload + b"tailwhole"


@pytest.mark.parametrize("priority", list(Priority), ids=lambda priority: priority.name)
async def test_a_request_over_the_limit_is_the_askers_mistake(swarm, clock, priority):
    a, b = await swarm.start_connected(2)

    with pytest.raises(UsageError, match="limit is"):
        await b.messenger.request(a.peer_id, bytes(MAX_BODY_BYTES[priority.lane] + 1), priority)
    assert await b.messenger.request(a.peer_id, bytes(MAX_BODY_BYTES["control"])) == bytes(MAX_BODY_BYTES["control"])


@pytest.mark.parametrize("priority", [Priority.CONTROL, Priority.ROUND], ids=lambda priority: priority.name)
async def test_a_request_longer_than_this_peer_has_use_for_is_refused_and_the_next_is_answered(swarm, clock, priority):
    a, b = await swarm.start_connected(2)

    async def handler(peer, body):
        return body

    a.messenger.serve(handler, 1000)

    with pytest.raises(RefusedError, match="the longest that can be meant for this peer has 1000") as refused:
        await b.messenger.request(a.peer_id, bytes(1001), priority)
    assert refused.value.kind == "DecodeError"
    assert await b.messenger.request(a.peer_id, bytes(1000), priority) == bytes(1000)


async def test_a_reply_over_the_limit_is_refused(swarm, clock):
    a, b = await swarm.start_connected(2)

    async def handler(peer, body):
        return bytes(MAX_BODY_BYTES["control"] + 1)

    a.messenger.serve(handler)

    with pytest.raises(RefusedError) as refused:
        await b.messenger.request(a.peer_id, b"")
    assert refused.value.kind == "UsageError"


async def test_a_legion_error_of_the_handler_reaches_the_asker_by_name(swarm, clock):
    a, b = await swarm.start_connected(2)

    async def handler(peer, body):
        raise CodecError("codec 'x' is unknown")

    a.messenger.serve(handler)

    with pytest.raises(RefusedError) as refused:
        await b.messenger.request(a.peer_id, b"")
    assert refused.value.kind == "CodecError"
    assert refused.value.reason == "codec 'x' is unknown"
    assert refused.value.peer_id == a.peer_id


async def test_any_other_error_of_the_handler_is_internal_and_the_host_lives_on(swarm, clock):
    a, b = await swarm.start_connected(2)

    async def handler(peer, body):
        if body == b"good":
            return body
        raise ValueError("secret detail")

    a.messenger.serve(handler)

    with pytest.raises(RefusedError) as refused:
        await b.messenger.request(a.peer_id, b"bad")
    assert refused.value.kind == "InternalError"
    assert "secret" not in refused.value.reason
    assert await b.messenger.request(a.peer_id, b"good") == b"good"


async def test_a_reply_that_is_no_bytes_is_an_internal_error(swarm, clock):
    a, b = await swarm.start_connected(2)

    async def handler(peer, body):
        return None

    a.messenger.serve(handler)

    with pytest.raises(RefusedError) as refused:
        await b.messenger.request(a.peer_id, b"")
    assert refused.value.kind == "InternalError"


async def test_who_does_not_serve_yet_refuses(swarm, clock):
    a, b = [await swarm.start() for _ in range(2)]
    b.knows(a)

    with pytest.raises(RefusedError) as refused:
        await b.messenger.request(a.peer_id, b"")
    assert refused.value.kind == "NotServingError"


async def test_a_peer_without_a_known_address_is_unreachable(swarm, clock):
    (a,) = await swarm.start_connected(1)

    with pytest.raises(UnreachableError, match="no address"):
        await a.messenger.request(Identity.generate().peer_id, b"")


async def test_a_peer_that_is_gone_is_unreachable(swarm, clock):
    a, b = [await swarm.start() for _ in range(2)]
    b.knows(a)
    await a.kill()

    with trio.fail_after(PATIENCE_S), pytest.raises(UnreachableError, match="refused"):
        await b.messenger.request(a.peer_id, b"")


async def test_a_peer_cannot_ask_itself(swarm, clock):
    (a,) = await swarm.start_connected(1)
    a.knows(a)

    with pytest.raises(UnreachableError, match="itself"):
        await a.messenger.request(a.peer_id, b"")


async def test_requests_to_a_killed_peer_fail_at_once(swarm, clock):
    a, b = await swarm.start_connected(2)
    arrived = trio.Event()
    errors = []

    async def handler(peer, body):
        arrived.set()
        await trio.sleep_forever()

    async def ask():
        with pytest.raises(UnreachableError) as error:
            await b.messenger.request(a.peer_id, b"")
        errors.append(error.value)

    a.messenger.serve(handler)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask)
            await arrived.wait()
            await a.kill()

    assert [error.peer_id for error in errors] == [a.peer_id] * 4
    await eventually(lambda: _is(a.peer_id not in b.messenger.connected()))


async def test_giving_up_a_request_does_not_disturb_the_next(swarm, clock):
    a, b = await swarm.start_connected(2)

    async def handler(peer, body):
        if body.startswith(b"slow"):
            await trio.sleep(0.2)
        return body

    a.messenger.serve(handler)
    for priority in Priority:
        with trio.move_on_after(0.05):
            await b.messenger.request(a.peer_id, b"slow" + bytes(MAX_BODY_BYTES["control"] - 4), priority)

        assert await b.messenger.request(a.peer_id, b"next", priority) == b"next"


async def test_a_peer_that_restarts_elsewhere_is_reached_again(swarm, clock):
    a, b = await swarm.start_connected(2)
    await a.kill()
    await eventually(lambda: _is(a.peer_id not in b.messenger.connected()))

    again = await swarm.start(a.identity)
    again.messenger.serve(echo)
    assert again.messenger.addresses() != a.messenger.addresses()
    b.knows(again)

    with trio.fail_after(PATIENCE_S):
        assert await b.messenger.request(a.peer_id, b"again") == b"again"


async def test_the_round_trip_time_leaves_out_the_handler(swarm, clock, kind):
    a, b = [await swarm.start() for _ in range(2)]

    async def handler(peer, body):
        await trio.sleep(1.0)
        return body

    a.messenger.serve(handler)
    b.knows(a)
    assert b.messenger.rtt_s(a.peer_id) is None

    began = trio.current_time()
    await b.messenger.request(a.peer_id, b"")
    took_s = trio.current_time() - began

    assert 0 < b.messenger.rtt_s(a.peer_id) < took_s - 0.99  # without the time that the other took to answer
    if kind == "memory":
        assert b.messenger.rtt_s(a.peer_id) == pytest.approx(0.01)


async def test_a_peer_with_too_high_a_score_is_kept_out(swarm, clock):
    a, b = await swarm.start_connected(2)

    for _ in range(int(MAX_SCORE) + 1):
        a.messenger.report(b.peer_id, "sent nonsense")

    await eventually(lambda: _is(b.peer_id not in a.messenger.connected()))
    with pytest.raises(UnreachableError, match="refused here"):
        await a.messenger.request(b.peer_id, b"")
    with trio.fail_after(PATIENCE_S), pytest.raises(UnreachableError):
        while True:  # a request may be on its way when the connection ends
            await b.messenger.request(a.peer_id, b"")


async def test_a_few_mistakes_are_forgiven(swarm, clock):
    a, b = await swarm.start_connected(2)

    for _ in range(int(MAX_SCORE) - 1):
        a.messenger.report(b.peer_id, "sent nonsense")

    assert await b.messenger.request(a.peer_id, b"still") == b"still"


async def _is(condition: bool) -> bool:
    return condition


async def test_a_throttled_reply_arrives_as_any_and_its_sender_is_told_once(swarm, clock):
    a, b = await swarm.start_connected(2)
    told = []

    async def tells(*peers):
        async def are_told():
            return told == list(peers)

        await eventually(are_told)

    async def handler(peer, body):
        return ThrottledReply(b"reply " * 100_000, lambda: told.append(peer))

    a.messenger.serve(handler)

    with trio.fail_after(PATIENCE_S):
        assert await b.messenger.request(a.peer_id, b"", priority=Priority.ROUND) == b"reply " * 100_000
        await tells(b.peer_id)


async def test_a_sender_is_told_also_when_the_reply_is_too_large_or_its_asker_is_gone(swarm, clock):
    a, b, c = await swarm.start_connected(3)
    told = []

    async def tells(*peers):
        async def are_told():
            return told == list(peers)

        await eventually(are_told)

    asked = trio.Event()
    answer = trio.Event()

    async def handler(peer, body):
        if body:
            asked.set()
            await answer.wait()
        return ThrottledReply(bytes(0 if body else MAX_BODY_BYTES["control"] + 1), lambda: told.append(peer))

    a.messenger.serve(handler)

    with trio.fail_after(PATIENCE_S):
        with pytest.raises(RefusedError, match="limit"):
            await b.messenger.request(a.peer_id, b"")
        await tells(b.peer_id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(c.messenger.request, a.peer_id, b"wait")
            await asked.wait()
            nursery.cancel_scope.cancel()
        await c.kill()
        answer.set()
        await tells(b.peer_id, c.peer_id)


async def test_what_can_wait_takes_no_place_from_what_cannot(swarm, clock):
    a, b = await swarm.start_connected(2)
    handled, answer = [], trio.Event()

    async def handler(peer, body):
        handled.append(body)
        if body == b"can wait":
            await answer.wait()
        return body

    a.messenger.serve(handler)

    async with trio.open_nursery() as nursery:
        for _ in range(MAX_REQUESTS_OUT["bulk"] + 1):
            nursery.start_soon(partial(b.messenger.request, a.peer_id, b"can wait", priority=Priority.DOWNLOAD))

        async def all_places_are_taken():
            return handled.count(b"can wait") == MAX_REQUESTS_OUT["bulk"]

        await eventually(all_places_are_taken)
        with trio.fail_after(PATIENCE_S):
            assert await b.messenger.request(a.peer_id, b"cannot", priority=Priority.ROUND) == b"cannot"
        answer.set()
    assert handled.count(b"can wait") == MAX_REQUESTS_OUT["bulk"] + 1


async def test_how_a_peer_is_reached_is_known_while_it_is_connected(swarm, clock):
    a, b = await swarm.start_connected(2)
    stranger = await swarm.start()

    connection = b.network.reachability.connection(a.peer_id)

    assert connection.kind is ConnectionKind.DIRECT
    assert connection.relay is None
    assert connection.rtt_s is None or connection.rtt_s > 0
    assert b.network.reachability.connection(stranger.peer_id) == NO_CONNECTION
    assert b.network.reachability.own().reach is Reach.UNKNOWN  # nobody has dialed it back

    await a.kill()
    await eventually(lambda: is_gone(b, a))


async def is_gone(peer, other):
    return peer.network.reachability.connection(other.peer_id) == NO_CONNECTION
