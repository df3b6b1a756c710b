"""Bulk lanes: which connections are accepted, and what happens when one breaks."""

import os
import secrets
import socket
import ssl
from collections.abc import Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

from legion_p2p.core.caps import Caps
from legion_p2p.core.identity import Identity
from legion_p2p.core.priority import Priority
from legion_p2p.errors import NetworkError, RefusedError, UnreachableError
from legion_p2p.net import answered_once, bulk_lanes, byte_streams, client, listener, request_stream
from legion_p2p.net.bulk_lanes import CONFIRMED, SERVICE, InviteLane, LaneOpened, OpenLane
from legion_p2p.net.byte_streams import LinkStream, TlsStream
from legion_p2p.net.certificates import Certificates
from legion_p2p.net.envelope import VERSION, Envelope, FrameKind, encode
from legion_p2p.net.limits import MAX_SCORE, NetConfig
from legion_p2p.net.netem import Throttling
from legion_p2p.net.path_probe import PROBE_BYTES
from legion_p2p.net.sockets import host_and_port
from tests.net.conftest import echo, eventually, opened
from tests.waiting import PATIENCE_S

BULK = Priority.ROUND
MANY = secrets.token_bytes(3 << 20)
WITHOUT_LANES = NetConfig(bulk_lanes=False)


@asynccontextmanager
async def pair(**kwargs):
    """Two peers, of which the second has dialed the first."""
    async with opened(**kwargs) as a, opened(of=a, **kwargs) as b:
        yield a, b


def lanes(network) -> list:
    return [stream for streams in network.messenger._lanes._open.values() for stream in streams]


def asks_over(network) -> set[tuple[str, bool]]:
    """By which streams it sends requests: of which lane, and whether by a connection of its own."""
    return {(key.lane, key.on_lane) for key in network.messenger._client._streams}


async def ask_for_ticket(stranger, victim, answers: bool = False) -> LaneOpened:
    own = stranger.messenger._lanes._certificates.own
    reply = await stranger.messenger.call(victim.peer_id, SERVICE, msgspec.msgpack.encode(OpenLane(own, answers)))
    return msgspec.msgpack.decode(reply, type=LaneOpened)


def where(network) -> tuple[str, int]:
    return host_and_port(network.messenger.addresses()[0])


async def say(network, context: ssl.SSLContext, ticket: str | None, data: bytes = b"") -> bytes:
    """What is answered to a stranger that connects with TLS, and sends this. Raises: ssl.SSLError, if the handshake fails."""

    address = where(network)

    def connect() -> bytes:
        raw = socket.create_connection(address, timeout=PATIENCE_S)
        with context.wrap_socket(raw, server_hostname=ticket) as tls:
            tls.sendall(data)
            return tls.recv(1 << 16)

    return await trio.to_thread.run_sync(connect)


async def test_both_sides_send_bulk_over_a_connection_of_its_own_and_the_rest_over_libp2p():
    async with pair() as (a, b):
        for asker, other in ((b, a), (a, b)):
            assert await asker.messenger.request(other.peer_id, MANY, BULK) == MANY
            assert await asker.messenger.request(other.peer_id, b"x") == b"x"
            assert asks_over(asker) == {("bulk", True), ("control", False)}

        assert [type(stream) for stream in (*lanes(a), *lanes(b))] == [TlsStream] * 4
        assert len(a.messenger.addresses()) == 1  # one port to forward


async def test_what_passes_a_lane_is_counted_as_traffic():
    async with pair() as (a, b):
        await b.messenger.request(a.peer_id, MANY, BULK)

        assert len(MANY) < b.messenger.traffic().sent_bytes < len(MANY) + PROBE_BYTES + 2000  # b came to a, and probed the path
        assert len(MANY) < b.messenger.traffic().received_bytes < len(MANY) + 2000


@pytest.mark.parametrize("without", ["asker", "other"])
async def test_where_one_side_has_no_lanes_libp2p_serves(without):
    configs = [WITHOUT_LANES if without == side else NetConfig() for side in ("other", "asker")]
    async with opened(config=configs[0]) as a, opened(of=a, config=configs[1]) as b:
        assert await b.messenger.request(a.peer_id, MANY, BULK) == MANY
        assert ("bulk", True) not in asks_over(b)


