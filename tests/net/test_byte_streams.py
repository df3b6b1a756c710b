"""TLS on a socket: when a reader wakes up, and what it is told."""

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from legion_p2p.core.identity import Identity
from legion_p2p.net.byte_streams import GATHER_BYTES, GATHER_FROM_BYTES, MAX_RECORD_BYTES, TlsStream
from legion_p2p.net.certificates import Certificates
from legion_p2p.net.sockets import Sockets
from tests.waiting import PATIENCE_S


@asynccontextmanager
async def streams() -> AsyncIterator[tuple[TlsStream, TlsStream]]:
    """The two ends of a connection."""
    identities = Identity.generate(), Identity.generate()
    certificates = [Certificates(identity) for identity in identities]
    client = certificates[0].trust(identities[1].peer_id, certificates[1].own).client
    server = certificates[1].trust(identities[0].peer_id, certificates[0].own).server
    with socket.create_server(("127.0.0.1", 0)) as listener:
        raw = [socket.create_connection(listener.getsockname()), listener.accept()[0]]
    for one in raw:
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    a = TlsStream(client.wrap_socket(raw[0], server_hostname="x", do_handshake_on_connect=False), Sockets())
    b = TlsStream(server.wrap_socket(raw[1], server_side=True, do_handshake_on_connect=False), Sockets())
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.handshake)
            nursery.start_soon(b.handshake)
        yield a, b
    finally:
        a.close_now()
        b.close_now()


async def read_all(stream: TlsStream, n_bytes: int) -> bytes:
    """A body: all of it is certain to come."""
    body = bytearray(n_bytes)
    n_read = 0
    while n_read < n_bytes:
        n_read += await stream.read_into(memoryview(body)[n_read:])
    return bytes(body)


@pytest.mark.skipif(not hasattr(socket, "SO_RCVLOWAT"), reason="this system cannot wait for more than a byte")
async def test_a_reader_that_knows_that_more_is_to_come_does_not_wake_up_for_each_packet(monkeypatch):
    n_in_vain = 0
    receive = ssl.SSLSocket.recv_into

    def counted(sock: ssl.SSLSocket, *args: object) -> int:
        nonlocal n_in_vain
        try:
            return receive(sock, *args)
        except ssl.SSLWantReadError:
            n_in_vain += 1
            raise

    monkeypatch.setattr(ssl.SSLSocket, "recv_into", counted)
    piece = bytes(range(250)) * 4
    async with streams() as (a, b), trio.open_nursery() as nursery:
        received = []

        async def read() -> None:
            received.append(await read_all(b, 300 * len(piece)))

        nursery.start_soon(read)
        for _ in range(300):
            await a.write(piece)
            await trio.sleep(0.001)

    assert received == [300 * piece]
    assert n_in_vain < 150  # 300 without, and some 50 for the end of the body


@pytest.mark.parametrize(
    "n_bytes", [1, MAX_RECORD_BYTES, GATHER_FROM_BYTES, GATHER_FROM_BYTES + 1, GATHER_BYTES, 3 * GATHER_BYTES]
)
@pytest.mark.parametrize("record_bytes", [100, 1 << 14])
async def test_what_has_arrived_is_never_waited_for_in_vain(n_bytes, record_bytes):
    data = bytes(i % 251 for i in range(n_bytes))
    async with streams() as (a, b), trio.open_nursery() as nursery:
        nursery.start_soon(_write_in_records, a, data, record_bytes)
        with trio.fail_after(PATIENCE_S):
            assert await read_all(b, n_bytes) == data

        # and what follows a body is told at once, however little it is
        nursery.start_soon(a.write, b"x")
        with trio.fail_after(PATIENCE_S):
            assert await b.read_into(memoryview(bytearray(MAX_RECORD_BYTES))) == 1


async def test_a_reader_of_a_body_notices_its_end():
    async with streams() as (a, b):
        await a.write(bytes(10_000))
        a.close_now()

        room = memoryview(bytearray(1 << 20))
        with trio.fail_after(PATIENCE_S):
            assert await b.read_into(room) == 10_000
            assert await b.read_into(room) == 0


async def test_a_trickle_is_passed_on_as_it_comes():
    async with streams() as (a, b):
        room = memoryview(bytearray(1 << 20))
        for _ in range(3):
            await a.write(bytes(1000))
            with trio.fail_after(PATIENCE_S):
                assert await b.read_into(room) == 1000


async def _write_in_records(stream: TlsStream, data: bytes, record_bytes: int) -> None:
    for start in range(0, len(data), record_bytes):
        await stream.write(data[start : start + record_bytes])
