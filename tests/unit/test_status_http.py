"""The status endpoint over real loopback sockets: who may ask, what is answered, and that garbage hurts nobody."""

import contextlib
import json
import random
import socket

import msgspec
import pytest
import trio

from legion_p2p.errors import NetworkError
from legion_p2p.net import http_server, status_http
from legion_p2p.net.http_client import MAX_ANSWER_BYTES
from legion_p2p.net.http_server import MAX_CONNECTIONS, MAX_HEADER_BYTES, is_loopback_host
from legion_p2p.net.status_http import fetch_status, find_peers, serve_status
from legion_p2p.observe.status import MemberStatus, RunStatus, Status
from tests.ports import free_ports
from tests.waiting import PATIENCE_S

STATUS = Status(
    "me", ("/ip4/127.0.0.1/tcp/1",), RunStatus("id", "demo"), "home", "training", 7,
    (MemberStatus("me", "home", "ALIVE", 7, 12.5),), (), 10, 20, None, (),
)  # fmt: skip

EPHEMERAL = ()  # no port is asked for, so that the system chooses one


def port_of(address):
    return int(address.rpartition(":")[2])


async def talk(port, request):
    """What the server answers to raw bytes, until it closes the connection."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    answer = b""
    async with stream:
        try:
            await stream.send_all(request)
            async for chunk in stream:
                answer += chunk
        except trio.BrokenResourceError:
            pass
    return answer


def get(path, host="127.0.0.1:1", method="GET"):
    return f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


async def test_the_status_is_served_as_the_records_json(nursery):
    address = await nursery.start(serve_status_on_any, lambda: STATUS)

    head, _, body = (await talk(port_of(address), get("/status"))).partition(b"\r\n\r\n")

    assert address.startswith("127.0.0.1:")
    assert head.startswith(b"HTTP/1.1 200") and b"application/json" in head and b"no-store" in head
    assert body == msgspec.json.encode(STATUS)
    assert json.loads(body)["members"][0]["peer_id"] == "me"
    nursery.cancel_scope.cancel()


async def serve_status_on_any(get_status, *, task_status):
    await serve_status(get_status, ports=EPHEMERAL, task_status=task_status)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (get("/healthz"), 200),
        (get("/status?x=1"), 200),
        (get("/status", "localhost"), 200),
        (get("/status", "[::1]:47110"), 200),
        (get("/"), 404),
        (get("/status/../etc/passwd"), 404),
        (get("/status", method="POST"), 405),
        (get("/status", method="DELETE"), 405),
        (get("/status", "evil.example"), 403),
        (get("/status", "127.0.0.1.evil.example:47110"), 403),
        (get("/status", "localhost:80@evil.example"), 403),
        (b"GET /status HTTP/1.0\r\n\r\n", 403),
        (b"GET /status HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03garbage\r\n\r\n", 400),
        (b"GET /" + b"x" * (2 * MAX_HEADER_BYTES), 431),
    ],
)
async def test_every_request_gets_the_answer_it_deserves(request_, code, nursery):
    address = await nursery.start(serve_status_on_any, lambda: STATUS)

    answer = await talk(port_of(address), request_)

    assert answer.startswith(f"HTTP/1.1 {code} ".encode())
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("host", ["127.0.0.1", "LOCALHOST:1", "[::1]", "[::1]:80"])
def test_loopback_hosts_are_known(host):
    assert is_loopback_host(host)


@pytest.mark.parametrize("host", ["", ":80", "::1:80", "127.0.0.2", "10.0.0.1:47110", "localhost.", "127.0.0.1:x", "localhost:²"])
def test_other_hosts_are_not_loopback(host):
    assert not is_loopback_host(host)


async def test_garbage_of_any_kind_leaves_the_server_alive(nursery):
    address = await nursery.start(serve_status_on_any, lambda: STATUS)
    rng = random.Random(0)

    for _ in range(40):
        junk = rng.randbytes(rng.randrange(1, 3000)) + rng.choice([b"", b"\r\n\r\n", b"\n\n"])
        with trio.move_on_after(0.05):
            await talk(port_of(address), junk)
    for _ in range(5):  # connections that are reset without a word
        rude = socket.create_connection(("127.0.0.1", port_of(address)))
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        rude.close()

    assert await fetch_status("127.0.0.1", port_of(address)) == STATUS
    nursery.cancel_scope.cancel()


async def test_a_status_that_cannot_be_told_is_a_500_and_the_server_goes_on(nursery):
    broken = True

    def get_status():
        if broken:
            raise RuntimeError("not yet")
        return STATUS

    address = await nursery.start(serve_status_on_any, get_status)

    with pytest.raises(NetworkError, match="answered 500: no status: RuntimeError"):
        await fetch_status("127.0.0.1", port_of(address))
    broken = False
    assert await fetch_status("127.0.0.1", port_of(address)) == STATUS
    nursery.cancel_scope.cancel()


async def test_idle_connections_are_bounded_in_number_and_in_time(nursery, monkeypatch):
    monkeypatch.setattr(http_server, "REQUEST_S", 0.3)
    address = await nursery.start(serve_status_on_any, lambda: STATUS)
    idle = [await trio.open_tcp_stream("127.0.0.1", port_of(address)) for _ in range(MAX_CONNECTIONS)]
    await trio.sleep(0.05)

    one_too_many = await talk(port_of(address), get("/healthz"))
    with trio.fail_after(PATIENCE_S):
        ends = [await stream.receive_some() for stream in idle]

    assert one_too_many == b""
    assert ends == [b""] * MAX_CONNECTIONS
    assert await fetch_status("127.0.0.1", port_of(address)) == STATUS
    for stream in idle:
        await stream.aclose()
    nursery.cancel_scope.cancel()


async def test_cancelling_ends_it_at_once_and_frees_the_port():
    async with trio.open_nursery() as nursery:
        address = await nursery.start(serve_status_on_any, lambda: STATUS)
        hanging = await trio.open_tcp_stream("127.0.0.1", port_of(address))
        await trio.sleep(0.02)
        began = trio.current_time()
        nursery.cancel_scope.cancel()

    assert trio.current_time() - began < 0.5
    await hanging.aclose()
    with pytest.raises(NetworkError, match="nobody listens"):
        await fetch_status("127.0.0.1", port_of(address))


async def test_peers_on_one_machine_take_one_port_each_and_are_all_found(nursery):
    ports = free_ports(3)

    async def serve(get_status, task_status):
        await serve_status(get_status, ports=ports[:2], task_status=task_status)

    addresses = [await nursery.start(serve, lambda i=i: msgspec.structs.replace(STATUS, pid=i)) for i in range(3)]
    found = await find_peers(ports)

    assert [port_of(address) for address in addresses[:2]] == ports[:2]
    assert port_of(addresses[2]) not in ports  # both were taken: the system chose one
    assert [(probe.address, probe.status.pid) for probe in found] == [(addresses[0], 0), (addresses[1], 1)]
    nursery.cancel_scope.cancel()


async def test_somebody_else_on_a_port_is_told_apart_from_a_peer(nursery, monkeypatch):
    monkeypatch.setattr(status_http, "PROBE_S", 0.3)

    async def answering(reply, task_status):
        async def handle(stream):
            if reply is None:
                await trio.sleep_forever()
            with contextlib.suppress(trio.BrokenResourceError):  # who asked may have given up, on a busy machine
                await stream.receive_some()
                await stream.send_all(reply)
            await stream.aclose()

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(listener.socket.getsockname()[1])
        await trio.serve_listeners(handle, [listener])

    other = await nursery.start(answering, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    web = await nursery.start(answering, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    html = b"<!DOCTYPE html><html><body>It works!</body></html>"
    failing = await nursery.start(answering, b"HTTP/1.1 500 Oops\r\nContent-Length: %d\r\n\r\n%b" % (len(html), html))
    page = await nursery.start(answering, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(html), html))
    ssh = await nursery.start(answering, b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    endless = await nursery.start(answering, b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (MAX_ANSWER_BYTES + 70000))
    silent = await nursery.start(answering, None)

    for port, why in [
        (other, "something else answers on .* or a peer of another version"),
        (web, "something else answers on .*: it is not a peer of legion_p2p$"),
        (failing, "something else answers on .*: it is not a peer of legion_p2p$"),
        (page, "something else answers on .*: it is not a peer of legion_p2p$"),
        (ssh, "not a peer"),
        (endless, "not a peer"),
        (silent, "in 0.3 s"),
    ]:
        with pytest.raises(NetworkError, match=why):
            await fetch_status("127.0.0.1", port, 0.3 if port == silent else 5.0)
    nursery.cancel_scope.cancel()


async def test_a_newer_peer_with_more_fields_is_still_understood(nursery, monkeypatch):
    newer = json.dumps(json.loads(msgspec.json.encode(STATUS)) | {"status_version": 2, "mood": "good"}).encode()
    monkeypatch.setattr(status_http, "_encoder", type("E", (), {"encode": staticmethod(lambda _: newer)}))
    address = await nursery.start(serve_status_on_any, lambda: STATUS)

    assert (await fetch_status("127.0.0.1", port_of(address))).step == 7
    nursery.cancel_scope.cancel()


async def test_an_unknown_host_is_an_error_that_names_it():
    with pytest.raises(NetworkError, match=r"no-such-host\.invalid"):
        await fetch_status("no-such-host.invalid", 47110)
