"""A peer that nobody has proved to be anything gets hardly more bytes than it sends, so nobody is flooded by way of one of us."""

import re

import trio

from tests.net.conftest import opened

LISTENS_S = 1.5
MOST = 3.0
HEADERS = 40  # of an IPv4 and a TCP segment. Whoever connects sends three at least, two of them without data, and acknowledges
# every second one that it gets: otherwise it gets no more than ten.


def lines(*said: bytes) -> bytes:
    return b"".join(bytes([len(line) + 1]) + line + b"\n" for line in said)


OPENINGS = {
    "nothing": b"",
    "a byte": b"\x13",
    "a web page is wanted": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "multistream": lines(b"/multistream/1.0.0"),
    "a list of protocols": lines(b"/multistream/1.0.0", b"ls"),
    "noise": lines(b"/multistream/1.0.0", b"/noise"),
    "noise, and a key": lines(b"/multistream/1.0.0", b"/noise") + b"\x00\x20" + bytes(range(32)),
    "noise, and garbage": lines(b"/multistream/1.0.0", b"/noise") + b"\xff\xff" + bytes(200),
    "tls": lines(b"/multistream/1.0.0", b"/tls/1.0.0"),
    "a TLS hello": bytes.fromhex("1603010200010001fc0303") + bytes(509),
    "many protocols": lines(b"/multistream/1.0.0", *[b"/x"] * 50),
}


async def test_a_stranger_gets_at_most_three_times_what_it_sends() -> None:
    ratios: dict[str, float] = {}

    async def say(port: int, name: str, opening: bytes) -> None:
        n_bytes = n_segments = 0
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            with trio.move_on_after(LISTENS_S):
                try:
                    if opening:
                        await stream.send_all(opening)
                    while data := await stream.receive_some(1 << 16):
                        n_bytes, n_segments = n_bytes + len(data), n_segments + 1
                except trio.BrokenResourceError:
                    pass
        sent = len(opening) + HEADERS * (3 + n_segments // 2)
        ratios[name] = (n_bytes + HEADERS * (n_segments + 1)) / sent

    async with opened() as network:
        found = re.search(r"/tcp/(\d+)", network.addresses()[0])
        assert found is not None
        async with trio.open_nursery() as nursery:
            for name, opening in OPENINGS.items():
                nursery.start_soon(say, int(found[1]), name, opening)

    assert max(ratios.values()) <= MOST, ratios
    assert ratios["noise, and a key"] > 1.5, "where most comes back: its answer is heard"
