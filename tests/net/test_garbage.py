"""What strangers send: nothing of it ends the host, and garbage raises their score."""

import struct

import msgspec
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libp2p.peer.id import ID

from legion_p2p.core.priority import Priority
from legion_p2p.errors import RefusedError, RemoteProtocolError, UnreachableError
from legion_p2p.net import server
from legion_p2p.net.envelope import VERSION, Envelope, FrameKind, UnknownVersion, decode, encode, refusal
from legion_p2p.net.limits import (
    GARBAGE_SCORE,
    MAX_BULK_FRAME_BYTES,
    MAX_CONTROL_FRAME_BYTES,
    MAX_INBOUND_STREAMS,
    MAX_REQUESTS_IN,
    MAX_STREAMS_PER_LANE_IN,
    NetConfig,
)
from legion_p2p.net.liveness import close
from legion_p2p.net.parts import Tell
from legion_p2p.net.streams import PROTOCOLS
from legion_p2p.observe.events import Events
from tests.net.conftest import echo, eventually, opened
from tests.waiting import PATIENCE_S

LANES = sorted(PROTOCOLS)


def frame(envelope: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">IH", 2 + len(envelope) + len(body), len(envelope)) + envelope + body


def score(network, stranger) -> float:
    return network.messenger.refusals.score(stranger.messenger.peer_id)


async def stream_to(stranger, victim, protocol):
    return await stranger._host.new_stream(ID.from_base58(victim.messenger.peer_id), [protocol])


async def send(stranger, victim, lane, data: bytes) -> bytes:
    """What the victim answers until it ends the stream, or falls silent after having been told that we are done."""
    stream = await stream_to(stranger, victim, PROTOCOLS[lane])
    answer = b""
    try:
        await stream.write(data)
        await stream.close_write()
        with trio.move_on_after(5):
            while chunk := await stream.read(65536):
                answer += chunk
    except Exception:  # however the stream ends
        pass
    return answer


async def still_answers(victim) -> None:
    async with opened(of=victim) as friend:
        with trio.fail_after(PATIENCE_S):
            for priority in Priority:
                assert await friend.messenger.request(victim.messenger.peer_id, b"alive?", priority) == b"alive?"


GARBAGE = {
    "random bytes": b"\xff" * 100,
    "a huge length on control": struct.pack(">IH", MAX_CONTROL_FRAME_BYTES + 1, 8) + bytes(100),
    "a huge length on bulk": struct.pack(">IH", MAX_BULK_FRAME_BYTES + 1, 8) + bytes(100),
    "no envelope": struct.pack(">IH", 10, 0) + bytes(10),
    "an envelope longer than its frame": struct.pack(">IH", 10, 100) + bytes(100),
    "an empty frame": struct.pack(">IH", 0, 0),
    "a frame cut short": encode(Envelope(VERSION, 1, FrameKind.REQUEST), 1000) + bytes(10),
    "an envelope cut short": encode(Envelope(VERSION, 1, FrameKind.REQUEST), 0)[:-1],
    "half a head": b"\x00\x00",
    "messagepack of another type": frame(msgspec.msgpack.encode({"a": 1})),
    "messagepack of too few fields": frame(msgspec.msgpack.encode([VERSION, 1])),
    "an unknown kind": frame(msgspec.msgpack.encode([VERSION, 1, 99, "", "", ""])),
    "a negative id": frame(msgspec.msgpack.encode([VERSION, -1, 0, "", "", ""])),
    "a reply to nobody": encode(Envelope(VERSION, 1, FrameKind.REPLY), 0),
    "a refusal of nothing": encode(refusal(1, "x", "y"), 0),
}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_costs_the_stream_and_raises_the_score_but_not_the_host(what, lane):
    if what == "a huge length on control" and lane == "bulk":
        pytest.skip("that is no garbage on the bulk lane")
    async with opened() as victim, opened(of=victim) as stranger:
        await send(stranger, victim, lane, GARBAGE[what])

        await eventually(lambda: score(victim, stranger) > 0.9 * GARBAGE_SCORE)
        await still_answers(victim)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    pieces=st.lists(
        st.binary(max_size=300)
        | st.builds(frame, st.binary(min_size=1, max_size=60), st.binary(max_size=60))
        | st.builds(
            lambda *fields: frame(msgspec.msgpack.encode(fields)),
            st.integers(0, 3), st.integers(-2, 2**64 - 1), st.integers(0, 6) | st.text(max_size=3),
            st.text(max_size=5), st.text(max_size=5), st.text(max_size=5) | st.none(),
        ),
        min_size=1, max_size=8,
    ),
    lane=st.sampled_from(LANES),
)  # fmt: skip
def test_no_sequence_of_bytes_ends_the_host(pieces, lane):
    async def main():
        async with opened() as victim, opened(of=victim) as stranger:
            await send(stranger, victim, lane, b"".join(pieces))
            await still_answers(victim)

    trio.run(main)


