"""Routers that forward a port, that refuse, and that lie; all of them small servers on loopback."""

import struct
from collections.abc import Callable
from functools import partial

import pytest
import trio

from legion_p2p.core.gateway_packets import pcp_request
from legion_p2p.core.igd import DEVICES, MAX_DESCRIPTION_BYTES, Url
from legion_p2p.core.port_lease import Forwarding
from legion_p2p.errors import DecodeError, NetworkError
from legion_p2p.net import routers
from legion_p2p.net.routers import Gateway, UpnpRouter, fetch, find_upnp
from tests.waiting import PATIENCE_S

HERE = "127.0.0.1"


@pytest.fixture
async def udp(nursery):
    """Starts a server that answers each packet with what a function makes of it; returns its port."""

    async def start(answer: Callable[[bytes], list[bytes]]) -> int:
        sock = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
        await sock.bind((HERE, 0))

        async def serve() -> None:
            with sock:
                while True:
                    data, sender = await sock.recvfrom(4096)
                    for reply in answer(data):
                        await sock.sendto(reply, sender)

        nursery.start_soon(serve)
        return sock.getsockname()[1]

    yield start
    nursery.cancel_scope.cancel()


@pytest.fixture
async def http(nursery):
    """Starts a server that answers each request with what a function makes of it; returns its port, and what was asked."""

    async def start(answer: Callable[[bytes], bytes], endless: bytes = b"") -> tuple[int, list[bytes]]:
        asked: list[bytes] = []

        async def serve(stream: trio.SocketStream) -> None:
            try:
                asked.append(await stream.receive_some(8192))
                await stream.send_all(answer(asked[-1]))
                while endless:
                    await stream.send_all(endless)
            except trio.BrokenResourceError:
                return

        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host=HERE))
        return listeners[0].socket.getsockname()[1], asked

    yield start
    nursery.cancel_scope.cancel()


# PCP and NAT-PMP


class Pcp:
    """A router that speaks PCP."""

    def __init__(self, result: int = 0, shift: int = 0) -> None:
        self.requests: list[bytes] = []
        self._result = result
        self._shift = shift

    def answer(self, data: bytes) -> list[bytes]:
        self.requests.append(data)
        if data[0] != 2:
            return []
        lifetime = struct.unpack_from("!I", data, 4)[0]
        port, outside = struct.unpack_from("!HH", data, 40)
        head = struct.pack("!BBBBII12x", 2, 0x81, 0, self._result, lifetime, 77)
        return [head + data[24:40] + struct.pack("!HH", port, outside + self._shift) + data[44:60]]


class Pmp:
    """A router that only speaks NAT-PMP."""

    def __init__(self, result: int = 0) -> None:
        self.requests: list[bytes] = []
        self._result = result

    def answer(self, data: bytes) -> list[bytes]:
        self.requests.append(data)
        if data[0] != 0:
            return [struct.pack("!BBHI", 0, 0x80 | data[1], 1, 77)]
        port, outside, lifetime = struct.unpack_from("!HHI", data, 4)
        return [struct.pack("!BBHIHHI", 0, 130, self._result, 77, port, outside, lifetime)]


async def test_a_router_that_speaks_pcp_grants_a_port_and_is_told_when_it_is_no_longer_needed(udp):
    pcp = Pcp(shift=1)
    gateway = Gateway(HERE, await udp(pcp.answer))

    assert await gateway.forward(HERE, 4710, 4710) == Forwarding(4711, 3600.0)

    await gateway.end(HERE, 4710, 4711)
    with trio.fail_after(PATIENCE_S):
        while len(pcp.requests) < 2:  # noqa: ASYNC110
            await trio.sleep(0.01)
    first, last = pcp.requests
    assert last == pcp_request(first[24:36], HERE, 4710, 0, 0)


async def test_a_router_that_only_speaks_nat_pmp_is_asked_again_in_that(udp):
    pmp = Pmp()
    gateway = Gateway(HERE, await udp(pmp.answer))

    assert await gateway.forward(HERE, 4710, 4710) == Forwarding(4710, 3600.0)
    assert await gateway.forward(HERE, 4710, 4710) == Forwarding(4710, 3600.0)
    assert [request[0] for request in pmp.requests] == [2, 0, 0]


async def test_a_router_that_refuses_is_an_error_that_says_so(udp):
    for kind in (Pcp(result=2), Pmp(result=2)):
        with pytest.raises(DecodeError, match="refuses"):
            await Gateway(HERE, await udp(kind.answer)).forward(HERE, 4710, 4710)


async def test_a_router_that_does_not_answer_costs_seconds_and_no_more(udp):
    with trio.fail_after(PATIENCE_S), pytest.raises(NetworkError):
        await Gateway(HERE, await udp(lambda data: [])).forward(HERE, 4710, 4710)


@pytest.mark.parametrize("garbage", [b"", b"\x02", b"\x02\x81" + bytes(70), b"\xff" * 1000, bytes(60), b"\x00\x82" + bytes(6)])
async def test_garbage_from_a_router_is_refused(udp, garbage):
    with trio.fail_after(PATIENCE_S), pytest.raises((DecodeError, NetworkError)):
        await Gateway(HERE, await udp(lambda data: [garbage])).forward(HERE, 4710, 4710)


# UPnP

DESCRIPTION = """<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>
<deviceList><device><deviceList><device><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>{control}</controlURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>"""


def page(body: str | bytes, status: str = "200 OK") -> bytes:
    data = body.encode() if isinstance(body, str) else body
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\nContent-Type: text/xml\r\n\r\n".encode() + data


def refusal(code: int) -> bytes:
    return page(f"<s:Envelope xmlns:s='x'><s:Fault><errorCode>{code}</errorCode></s:Fault></s:Envelope>", "500 Internal Error")