async def test_where_no_connection_is_direct_libp2p_serves(monkeypatch):
    async with pair() as (a, b):
        for network in (a, b):
            monkeypatch.setattr(network.messenger._lanes, "_dialed_address", lambda peer: None)

        for asker, other in ((b, a), (a, b)):
            assert await asker.messenger.request(other.peer_id, b"x", BULK) == b"x"
            assert asks_over(asker) == {("bulk", False)} or ("bulk", True) not in asks_over(asker)
        assert not lanes(a) and not lanes(b)


async def test_no_lane_is_dialed_where_descriptors_are_few():
    async with pair() as (a, b):
        b.messenger._lanes._max_sockets = len(b.messenger._lanes._sockets)

        assert await b.messenger.request(a.peer_id, b"x", BULK) == b"x"
        assert await a.messenger.request(b.peer_id, b"x", BULK) == b"x"
        assert not lanes(a) and not lanes(b)


@pytest.mark.parametrize("lacks", [0, 1], ids=["the side that listens", "the side that dials"])
async def test_without_a_place_for_temporary_files_libp2p_serves(monkeypatch, capfd, lacks):
    def no_place(*_, **__):
        raise FileNotFoundError("no usable temporary directory")

    async with pair() as (a, b):
        monkeypatch.setattr((a, b)[lacks].messenger._lanes._certificates, "_context", no_place)

        for asker, other in ((a, b), (b, a)):
            assert await asker.messenger.request(other.peer_id, b"x", BULK) == b"x"
        assert not lanes(a) and not lanes(b)
    assert capfd.readouterr().err == ""


async def test_a_punched_hole_is_not_dialed_again():
    async with pair() as (a, b):
        b._contacts._dialer.punched.update(b._contacts._dialer.direct(a.peer_id))

        assert await b.messenger.request(a.peer_id, b"x", BULK) == b"x"
        assert not lanes(a) and not lanes(b)


async def test_a_lane_that_is_swallowed_on_its_way_holds_up_nothing_for_long(monkeypatch):
    monkeypatch.setattr(client, "LANE_PATIENCE_S", 0.2)
    async with pair() as (a, b):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setattr(b.messenger._lanes, "_dialed_address", lambda peer: silent.getsockname())

            with trio.fail_after(PATIENCE_S):
                assert await b.messenger.request(a.peer_id, MANY, BULK) == MANY
                assert await b.messenger.request(a.peer_id, b"y", BULK) == b"y"
            assert ("bulk", False) in asks_over(b)


async def test_a_lane_that_came_late_is_used_from_then_on(monkeypatch):
    monkeypatch.setattr(client, "LANE_PATIENCE_S", 0.0)
    async with pair() as (a, b):
        await b.messenger.request(a.peer_id, b"x", BULK)
        await eventually(lambda: bool(lanes(b)))
        await b.messenger.request(a.peer_id, MANY, BULK)

        assert asks_over(b) == {("control", False), ("bulk", False), ("bulk", True)}


async def test_a_stranger_without_a_ticket_is_not_let_in():
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    async with pair() as (a, b):
        for ticket in (None, "0" * 32, "x"):
            with pytest.raises(ssl.SSLError, match="unrecognized name"):
                await say(a, anybody, ticket, b"\x00\x00\x00\x08\x00\x06garbage")

        assert a.messenger.refusals.score(b.peer_id) == 0
        assert await b.messenger.request(a.peer_id, b"x", BULK) == b"x"


async def test_a_ticket_without_the_certificate_it_was_given_for_lets_nobody_in():
    async with pair() as (a, b):
        victim = a.messenger._lanes._certificates.own
        thief = Certificates(Identity.generate())
        context = thief._context(ssl.PROTOCOL_TLS_CLIENT, victim)
        for _ in range(3):
            stolen = await ask_for_ticket(b, a)
            with pytest.raises(OSError):  # in words, or by a closed connection
                await say(a, context, stolen.ticket, b"frames")
        assert not lanes(a)


async def test_a_certificate_without_its_key_cannot_be_replayed():
    async with pair() as (a, b):
        opened_lane = await ask_for_ticket(b, a)
        honest = b.messenger._lanes._certificates
        replayed = Certificates(Identity.generate())
        context = replayed._context(ssl.PROTOCOL_TLS_CLIENT, opened_lane.certificate)

        # the key does not go with the certificate that everybody who listens has seen
        with pytest.raises(ssl.SSLError):
            replayed._certificate = honest._certificate
            replayed._context(ssl.PROTOCOL_TLS_CLIENT, opened_lane.certificate)
        with pytest.raises(ssl.SSLError):
            await say(a, context, opened_lane.ticket)