async def test_garbage_three_times_and_the_stranger_is_kept_out():
    async with opened() as victim, opened(of=victim) as stranger:
        for _ in range(3):
            await send(stranger, victim, "control", b"\xff" * 100)

        await eventually(lambda: stranger.messenger.peer_id not in victim.messenger.connected())
        assert victim.messenger.refusals.is_refused(stranger.messenger.peer_id)
        with trio.fail_after(PATIENCE_S), pytest.raises(UnreachableError):
            while True:
                await stranger.messenger.request(victim.messenger.peer_id, b"")
        await still_answers(victim)


async def test_an_unknown_version_is_refused_by_name_and_is_no_misbehaviour():
    async with opened() as victim, opened(of=victim) as stranger:
        newer = frame(msgspec.msgpack.encode([VERSION + 1, 7, "whatever", 3]), b"body")

        answer = await send(stranger, victim, "control", newer)

        assert b"UnknownVersionError" in answer
        assert score(victim, stranger) == 0


async def test_two_peers_whose_versions_do_not_fit_tell_both_users_once(monkeypatch):
    def as_if_newer(packed: bytes) -> Envelope:
        raise UnknownVersion(VERSION + 1, decode(packed).id)

    told: dict[str, list[object]] = {"victim": [], "stranger": []}
    tells = {name: Tell(events=Events()) for name in told}
    for name, tell in tells.items():
        tell.events.add_sink(lambda event, name=name: event.name == "network.other_version" and told[name].append(event))
    monkeypatch.setattr(server, "decode", as_if_newer)
    async with opened(tell=tells["victim"]) as victim, opened(of=victim, tell=tells["stranger"]) as stranger:
        for _ in range(3):
            with trio.fail_after(PATIENCE_S), pytest.raises(RefusedError) as refused:
                await stranger.messenger.request(victim.messenger.peer_id, b"")

        assert refused.value.kind == "UnknownVersionError" and "needs a newer legion_p2p" in str(refused.value)
        assert [event.fields["peer"] for event in told["victim"]] == [stranger.messenger.peer_id]
        assert [event.fields["peer"] for event in told["stranger"]] == [victim.messenger.peer_id]


async def test_an_answer_that_is_garbage_is_a_remote_protocol_error():
    async with opened() as liar, opened(of=liar) as asker:

        async def garble(stream):
            await stream.read(10)
            await stream.write(b"\xff" * 100)
            await trio.sleep_forever()

        liar._host.set_stream_handler(PROTOCOLS["control"], garble)

        with trio.fail_after(PATIENCE_S), pytest.raises(RemoteProtocolError) as error:
            await asker.messenger.request(liar.messenger.peer_id, b"")
        assert error.value.peer_id == liar.messenger.peer_id
        assert score(asker, liar) > 0.9 * GARBAGE_SCORE


async def test_a_connection_that_breaks_within_a_reply_is_nobodys_misbehaviour():
    n_bytes = 32 << 20  # takes half a second here, so that the connection breaks in the middle

    async def much(peer: str, body: bytes) -> bytes:
        return bytes(n_bytes)

    config = NetConfig(bulk_lanes=False, redial_max_s=1.0)
    async with opened(config=config) as a, opened(of=a, config=config) as b, trio.open_nursery() as nursery:
        a.messenger.serve(much)

        @nursery.start_soon
        async def cut() -> None:
            await eventually(lambda: b.messenger.traffic().received_bytes > 1 << 20)
            for connection in a._contacts._dialer.direct(b.peer_id):
                await close(connection)

        with pytest.raises(UnreachableError):
            await b.messenger.request(a.peer_id, b"", Priority.ROUND)

        assert score(b, a) == 0


async def test_a_reply_to_a_request_that_was_never_sent_is_misbehaviour():
    async with opened() as liar, opened(of=liar) as asker:

        async def invent(stream):
            await stream.read(10)
            await stream.write(encode(Envelope(VERSION, 1_000_000, FrameKind.REPLY), 0))
            await trio.sleep_forever()

        liar._host.set_stream_handler(PROTOCOLS["control"], invent)

        with trio.fail_after(PATIENCE_S), pytest.raises(RemoteProtocolError, match="never sent"):
            await asker.messenger.request(liar.messenger.peer_id, b"")


