"""How near an emulated link comes to the figures that it was set to: delay and rate, between real processes over loopback.

    python benchmarks/netem.py

For each profile one peer has the link and its neighbour has none; then pairs that both have one, with a path between their
places, and one upload that two receivers share. Bytes go over raw connections, as those below Noise: what is measured is the
link, not what is sent over it. The round trip is that of single bytes, without jitter and loss, the median of --pings, less the
median without any link (what the machine itself takes). The rate is bytes over time, from the first sent to the last confirmed,
less a round trip.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import trio
from libp2p.network.connection.raw_connection import RawConnection
from multiaddr import Multiaddr

from legion_p2p.core.access_link import NO_LINK
from legion_p2p.core.caps import parse_caps
from legion_p2p.core.profiles import PROFILES, parse_link
from legion_p2p.core.units import rate_text
from legion_p2p.net.listener import Listener
from legion_p2p.net.netem import Shaper
from legion_p2p.net.sockets import Socket, Sockets
from legion_p2p.net.transport import Transport

STEADY = "loss=0%,jitter=0ms"
HOME = f"rtt=0ms,{STEADY}"
PAIRS = {
    "cable to cable, across": (f"cable,{HOME},place=1,inside=5ms,across=120ms", f"cable,{HOME},place=2,inside=5ms,across=120ms"),
    "cable to cable, inside": (f"cable,{HOME},place=1,inside=5ms,across=120ms", f"cable,{HOME},place=1,inside=5ms,across=120ms"),
    "dsl to fibre": ("dsl", "fibre"),
}
WRITE_BYTES = 1 << 16
PING_PAUSE_S = 0.1  # the same for all: the longer a process slept, the longer it takes to wake


async def serve(link: str, host: str) -> None:
    """For each byte that comes: b"p" is answered by itself; b"u" is counted; b"d" and 8 bytes ask for so many."""

    async def answer(stream: Socket) -> None:
        while True:
            what = await read_exactly(stream, 1)
            if what == b"p":
                await stream.write(what)
                continue
            n_bytes = int.from_bytes(await read_exactly(stream, 8), "big")
            if what == b"u":
                await skip(stream, n_bytes)
                await stream.write(b"u")
            else:
                await send(stream, n_bytes)

    async with shaping(link, "") as (sockets, nursery):
        listener = Listener(answer, nursery, sockets)
        await listener.listen(Multiaddr(f"/ip4/{host}/tcp/0"))
        print(listener.get_addrs()[0], flush=True)
        await trio.sleep_forever()


@asynccontextmanager
async def shaping(link: str, cap: str):
    async with trio.open_nursery() as nursery:
        shaper = Shaper(parse_link(link) if link else NO_LINK, parse_caps(upload=cap)) if link or cap else None
        if shaper is not None:
            shaper.start(nursery)
        yield Sockets(shaper), nursery
        nursery.cancel_scope.cancel()


async def measure(link: str, cap: str, addresses: list[str], args: argparse.Namespace, rates_bps: dict[str, float]) -> dict:
    """Round trip and rates from here to the peers at `addresses`."""
    async with shaping(link, cap) as (sockets, nursery):
        transport = Transport(nursery, sockets)
        streams = [await transport.dial(Multiaddr(address)) for address in addresses]
        rtts = []
        for _ in range(args.pings):
            await trio.sleep(PING_PAUSE_S)
            began = time.perf_counter()
            await streams[0].write(b"p")
            await read_exactly(streams[0], 1)
            rtts.append(time.perf_counter() - began)
        found = {"rtt_s": statistics.median(rtts)}
        profile = parse_link(link) if link else NO_LINK
        # long enough that one late retransmission at the end is no part of the rate
        seconds = args.seconds + 40 * profile.rtt_s + 400 * profile.loss
        for way, rate_bps in rates_bps.items():
            n_bytes = int(seconds * rate_bps / 8 / len(streams))
            began = time.perf_counter()
            async with trio.open_nursery() as all_of_them:
                for stream in streams:
                    all_of_them.start_soon(transfer, stream, way, n_bytes)
            found[way] = 8 * n_bytes * len(streams) / (time.perf_counter() - began - found["rtt_s"])
        return found


async def transfer(stream: RawConnection, way: str, n_bytes: int) -> None:
    await stream.write(way[:1].encode() + n_bytes.to_bytes(8, "big"))
    if way == "up":
        await send(stream, n_bytes)
        await read_exactly(stream, 1)
    else:
        await skip(stream, n_bytes)


async def send(stream: RawConnection | Socket, n_bytes: int) -> None:
    for start in range(0, n_bytes, WRITE_BYTES):
        await stream.write(bytes(min(WRITE_BYTES, n_bytes - start)))


async def skip(stream: RawConnection | Socket, n_bytes: int) -> None:
    while n_bytes:
        n_bytes -= len(await stream.read(min(n_bytes, WRITE_BYTES)))


async def read_exactly(stream: RawConnection | Socket, n_bytes: int) -> bytes:
    data = b""
    while len(data) < n_bytes:
        data += await stream.read(n_bytes - len(data))
    return data


def run(name: str, link: str, others: list[tuple[str, str]], args: argparse.Namespace, cap: str = "") -> dict:
    """One row: `link` here, `others` there, each a link and the host that it listens on."""
    children = [subprocess.Popen([sys.executable, __file__, "--serve", *o], stdout=subprocess.PIPE, text=True) for o in others]
    mine = parse_link(link) if link else NO_LINK
    theirs = parse_link(others[0][0]) if others[0][0] else NO_LINK
    up_bps = min(mine.up_bps, theirs.down_bps, parse_caps(upload=cap).upload_bps)
    down_bps = min(mine.down_bps, theirs.up_bps)
    rates_bps = {way: bps for way, bps in (("up", up_bps), ("down", down_bps)) if bps <= args.most_mbit * 1e6}
    try:
        addresses = [child.stdout.readline().strip() for child in children]
        found = trio.run(measure, link, cap, addresses, args, rates_bps)
    finally:
        for child in children:
            child.kill()
            child.wait()
    place = int(others[0][1].split(".")[1])
    row = {"case": name, "rtt_set_s": mine.rtt_s + theirs.rtt_s + mine.path_s(place), "rtt_s": found["rtt_s"]}
    for way, bps in rates_bps.items():
        row |= {f"{way}_set": rate_text(bps), f"{way}": rate_text(found[way]), f"{way}_ratio": found[way] / bps}
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", nargs=2)
    parser.add_argument("--pings", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=5.0, help="of traffic for each rate")
    parser.add_argument("--most-mbit", type=float, default=260.0, help="rates above it are not measured")
    parser.add_argument("--only", default="", help="part of a case's name")
    args = parser.parse_args()
    if args.serve:
        trio.run(serve, *args.serve)
        return 0
    bare = run("no link", "", [("", "127.0.0.1")], args)
    print(json.dumps(bare))
    cases = [(name, name, [("", "127.0.0.1")], "") for name in PROFILES]
    cases += [(name, a, [(b, f"127.{parse_link(b).place}.0.1")], "") for name, (a, b) in PAIRS.items()]
    cases.append(("20mbit up, two receivers", f"cable,{HOME}", [("", "127.0.0.1")] * 2, ""))
    cases.append(("--upload 10mbit, no link", "", [("", "127.0.0.1")], "10mbit"))
    for case, link, others, cap in cases:
        if args.only in case:
            row = run(case, link, others, args, cap)
            if link:
                # with jitter the median of so few is uncertain by as much as the jitter
                calm = [(f"{other},{STEADY}" if other else "", host) for other, host in others]
                brief = argparse.Namespace(**{**vars(args), "most_mbit": 0.0})
                row["rtt_s"] = run(case, f"{link},{STEADY}", calm, brief)["rtt_s"]
            row["rtt_error_ms"] = 1e3 * (row["rtt_s"] - bare["rtt_s"] - row["rtt_set_s"])
            print(
                json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}),
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