async def test_who_offers_the_certificate_of_another_peer_is_refused_and_reported():
    async with pair() as (a, b):
        foreign = OpenLane(Certificates(Identity.generate()).own, False)

        with pytest.raises(RefusedError, match="a certificate of"):
            await b.messenger.call(a.peer_id, SERVICE, msgspec.msgpack.encode(foreign))

        assert a.messenger.refusals.score(b.peer_id) > 0.9


async def test_a_listener_with_another_certificate_than_it_announced_gets_nothing():
    async with pair() as (a, b):
        a.messenger._lanes._certificates.__dict__["own"] = Certificates(a.identity).own

        assert await b.messenger.request(a.peer_id, b"x", BULK) == b"x"

        assert not lanes(b) and ("bulk", True) not in asks_over(b)


async def test_a_ticket_is_good_once():
    async with pair() as (a, b):
        opened_lane = await ask_for_ticket(b, a)
        context = b.messenger._lanes._certificates.trust(a.peer_id, opened_lane.certificate).client

        assert await say(a, context, opened_lane.ticket) == CONFIRMED
        with pytest.raises(ssl.SSLError, match="unrecognized name"):
            await say(a, context, opened_lane.ticket)


async def test_an_older_tls_is_refused_by_the_side_that_listens():
    async with pair() as (a, b):
        opened_lane = await ask_for_ticket(b, a)
        context = b.messenger._lanes._certificates._context(ssl.PROTOCOL_TLS_CLIENT, opened_lane.certificate)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2

        with pytest.raises(ssl.SSLError, match="protocol version"):
            await say(a, context, opened_lane.ticket)


async def test_the_side_that_dials_offers_no_older_tls(monkeypatch):
    async with pair() as (a, b):
        old = a.messenger._lanes._certificates._context(ssl.PROTOCOL_TLS_SERVER, b.messenger._lanes._certificates.own)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
        heard = []

        async def listen_as_in_1_2(raw: trio.SocketStream) -> None:
            tls = trio.SSLStream(raw, old, server_side=True)
            try:
                await tls.do_handshake()
            except trio.BrokenResourceError as refused:
                heard.append(repr(refused.__cause__))
            finally:
                await trio.aclose_forcefully(raw)

        monkeypatch.setattr(a.messenger._lanes, "accept", listen_as_in_1_2)

        assert await b.messenger.request(a.peer_id, b"x", BULK) == b"x"
        assert ("bulk", True) not in asks_over(b) and "UNSUPPORTED_PROTOCOL" in heard[0]


@pytest.mark.parametrize("begins", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "one byte", "half a header"])
async def test_a_connection_that_stalls_is_closed(monkeypatch, begins):
    for module in (listener, bulk_lanes):
        monkeypatch.setattr(module, "HANDSHAKE_TIMEOUT_S", 0.3)
    async with opened() as a:
        stream = await trio.open_tcp_stream(*where(a))
        async with stream:
            if begins:
                await stream.send_all(begins)
            with trio.fail_after(PATIENCE_S):
                while await stream.receive_some():
                    pass
            await eventually(lambda: len(a.messenger._lanes._sockets) == 0)


async def test_a_handshake_that_comes_byte_by_byte_has_no_more_time_than_any_other(monkeypatch):
    monkeypatch.setattr(bulk_lanes, "HANDSHAKE_TIMEOUT_S", 0.4)
    hello = ssl.MemoryBIO()
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLWantReadError):
        anybody.wrap_bio(ssl.MemoryBIO(), hello).do_handshake()
    async with opened() as a, await trio.open_tcp_stream(*where(a)) as stream:
        n_sent = 0
        with trio.fail_after(PATIENCE_S), pytest.raises(trio.BrokenResourceError):
            for byte in hello.read():
                await stream.send_all(bytes([byte]))
                n_sent += 1
                await trio.sleep(0.05)
        assert n_sent < 40


@asynccontextmanager
async def breaking(a, b, handler: Callable):
    """b asks a over a lane, which `handler` of a may break; yields what was asked, once for each time it was carried out."""
    carried_out: list[bytes] = []

    async def counting(peer, body):
        carried_out.append(bytes(body[:8]))
        return await handler(peer, body)

    await b.messenger.request(a.peer_id, b"opens it", BULK)
    a.messenger.serve(counting)
    yield carried_out


def cut(network) -> None:
    for stream in lanes(network):
        stream.close_now()