class Igd:
    """A router that speaks UPnP."""

    def __init__(self, *refusals: int, control: str = "/ctl", description: str = DESCRIPTION) -> None:
        self._refusals = list(refusals)
        self._description = description.format(control=control) if "{control}" in description else description

    def answer(self, asked: bytes) -> bytes:
        if asked.startswith(b"GET"):
            return page(self._description)
        return refusal(self._refusals.pop(0)) if self._refusals else page("<ok/>")


def found_at(where: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nST: {DEVICES[1]}\r\nLOCATION: {where}\r\n\r\n".encode()


async def search(udp, monkeypatch, *answers: bytes) -> list[UpnpRouter]:
    monkeypatch.setattr(routers, "SEARCH_S", 0.5)
    port = await udp(lambda data: list(answers) if DEVICES[1].encode() in data else [])
    return [router async for router in find_upnp(HERE, lambda host: host == HERE, (HERE, port))]


async def test_a_router_is_found_by_a_search_and_forwards_a_port(udp, http, monkeypatch):
    port, asked = await http(Igd().answer)

    (router,) = await search(udp, monkeypatch, found_at(f"http://{HERE}:{port}/desc.xml"))

    assert await router.forward(HERE, 4710, 4710) == Forwarding(4710, 3600.0)
    await router.end(HERE, 4710, 4710)
    assert [request.split(b" ")[:2] for request in asked] == [[b"GET", b"/desc.xml"], [b"POST", b"/ctl"], [b"POST", b"/ctl"]]
    assert b"<NewInternalClient>127.0.0.1<" in asked[1] and b"<NewLeaseDuration>3600<" in asked[1]
    assert b"#DeletePortMapping" in asked[2]


async def test_another_port_is_taken_where_the_wished_one_leads_elsewhere(udp, http, monkeypatch):
    port, _ = await http(Igd(718, 718).answer)
    (router,) = await search(udp, monkeypatch, found_at(f"http://{HERE}:{port}/"))

    forwarding = await router.forward(HERE, 4710, 4710)

    assert forwarding.port != 4710 and 20000 <= forwarding.port < 60000


async def test_a_router_without_free_ports_and_one_without_lifetimes(udp, http, monkeypatch):
    port, _ = await http(Igd(*[718] * 50).answer)
    (router,) = await search(udp, monkeypatch, found_at(f"http://{HERE}:{port}/"))
    with pytest.raises(NetworkError, match="no free port"):
        await router.forward(HERE, 4710, 4710)

    port, asked = await http(Igd(725).answer)
    (router,) = await search(udp, monkeypatch, found_at(f"http://{HERE}:{port}/"))
    assert await router.forward(HERE, 4710, 4710) == Forwarding(4710, float("inf"))
    assert b"<NewLeaseDuration>0<" in asked[-1]


@pytest.mark.parametrize(
    "where",
    ["http://203.0.113.7/desc.xml", "http://localhost/desc.xml", "https://127.0.0.1/desc.xml", "file:///etc/passwd", "",
     "http://user@127.0.0.1/", "http://127.0.0.1:99999/", "http://127.0.0.1/" + "a" * 1000, "http://127.0.0.1/a b\x01"],
)  # fmt: skip
async def test_a_device_that_names_a_page_elsewhere_is_not_asked_for_it(udp, monkeypatch, where):
    assert await search(udp, monkeypatch, found_at(where)) == []


@pytest.mark.parametrize(
    "description",
    [DESCRIPTION.format(control="http://203.0.113.7/ctl"), "", "<a>", "<a/>", "<!DOCTYPE x [<!ENTITY y 'z'>]><a>&y;</a>",
     "<root>" + "x" * MAX_DESCRIPTION_BYTES + "</root>", "<a>" * 20000, "\x00" * 100],
)  # fmt: skip
async def test_a_description_that_leads_elsewhere_or_is_garbage_is_no_router(udp, http, monkeypatch, description):
    port, _ = await http(Igd(description=description).answer)

    assert await search(udp, monkeypatch, found_at(f"http://{HERE}:{port}/")) == []


async def test_pages_without_end_redirections_and_slow_ones_are_given_up(http, monkeypatch):
    monkeypatch.setattr(routers, "PAGE_S", 1.0)
    endless, _ = await http(lambda asked: b"HTTP/1.1 200 OK\r\n\r\n", endless=b"x" * 65536)
    with pytest.raises(DecodeError, match="more than 1000 bytes"):
        await fetch(Url(HERE, endless, "/"), b"GET", [], b"", 1000)

    headers, _ = await http(lambda asked: b"HTTP/1.1 200 OK\r\n", endless=b"X: " + b"x" * 65536)
    with pytest.raises(DecodeError, match="no HTTP"):
        await fetch(Url(HERE, headers, "/"), b"GET", [], b"", 1000)

    redirection = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    elsewhere, asked = await http(lambda asked: redirection)
    assert await fetch(Url(HERE, elsewhere, "/"), b"GET", [], b"", 1000) == (302, b"")
    assert len(asked) == 1

    silent, _ = await http(lambda asked: b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", endless=b"")
    with trio.fail_after(PATIENCE_S), pytest.raises((NetworkError, DecodeError)):
        await fetch(Url(HERE, silent, "/"), b"GET", [], b"", 1000)


async def test_a_crowd_of_devices_is_heard_to_a_limit(udp, monkeypatch):
    monkeypatch.setattr(routers, "fetch", None)  # none of them is asked for a page: all are elsewhere
    crowd = [found_at(f"http://203.0.113.{i % 250}/") for i in range(1000)]

    with trio.fail_after(PATIENCE_S):
        assert await search(udp, monkeypatch, *crowd) == []
