"""The page's server over real sockets, asked as an attacker would: by other pages, other users, and clients that are silent."""

import stat
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from legion_p2p.errors import NetworkError, UsageError
from legion_p2p.web import page_server
from legion_p2p.web.app import MAX_CLIENTS
from legion_p2p.web.guard import MAX_BODY_BYTES
from legion_p2p.web.hosting import host_page, ports_of
from legion_p2p.web.page_blocks import Facts, Head, Prose, WebPage
from legion_p2p.web.page_server import MAX_PAGE_CONNECTIONS, serve_page
from legion_p2p.web.static_files import FILES, MAX_PAGE_BYTES, file_bytes
from tests.waiting import PATIENCE_S

TOKEN = "t" * 43
SECRET = "tokens trained"
PAGE = WebPage(Head("stories", "", "training", ()), (Facts("mine", "Mine", "Mine", ((SECRET, "7"),)),))


async def opened(nursery, make=lambda: PAGE, **more) -> int:
    where = await nursery.start(partial(serve_page, make, token=TOKEN, ports=(0,), **more))
    return int(where.rpartition(":")[2])


async def talk(port: int, request: bytes, enough: bytes | None = None) -> bytes:
    """What the server answers, until it closes the connection, or has said `enough`."""
    answer = b""
    with trio.fail_after(PATIENCE_S):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            try:
                await stream.send_all(request)
                async for piece in stream:
                    answer += piece
                    if enough is not None and enough in answer:
                        break
            except trio.BrokenResourceError:
                pass
    return answer


async def eventually(is_so: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(PATIENCE_S):
        while True:
            if await is_so():
                return
            await trio.sleep(0.05)


def asking(path: str, port: int, *headers: str, method: str = "GET", body: bytes = b"", token: str = TOKEN) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *headers]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode() + body


def code(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def test_the_files_are_served_with_headers_that_let_nothing_else_in(nursery) -> None:
    port = await opened(nursery)

    for path, file in FILES.items():
        head, _, body = (await talk(port, asking(path, port, token=""))).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and body == file_bytes(path), path
        assert f"content-type: {file.kind}".encode() in head.lower()
        assert b"default-src 'none'" in head and b"unsafe" not in head and b"nosniff" in head and b"no-store" in head
        assert b"access-control" not in head.lower() and b"hypercorn" not in head.lower()
    nursery.cancel_scope.cancel()


def test_all_files_together_are_small_and_ask_for_nothing_elsewhere() -> None:
    whole = b"".join(map(file_bytes, FILES))

    assert len(whole) < MAX_PAGE_BYTES
    ours = b"".join(file_bytes(path) for path in FILES if "uplot" not in path)
    assert b"https://" not in ours
    assert [part for part in ours.split(b"http://")[1:] if not part.startswith(b"www.w3.org/2000/svg")] == []
    assert b"innerHTML" not in ours and b"insertAdjacentHTML" not in ours and b"eval(" not in ours


async def test_with_the_token_the_page_comes_and_goes_on_coming(nursery) -> None:
    n = [0]

    def make() -> WebPage:
        n[0] += 1
        return WebPage(PAGE.head, (Prose("p", "S", "T", str(n[0])),))

    port = await opened(nursery, make)

    answer = await talk(port, asking("/api/events", port), b'"text":"2"')

    assert code(answer) == 200 and b"text/event-stream" in answer
    assert b"\ndata: {" in answer and b'"text":"1"' in answer
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "t"])
async def test_without_the_token_nothing_is_told_and_nothing_is_done(nursery, token: str) -> None:
    done: list[bytes] = []
    port = await opened(nursery, obey=done.append)

    told = [
        await talk(port, asking("/api/events", port, token=token)),
        await talk(port, asking(f"/api/events?token={TOKEN}", port, token=token)),
        await talk(port, asking("/api/control", port, method="POST", body=b'{"type":"pause"}', token=token)),
        await talk(port, asking("//api/events", port, token=token)),
        await talk(port, asking("/api/../api/events", port, token=token)),
        await talk(port, asking("/%61pi/events", port, token=token)),
    ]

    assert [code(answer) for answer in told[:3]] == [401, 401, 401]
    assert all(code(answer) in (401, 404) and SECRET.encode() not in answer for answer in told)
    assert done == []
    nursery.cancel_scope.cancel()


async def test_another_page_gets_nothing_even_with_the_token_and_no_leave_to_ask(nursery) -> None:
    done: list[bytes] = []
    port = await opened(nursery, obey=done.append)
    evil = "Origin: http://evil.example"

    answers = [
        await talk(port, asking("/api/control", port, evil, method="POST", body=b"{}")),
        await talk(port, asking("/api/events", port, evil)),
        await talk(port, asking("/api/control", port, evil, "Access-Control-Request-Method: POST", method="OPTIONS", token="")),
        await talk(port, asking("/", port).replace(b"127.0.0.1", b"evil.example")),
        await talk(port, asking("/api/events", port).replace(b"127.0.0.1", b"rebound.evil.example")),
    ]

    assert [code(answer) for answer in answers] == [403] * 5
    assert all(b"access-control" not in answer.lower() for answer in answers)
    assert done == []
    nursery.cancel_scope.cancel()