@pytest.mark.parametrize("priority", [Priority.ROUND, Priority.DOWNLOAD])
async def test_a_lane_that_breaks_in_a_request_hands_over_to_libp2p(priority):
    large = secrets.token_bytes(24 << 20)
    async with pair() as (a, b), breaking(a, b, echo) as carried_out:
        n_before = a.messenger.traffic().received_bytes
        replies = []

        async def ask() -> None:
            replies.append(await b.messenger.request(a.peer_id, large, priority))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await eventually(lambda: a.messenger.traffic().received_bytes > n_before + (1 << 20))
            assert not carried_out
            cut(a)

        assert replies == [large] and carried_out == [large[:8]]
        assert asks_over(b) >= {("bulk", False)}


@pytest.mark.parametrize("size", [10, answered_once.MAX_KEPT_REPLY_BYTES])
async def test_a_request_is_carried_out_once_when_the_lane_breaks_before_the_reply(size):
    async with pair() as (a, b):

        async def answer_late(peer, body):
            cut(a)
            await trio.sleep(0.1)
            return body[:size]

        async with breaking(a, b, answer_late) as carried_out:
            assert await b.messenger.request(a.peer_id, MANY, BULK) == MANY[:size]

        assert carried_out == [MANY[:8]]


async def test_a_request_is_carried_out_once_when_its_reply_is_lost():
    async with pair() as (a, b):

        async def hold_back(peer, body):
            # the reply is written, and never arrives: b's lane has stopped reading
            for stream in lanes(b):
                stream.read_into = _never
            return b"done"

        async with breaking(a, b, hold_back) as carried_out, trio.open_nursery() as nursery:
            replies = []

            async def ask() -> None:
                replies.append(await b.messenger.request(a.peer_id, b"question", BULK))

            nursery.start_soon(ask)
            await eventually(lambda: carried_out == [b"question"])
            await trio.sleep(0.05)
            cut(b)
        assert replies == [b"done"] and carried_out == [b"question"]


async def _never(room: memoryview) -> int:
    await trio.sleep_forever()
    return 0


async def test_a_refusal_is_handed_over_as_well():
    async with pair() as (a, b):

        async def refuse(peer, body):
            cut(a)
            raise NetworkError("not today")

        async with breaking(a, b, refuse) as carried_out:
            with pytest.raises(RefusedError, match="not today"):
                await b.messenger.request(a.peer_id, b"question", BULK)
        assert carried_out == [b"question"]


async def test_what_only_reads_may_be_carried_out_twice(monkeypatch):
    async with pair() as (a, b):
        answers = []

        async def answer(peer, body):
            answers.append(body)
            if len(answers) == 1:
                cut(a)
            return MANY

        async with breaking(a, b, answer) as carried_out:
            assert await b.messenger.request(a.peer_id, b"question", BULK) == MANY
        assert 1 <= len(carried_out) <= 2
        assert not a.messenger._server._once._asked or len(a.messenger._server._once._asked) == 1  # of the request that opened it


async def test_nobody_learns_the_reply_to_another_peers_request():
    kept = answered_once.AnsweredOnce()

    async def secret(peer, body):
        return b"secret of " + peer.encode()

    async def other(peer, body):
        return b"asked"

    await kept.handler_of("a", secret, "ticket/1", "")("a", b"")

    assert await kept.handler_of("a", other, "", "ticket/1")("a", b"") == b"secret of a"
    assert await kept.handler_of("b", other, "", "ticket/1")("b", b"") == b"asked"


async def test_no_more_than_so_many_replies_are_kept():
    kept = answered_once.AnsweredOnce()
    for n in range(answered_once.MAX_KEPT + 5):
        await kept.handler_of("a", echo, f"ticket/{n}", "")("a", b"small")
    await kept.handler_of("a", echo, "ticket/large", "")("a", bytes(answered_once.MAX_KEPT_REPLY_BYTES + 1))

    assert len(kept._asked) <= answered_once.MAX_KEPT
    assert ("a", "ticket/large") not in kept._asked


async def test_when_the_other_side_is_gone_the_asker_is_told():
    async with opened() as b:
        async with opened() as a:
            b.messenger.add_addresses(a.peer_id, a.messenger.addresses())
            await b.messenger.request(a.peer_id, b"x", BULK)

        with trio.fail_after(PATIENCE_S), pytest.raises(UnreachableError):
            await b.messenger.request(a.peer_id, b"x", BULK)