async def test_more_requests_than_allowed_are_refused_and_the_rest_is_answered():
    release = trio.Event()

    async def slow(peer, body):
        await release.wait()
        return b"done"

    async with opened() as victim, opened() as stranger:  # which probes no path: those are requests as well
        stranger.messenger.add_addresses(victim.peer_id, victim.messenger.addresses())
        victim.messenger.serve(slow)
        stream = await stream_to(stranger, victim, PROTOCOLS["control"])
        for n in range(MAX_REQUESTS_IN + 3):
            await stream.write(encode(Envelope(VERSION, n, FrameKind.REQUEST), 0))
        answer = b""
        with trio.fail_after(PATIENCE_S):
            while answer.count(b"BusyError") < 3:
                answer += await stream.read(65536)
        release.set()
        n_done = 0
        with trio.fail_after(PATIENCE_S):
            while n_done < MAX_REQUESTS_IN:
                n_done += (await stream.read(65536)).count(b"done")
        assert n_done == MAX_REQUESTS_IN


async def test_what_does_not_fit_into_the_buffers_is_refused_and_read_on(monkeypatch):
    monkeypatch.setattr(server, "MAX_BUFFERED_BYTES", 1 << 20)
    async with opened() as victim, opened(of=victim) as asker:
        with trio.fail_after(PATIENCE_S), pytest.raises(RefusedError) as refused:
            await asker.messenger.request(victim.messenger.peer_id, bytes(4 << 20), priority=Priority.ROUND)
        assert refused.value.kind == "BusyError"

        assert await asker.messenger.request(victim.messenger.peer_id, b"small", priority=Priority.ROUND) == b"small"
        await eventually(lambda: victim.messenger._server._received.n_bytes == 0)  # a probe of the path may be under way


async def test_streams_without_end_are_cut_off():
    async with opened() as victim, opened(of=victim) as stranger:
        streams = [await stream_to(stranger, victim, PROTOCOLS["control"]) for _ in range(MAX_STREAMS_PER_LANE_IN + 3)]

        await eventually(lambda: score(victim, stranger) > 2.5)
        assert victim.messenger._server._n_streams[stranger.messenger.peer_id, "control"] <= MAX_STREAMS_PER_LANE_IN
        del streams
        await still_answers(victim)


async def test_streams_that_say_nothing_are_bounded():
    async with opened() as victim, opened(of=victim) as stranger:
        swarm = stranger._host.get_network()
        with trio.move_on_after(3):
            for _ in range(MAX_INBOUND_STREAMS + 50):
                await swarm.new_stream(ID.from_base58(victim.messenger.peer_id))

        await still_answers(victim)


async def test_a_peer_that_ignores_its_window_is_disconnected():
    async with opened() as victim, opened(of=victim) as stranger:

        async def never_read(stream):
            await trio.sleep_forever()

        victim._host.set_stream_handler("/test/unread", never_read)
        stream = await stream_to(stranger, victim, "/test/unread")
        stream.muxed_stream.send_window = 1 << 40

        with trio.fail_after(PATIENCE_S), pytest.raises(Exception):  # noqa: B017
            for _ in range(1000):
                await stream.write(bytes(65536))

        await still_answers(victim)


async def test_an_exception_out_of_any_stream_handler_leaves_the_host_alive():
    async with opened() as victim, opened(of=victim) as stranger:

        async def fails(stream):
            raise ValueError("a bug in libp2p")

        victim._host.set_stream_handler("/test/fails", fails)
        for _ in range(3):
            await stream_to(stranger, victim, "/test/fails")

        await still_answers(victim)
        assert await stranger.messenger.request(victim.messenger.peer_id, b"I too") == b"I too"


@pytest.mark.parametrize("protocol", ["/legion/kad/1.0.0", "/meshsub/1.1.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0"])
async def test_garbage_on_libp2ps_own_protocols_leaves_the_host_alive(protocol):
    async with opened() as victim, opened(of=victim) as stranger:
        for garbage in (b"\xff" * 300, b"\x05hello", b"\x00", b"\xff\xff\xff\xff\x0f" + bytes(100)):
            try:
                stream = await stream_to(stranger, victim, protocol)
                await stream.write(garbage)
                await stream.close_write()
            except Exception:  # it may have been cut off already
                pass

        await still_answers(victim)


async def test_bytes_that_are_not_even_libp2p_leave_the_host_alive():
    async with opened() as victim:
        host, port = victim.addresses()[0].split("/")[2::2][:2]
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, b""):
            stream = await trio.open_tcp_stream(host, int(port))
            await stream.send_all(garbage)
            await stream.aclose()

        await still_answers(victim)


async def test_a_handler_may_be_replaced():
    async with opened() as victim, opened(of=victim) as asker:

        async def louder(peer, body):
            return body.upper()

        victim.messenger.serve(louder)
        assert await asker.messenger.request(victim.messenger.peer_id, b"a") == b"A"
        victim.messenger.serve(echo)
        assert await asker.messenger.request(victim.messenger.peer_id, b"a") == b"a"