async def test_a_command_is_obeyed_as_it_came_and_one_that_is_refused_says_why(nursery) -> None:
    done: list[bytes] = []

    def obey(command: bytes) -> None:
        done.append(command)
        if b"5xbit" in command:
            raise UsageError("rate '5xbit': allowed is a number")

    port = await opened(nursery, obey=obey)
    mine = f"Origin: http://127.0.0.1:{port}"

    good = await talk(port, asking("/api/control", port, mine, method="POST", body=b'{"type":"pause"}'))
    bad = await talk(port, asking("/api/control", port, mine, method="POST", body=b'{"type":"limits","upload":"5xbit"}'))

    assert code(good) == 200 and done[0] == b'{"type":"pause"}'
    assert code(bad) == 400 and b"5xbit" in bad
    assert code(await talk(port, asking("/api/control", port))) == 405
    nursery.cancel_scope.cancel()


async def test_a_page_that_changes_nothing_takes_no_commands(nursery) -> None:
    port = await opened(nursery)

    assert code(await talk(port, asking("/api/control", port, method="POST", body=b"{}"))) == 404
    nursery.cancel_scope.cancel()


async def test_long_bodies_are_refused_with_a_length_and_without_one(nursery) -> None:
    done: list[bytes] = []
    port = await opened(nursery, obey=done.append)
    long = b"x" * (MAX_BODY_BYTES + 1)
    pieces = b"%x\r\n%s\r\n0\r\n\r\n" % (len(long), long)

    with_length = await talk(port, asking("/api/control", port, method="POST", body=long))
    in_pieces = await talk(port, asking("/api/control", port, "Transfer-Encoding: chunked", method="POST") + pieces)

    assert (code(with_length), code(in_pieces)) == (413, 413)
    assert done == []
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9 + b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET /" + b"x" * 20_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 40,
        b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\n"
        b"Sec-WebSocket-Version: 13\r\n\r\n",
        b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade\r\n\r\n",
    ],
)  # fmt: skip
async def test_garbage_and_other_protocols_tell_nothing_and_hurt_nobody(nursery, garbage: bytes, monkeypatch) -> None:
    monkeypatch.setattr(page_server, "IDLE_S", 0.3)
    port = await opened(nursery)

    answer = await talk(port, garbage)

    assert SECRET.encode() not in answer and b" 200" not in answer.split(b"\r\n")[0]
    assert code(await talk(port, asking("/", port))) == 200
    nursery.cancel_scope.cancel()


async def test_clients_that_send_nothing_lose_their_places(nursery, monkeypatch) -> None:
    monkeypatch.setattr(page_server, "IDLE_S", 0.3)
    port = await opened(nursery)
    idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(MAX_PAGE_CONNECTIONS)]
    for half in idle[::2]:
        await half.send_all(b"GET / HTTP/1.1\r\nHost: 127")

    async def is_served() -> bool:
        return bool(await talk(port, asking("/", port)))

    await eventually(is_served)
    for stream in idle:
        await stream.aclose()
    nursery.cancel_scope.cancel()


async def test_so_many_windows_may_look_at_once_and_a_closed_one_makes_room(nursery) -> None:
    port = await opened(nursery)
    open_ones = []
    for _ in range(MAX_CLIENTS):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(asking("/api/events", port))
        assert b"200" in await stream.receive_some(64)
        open_ones.append(stream)

    assert code(await talk(port, asking("/api/events", port))) == 503

    await open_ones[0].aclose()

    async def has_room() -> bool:
        return code(await talk(port, asking("/api/events", port), b"\ndata: ")) == 200

    await eventually(has_room)
    for stream in open_ones:
        await stream.aclose()
    nursery.cancel_scope.cancel()


async def test_a_client_that_reads_nothing_is_given_up_and_keeps_nobody_from_leaving(nursery, monkeypatch) -> None:
    monkeypatch.setattr(page_server, "SEND_S", 0.3)
    n = [0]

    def make() -> WebPage:  # far more than the sockets of both sides hold, and new each time
        n[0] += 1
        return WebPage(PAGE.head, (Prose("p", "S", "T", str(n[0]) * 8_000_000),))

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as of_peer:
            port = await opened(of_peer, make)
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(asking("/api/events", port))

            async def is_made() -> bool:
                return n[0] > 0

            await eventually(is_made)
            of_peer.cancel_scope.cancel()
    await stream.aclose()


async def test_the_address_is_in_a_file_that_only_its_owner_reads_while_the_page_is_served(tmp_path) -> None:
    key = tmp_path / "peer.key"
    noted = tmp_path / "peer.dashboard"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("kept")
    noted.symlink_to(elsewhere)  # left behind by somebody

    async with trio.open_nursery() as nursery:
        address = await nursery.start(partial(host_page, lambda: PAGE, ports=(0,), key_file=str(key)))
        assert noted.read_text().strip() == address
        assert stat.S_IMODE(noted.lstat().st_mode) == 0o600 and not noted.is_symlink()
        assert address.startswith("http://127.0.0.1:") and len(address.partition("#")[2]) >= 43
        nursery.cancel_scope.cancel()

    assert not noted.exists() and elsewhere.read_text() == "kept"


async def test_a_port_that_is_taken_is_an_error_only_where_it_was_asked_for(nursery) -> None:
    port = await opened(nursery)

    with pytest.raises(NetworkError, match="cannot serve the dashboard"):
        await serve_page(lambda: PAGE, token=TOKEN, ports=(port,))
    assert ports_of(str(port)) == (port,) and ports_of("no") == () and ports_of("yes")[-1] == 0
    nursery.cancel_scope.cancel()