async def test_a_lane_that_is_not_used_is_closed_and_opened_again(monkeypatch):
    monkeypatch.setattr(request_stream, "LANE_IDLE_S", 0.2)
    async with pair() as (a, b):
        await b.messenger.request(a.peer_id, b"x", BULK)
        assert lanes(a) and lanes(b)

        await eventually(lambda: not lanes(a) and not lanes(b))

        assert await b.messenger.request(a.peer_id, b"x", BULK) == b"x"
        assert ("bulk", True) in asks_over(b) and ("bulk", False) not in asks_over(b)


async def test_a_peer_that_cannot_be_reached_at_all_says_nothing_of_lanes():
    async with opened() as a, opened() as b:
        with pytest.raises(UnreachableError, match="no address"):
            await b.messenger.request(a.peer_id, b"x", BULK)

        b.messenger.add_addresses(a.peer_id, a.messenger.addresses())
        assert await b.messenger.request(a.peer_id, b"x", BULK) == b"x"
        assert ("bulk", True) in asks_over(b)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
async def test_a_forked_process_does_not_keep_a_lane_open():
    async with pair() as (a, b):
        await b.messenger.request(a.peer_id, b"x", BULK)
        (stream,) = lanes(b)
        child = os.fork()
        if not child:
            try:
                os.fstat(stream._fd)
                os._exit(1)
            except OSError:
                os._exit(0)

        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0  # noqa: ASYNC222
        assert await b.messenger.request(a.peer_id, b"still", BULK) == b"still"


async def test_the_lanes_of_a_peer_that_misbehaved_are_closed():
    async with pair() as (a, b):
        await b.messenger.request(a.peer_id, b"x", BULK)

        for _ in range(int(MAX_SCORE) + 1):
            a.messenger.report(b.peer_id, "sent nonsense")

        await eventually(lambda: not lanes(a) and not lanes(b))


async def test_garbage_on_a_lane_ends_it_and_counts():
    async with pair() as (a, b):
        lane = await b.messenger._lanes.open(a.peer_id)
        await lane.stream.write(b"\xff" * 64)

        await eventually(lambda: a.messenger.refusals.score(b.peer_id) > 2)
        assert not lanes(a)


async def test_a_lane_that_ends_within_a_frame_says_nothing_of_the_other_side():
    async with pair() as (a, b):
        lane = await b.messenger._lanes.open(a.peer_id)
        await lane.stream.write(encode(Envelope(VERSION, 1, FrameKind.REQUEST), 1000) + bytes(10))
        await eventually(lambda: len(lanes(a)) == 1)
        lane.stream.close_now()  # as where a process is killed, or a network goes

        await eventually(lambda: not lanes(a))
        assert a.messenger.refusals.score(b.peer_id) == 0


@pytest.mark.parametrize("question", [b"", b"\xc1", msgspec.msgpack.encode({"type": "invite", "certificate": 1}) + b"x"])
async def test_questions_that_make_no_sense_are_refused_and_reported(question):
    async with pair() as (a, b):
        with pytest.raises(RefusedError):
            await b.messenger.call(a.peer_id, SERVICE, question)

        assert a.messenger.refusals.score(b.peer_id) > 0.9


async def test_nothing_is_dialed_for_who_was_not_dialed_before():
    async with pair() as (a, b):
        # b has dialed a, so a does not know where b listens, and asks nobody
        with pytest.raises(RefusedError, match="has not dialed"):
            await b.messenger.call(a.peer_id, SERVICE, msgspec.msgpack.encode(InviteLane()))


async def test_limits_hold_on_a_lane():
    throttling = Throttling(caps=Caps(upload_bps=16e6))
    async with opened() as a, opened(of=a, throttling=throttling) as b:
        began = trio.current_time()
        assert await b.messenger.request(a.peer_id, MANY, BULK) == MANY
        took_s = trio.current_time() - began

        assert [type(stream) for stream in lanes(b)] == [LinkStream]
        assert took_s > 0.9 * (8 * len(MANY) / 16e6)


async def test_a_lane_that_takes_nothing_more_makes_packets_smaller(monkeypatch):
    monkeypatch.setattr(byte_streams, "WRITE_STALL_S", 0.3)
    async with pair() as (a, b):
        await b.messenger.request(a.peer_id, b"x", BULK)
        for stream in lanes(a):
            stream.read_into = _never
        await b.messenger.request(a.peer_id, b"x", BULK)  # what is being read already

        assert await b.messenger.request(a.peer_id, bytes(40 << 20), BULK) == bytes(40 << 20)
        assert b.messenger._lanes._sockets.packet_size.is_small
