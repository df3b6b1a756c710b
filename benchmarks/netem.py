"""How near an emulated link comes to the figures that it was set to: delay and rate, between real processes over loopback.

    python benchmarks/netem.py

For each profile one peer has the link and its neighbour has none; then pairs that both have one, with a path between their
places, and one upload that two receivers share. The round trip is that of small requests, the median of --pings, less the median
without any link (what the machine itself takes). The rate is payload over time, from the first byte to the last reply, less a
round trip.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import trio

from legion_p2p.core.caps import parse_caps
from legion_p2p.core.contact import Lane
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.link import NO_LINK
from legion_p2p.core.profiles import PROFILES, parse_link
from legion_p2p.core.units import rate_text

HOME = "rtt=0ms,loss=0%,jitter=0ms"
PAIRS = {
    "cable to cable, across": (f"cable,{HOME},place=1,inside=5ms,across=120ms", f"cable,{HOME},place=2,inside=5ms,across=120ms"),
    "cable to cable, inside": (f"cable,{HOME},place=1,inside=5ms,across=120ms", f"cable,{HOME},place=1,inside=5ms,across=120ms"),
    "dsl to fibre": ("dsl", "fibre"),
}
MAX_BODY_BYTES = 2 << 20
PING_PAUSE_S = 0.1  # the same for all: the longer a process slept, the longer it takes to wake


async def serve(link: str, host: str) -> None:
    """Answer requests: a number asks for so many bytes, anything else is taken."""
    from legion_p2p.net.host import open_network

    async def answer(peer: PeerId, body: bytes) -> bytes:
        return bytes(int(body)) if len(body) < 10 else b"taken"

    async with open_network(
        Identity.generate(), listen=[f"/ip4/{host}/tcp/0"], link=parse_link(link) if link else NO_LINK
    ) as network:
        network.messenger.serve(answer)
        print(network.addresses()[0], flush=True)
        await trio.sleep_forever()


async def measure(link: str, cap: str, addresses: list[str], n_pings: int, seconds: float, rates_bps: dict) -> dict:
    """Round trip and rates from here to the peers at `addresses`."""
    from legion_p2p.net.host import open_network

    async with open_network(
        Identity.generate(), listen=["/ip4/127.0.0.1/tcp/0"], initial_peers=addresses,
        link=parse_link(link) if link else NO_LINK, caps=parse_caps(upload=cap),
    ) as network:  # fmt: skip
        network.keep_contacts()
        peers = [PeerId(address.rpartition("/")[2]) for address in addresses]
        for peer in peers:
            await network.messenger.request(peer, b"1")
        rtts = []
        for _ in range(n_pings):
            began = time.perf_counter()
            await network.messenger.request(peers[0], b"1")
            rtts.append(time.perf_counter() - began)
            await trio.sleep(PING_PAUSE_S)
        found = {"rtt_s": statistics.median(rtts)}
        for way, rate_bps in rates_bps.items():
            found[way] = await rate(network.messenger, peers, way, int(seconds * rate_bps / 8), found["rtt_s"])
        return found


async def rate(messenger, peers: list[PeerId], way: str, n_bytes: int, rtt_s: float) -> float:
    """Bits per second of payload, to or from all `peers` together."""
    size = max(1 << 14, min(MAX_BODY_BYTES, n_bytes // 16))
    n_requests = max(4, round(n_bytes / size / len(peers))) * len(peers)
    body = bytes(size) if way == "up" else str(size).encode()

    async def ask(limit: trio.CapacityLimiter, peer: PeerId) -> None:
        async with limit:
            await messenger.request(peer, body, lane=Lane.BULK)

    await messenger.request(peers[0], b"1", lane=Lane.BULK)
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        limits = [trio.CapacityLimiter(4) for _ in peers]
        for i in range(n_requests):
            nursery.start_soon(ask, limits[i % len(peers)], peers[i % len(peers)])
    return 8 * size * n_requests / (time.perf_counter() - began - rtt_s)


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
        found = trio.run(measure, link, cap, addresses, args.pings, args.seconds, rates_bps)
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
            row["rtt_error_ms"] = 1e3 * (row["rtt_s"] - bare["rtt_s"] - row["rtt_set_s"])
            print(
                json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}),
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
