"""What moves bulk between two processes at the least cost: TLS 1.3 in several kinds of loops, and this product's own streams.

    python benchmarks/lane.py --mib 512
    python benchmarks/lane.py --slowdown 30
    python benchmarks/lane.py --paced 20

The first form sends one way between two processes on loopback, and says how many CPU seconds each takes per GiB, and the rate:

    sslstream   trio.SSLStream, both sides
    socket      a non-blocking SSLSocket in trio's loop: OpenSSL reads and writes the socket itself (the product's TlsStream)
    uvloop      asyncio on uvloop, BufferedProtocol, in a loop of its own
    guest       the same receiver beside trio, which runs as a guest of uvloop
    thread      blocking sockets in a thread
    libp2p      requests of the product over Noise and yamux; their bodies are received, and answered with two bytes
    lane        the same over a bulk lane

uvloop and guest are left out where uvloop is not installed. The second form trains beside traffic: a process does matrix products
of 10 ms, while its network thread has requests echoed by another process, or does nothing, in turns of half a second.
The third receives 5 MB in packets of a link at this rate, as a bulk lane does, and without waiting for several of them.
"""

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import json
import multiprocessing as mp
import resource
import socket
import ssl
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from legion_p2p.core.identity import Identity
from legion_p2p.core.priority import Priority
from legion_p2p.net import byte_streams
from legion_p2p.net.certificates import Certificates
from legion_p2p.net.host import open_network
from legion_p2p.net.limits import NetConfig
from legion_p2p.net.sockets import Sockets

PIECE = 1 << 20
BODY = 24 << 20  # of one request: a shard of 6 Mi parameters in fp32
DONE = b"x"
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
STEP_S = 0.010
TURN_S = 0.5
PACED_BYTES, RECORD_BYTES, PACKET_BYTES = 5_000_000, 1 << 14, 1448


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a sender that dials and a receiver that listens."""
    sender, receiver = Identity.generate(), Identity.generate()
    of_sender, of_receiver = Certificates(sender), Certificates(receiver)
    return (
        of_sender.trust(receiver.peer_id, of_receiver.own).client,
        of_receiver.trust(sender.peer_id, of_sender.own).server,
    )


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def nonblocking(sock: socket.socket, context: ssl.SSLContext, is_sender: bool) -> ssl.SSLSocket:
    sock.setblocking(False)
    tls = context.wrap_socket(
        sock, do_handshake_on_connect=False, server_side=not is_sender, server_hostname="x" if is_sender else None
    )
    while True:
        try:
            tls.do_handshake()
            return tls
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(tls.fileno())


def sslstream(sock: socket.socket, context: ssl.SSLContext, n_bytes: int, is_sender: bool) -> None:
    async def main() -> None:
        raw = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        tls = trio.SSLStream(raw, context, server_hostname="x" if is_sender else None, server_side=not is_sender)
        if is_sender:
            for _ in range(n_bytes // PIECE):
                await tls.send_all(bytes(PIECE))
            await tls.receive_some(1)
        else:
            left = n_bytes
            while left > 0:
                left -= len(await tls.receive_some(PIECE))
            await tls.send_all(DONE)

    trio.run(main)


def plain_socket(sock: socket.socket, context: ssl.SSLContext, n_bytes: int, is_sender: bool) -> None:
    async def main() -> None:
        tls = await nonblocking(sock, context, is_sender)
        room = memoryview(bytearray(PIECE))
        at, end = 0, PIECE if is_sender else n_bytes
        for _ in range(n_bytes // PIECE if is_sender else 1):
            at = 0
            while at < end:
                try:
                    at += tls.send(room[at : at + (1 << 17)]) if is_sender else tls.recv_into(room)
                except ssl.SSLWantReadError:
                    await trio.lowlevel.wait_readable(tls.fileno())
                except ssl.SSLWantWriteError:
                    await trio.lowlevel.wait_writable(tls.fileno())
            await trio.lowlevel.checkpoint()
        if is_sender:
            await trio.lowlevel.wait_readable(tls.fileno())
        else:
            tls.send(DONE)

    trio.run(main)


class Receiver(asyncio.BufferedProtocol):
    """Counts what arrives, and says when it is all."""

    def __init__(self, n_bytes: int, finished: Callable[[], None]) -> None:
        self._room = bytearray(PIECE)
        self._left = n_bytes
        self._finished = finished

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left <= 0:
            self._transport.write(DONE)
            self._finished()


def on_uvloop(sock: socket.socket, context: ssl.SSLContext, n_bytes: int, is_sender: bool) -> None:
    async def main() -> None:
        if is_sender:
            reader, writer = await asyncio.open_connection(sock=sock, ssl=context, server_hostname="x")
            for _ in range(n_bytes // PIECE):
                writer.write(bytes(PIECE))
                await writer.drain()
            await reader.read(1)
        else:
            finished = asyncio.Event()
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: Receiver(n_bytes, finished.set), sock, ssl=context)
            await finished.wait()
            await asyncio.sleep(0.05)

    importlib.import_module("uvloop").run(main())


def as_guest(sock: socket.socket, context: ssl.SSLContext, n_bytes: int, is_sender: bool) -> None:
    if is_sender:
        on_uvloop(sock, context, n_bytes, is_sender)
        return

    async def beside(finished: trio.Event) -> None:
        await finished.wait()
        await trio.sleep(0.05)

    async def host() -> None:
        loop = asyncio.get_running_loop()
        ended, finished = loop.create_future(), trio.Event()
        trio.lowlevel.start_guest_run(
            beside, finished, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=ended.set_result,
            host_uses_signal_set_wakeup_fd=True,
        )  # fmt: skip
        await loop.connect_accepted_socket(lambda: Receiver(n_bytes, finished.set), sock, ssl=context)
        (await ended).unwrap()

    importlib.import_module("uvloop").run(host())


def in_a_thread(sock: socket.socket, context: ssl.SSLContext, n_bytes: int, is_sender: bool) -> None:
    def work() -> None:
        left = n_bytes
        with context.wrap_socket(sock, server_side=not is_sender, server_hostname="x" if is_sender else None) as tls:
            if is_sender:
                for _ in range(left // PIECE):
                    tls.sendall(bytes(PIECE))
                tls.recv(1)
            else:
                room = bytearray(PIECE)
                while left > 0:
                    left -= tls.recv_into(room)
                tls.sendall(DONE)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


RAW = {"sslstream": sslstream, "socket": plain_socket, "uvloop": on_uvloop, "guest": as_guest, "thread": in_a_thread}
OWN = {"libp2p": NetConfig(bulk_lanes=False), "lane": NetConfig()}


def raw_side(kind: str, n_bytes: int, is_sender: bool, context: ssl.SSLContext, where, results) -> None:
    if is_sender:
        sock = socket.create_connection(("127.0.0.1", where.get()))
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            where.put(listener.getsockname()[1])
            sock = listener.accept()[0]
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    cpu, began = cpu_s(), time.perf_counter()
    RAW[kind](sock, context, n_bytes, is_sender)
    results.put((is_sender, cpu_s() - cpu, time.perf_counter() - began))


async def answer_shortly(peer: str, body: bytes) -> bytes:
    return b"ok"


async def echo(peer: str, body: bytes) -> bytes:
    return body


def own_side(kind: str, n_bytes: int, is_sender: bool, where, results) -> None:
    async def main() -> None:
        async with open_network(Identity.generate(), listen=LOOPBACK, config=OWN[kind]) as network:
            network.messenger.serve(answer_shortly)
            body = bytes(BODY)

            async def received(n_bytes: int) -> None:
                while network.messenger.traffic().received_bytes < n_bytes:  # noqa: ASYNC110
                    await trio.sleep(0.02)

            if is_sender:
                peer, addresses = await trio.to_thread.run_sync(where.get)
                network.messenger.add_addresses(peer, addresses)
                await network.messenger.request(peer, body, Priority.ROUND)  # connections are made, windows are open
            else:
                where.put((network.peer_id, network.messenger.addresses()))
                await received(BODY)
            cpu, began = cpu_s(), time.perf_counter()
            n_bodies = n_bytes // BODY
            if is_sender:
                for _ in range(n_bodies):
                    await network.messenger.request(peer, body, Priority.ROUND)
            else:
                await received((1 + n_bodies) * BODY)
            scale = n_bytes / (n_bodies * BODY)
            results.put((is_sender, scale * (cpu_s() - cpu), scale * (time.perf_counter() - began)))
            await trio.sleep(0.5)

    trio.run(main)


def measure(kind: str, n_bytes: int) -> dict[str, float]:
    """One way, between two processes that are forks of this one."""
    context = mp.get_context("fork")
    where, results = context.Queue(), context.Queue()
    workers = []
    for is_sender, tls in zip((True, False), contexts(), strict=True):
        if kind in RAW:
            workers.append(context.Process(target=raw_side, args=(kind, n_bytes, is_sender, tls, where, results)))
        else:
            workers.append(context.Process(target=own_side, args=(kind, n_bytes, is_sender, where, results)))
    for worker in workers:
        worker.start()
    try:
        rows = {row[0]: row[1:] for row in (results.get(timeout=200) for _ in workers)}
    finally:
        for worker in workers:
            worker.join(5)
            worker.kill()
    gib = n_bytes / 2**30
    return {
        "receiver_cpu_s_per_gib": round(rows[False][0] / gib, 2),
        "sender_cpu_s_per_gib": round(rows[True][0] / gib, 2),
        "mib_per_s": round(n_bytes / 2**20 / rows[False][1]),
    }


class Trainer:
    """A training loop: matrix products of STEP_S in the calling thread."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        self._a = torch.ones(256, 256, dtype=torch.float32, device="cpu")
        self._product = lambda: torch.mm(self._a, self._a)
        self._n_products = 1
        self._n_products = max(1, round(STEP_S / min(self.step() for _ in range(200))))

    def step(self) -> float:
        """Seconds that one step took."""
        began = time.perf_counter()
        for _ in range(self._n_products):
            self._product()
        return time.perf_counter() - began


@dataclass(frozen=True)
class Load:
    """Requests that are echoed."""

    bps: float
    """Of both ways together."""
    body_bytes: int

    @property
    def period_s(self) -> float:
        return 2 * 8 * self.body_bytes / self.bps


def exchange_forever(kind: str, load: Load, where, is_on: threading.Event) -> None:
    """The network thread: has requests echoed while it is on."""

    async def main() -> None:
        async with open_network(Identity.generate(), listen=LOOPBACK, config=OWN[kind]) as network:
            peer, addresses = where.get()
            network.messenger.add_addresses(peer, addresses)
            body, due = bytes(load.body_bytes), trio.current_time()
            await network.messenger.request(peer, body, Priority.ROUND)
            while True:
                due = max(due + load.period_s, trio.current_time() - TURN_S)
                await trio.sleep_until(due)
                if is_on.is_set():
                    await network.messenger.request(peer, body, Priority.ROUND)

    with contextlib.suppress(Exception):
        trio.run(main)


def echo_forever(kind: str, where) -> None:
    async def main() -> None:
        async with open_network(Identity.generate(), listen=LOOPBACK, config=OWN[kind]) as network:
            network.messenger.serve(echo)
            where.put((network.peer_id, network.messenger.addresses()))
            await trio.sleep_forever()

    trio.run(main)


def slowdown(kind: str, seconds: float, load: Load) -> dict[str, float | list[float]]:
    """How much longer the steps are with traffic, the median of neighbouring turns; and what the other threads take of a core."""
    context = mp.get_context("fork")
    where = context.Queue()
    other = context.Process(target=echo_forever, args=(kind, where), daemon=True)
    other.start()
    is_on = threading.Event()
    threading.Thread(target=exchange_forever, args=(kind, load, where, is_on), daemon=True).start()
    trainer = Trainer()
    turns: list[float] = []
    shares: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        (is_on.clear if len(turns) % 2 == 0 else is_on.set)()
        trainer.step()
        steps, began, others = [], time.perf_counter(), time.process_time() - time.thread_time()
        while time.perf_counter() < began + TURN_S:
            steps.append(trainer.step())
        turns.append(statistics.fmean(steps))
        shares.append((time.process_time() - time.thread_time() - others) / (time.perf_counter() - began))
    other.kill()
    ratios = [on / off for off, on in zip(turns[::2], turns[1::2], strict=False)]
    spread = statistics.quantiles(ratios, n=4)
    return {
        "slowdown_percent": round(100 * (statistics.median(ratios) - 1), 1),
        "quartiles_percent": [round(100 * (spread[0] - 1), 1), round(100 * (spread[2] - 1), 1)],
        "step_ms_without": round(1000 * statistics.median(turns[::2]), 2),
        "network_core_percent": round(100 * statistics.median(shares[1::2]), 2),
        "network_core_percent_without": round(100 * statistics.median(shares[::2]), 2),
        "turns": len(turns),
    }


def receive_paced(context: ssl.SSLContext, gathers: bool, where, results) -> None:
    if not gathers:
        byte_streams.GATHER_FROM_BYTES = PACED_BYTES

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            where.put(listener.getsockname()[1])
            raw = listener.accept()[0]
        raw.setblocking(False)
        tls = context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
        stream = byte_streams.TlsStream(tls, Sockets())
        await stream.handshake()
        body, n_read, n_reads = memoryview(bytearray(PACED_BYTES)), 0, 0
        cpu, began = cpu_s(), time.perf_counter()
        while n_read < PACED_BYTES:
            n_read += await stream.read_into(body[n_read:])
            n_reads += 1
        results.put((100 * (cpu_s() - cpu) / (time.perf_counter() - began), n_reads))

    trio.run(main)


def send_paced(context: ssl.SSLContext, bps: float, where) -> None:
    """As a link does that is not loopback: one packet after the other."""
    raw = socket.create_connection(("127.0.0.1", where.get()))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    arrived, ready = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(arrived, ready, server_hostname="x")
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            raw.sendall(ready.read())
            arrived.write(raw.recv(1 << 16))
    for start in range(0, PACED_BYTES, RECORD_BYTES):
        tls.write(bytes(min(RECORD_BYTES, PACED_BYTES - start)))
    due = time.perf_counter()
    while ready.pending:
        packet = ready.read(PACKET_BYTES)
        due += 8 * len(packet) / bps
        time.sleep(max(0.0, due - time.perf_counter()))
        raw.sendall(packet)
    time.sleep(0.5)


def paced(gathers: bool, mbit: float) -> dict[str, float | bool]:
    """What a receiver takes of a core while a body arrives in packets."""
    context = mp.get_context("fork")
    where, results = context.Queue(), context.Queue()
    sender, receiver = contexts()
    workers = [
        context.Process(target=receive_paced, args=(receiver, gathers, where, results)),
        context.Process(target=send_paced, args=(sender, 1e6 * mbit, where)),
    ]
    for worker in workers:
        worker.start()
    try:
        percent, n_reads = results.get(timeout=100)
    finally:
        for worker in workers:
            worker.join(5)
            worker.kill()
    return {"gathers": gathers, "core_percent": round(percent, 2), "reads": n_reads}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512, help="sent by each kind")
    parser.add_argument("--kinds", default=",".join((*RAW, *OWN)))
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--slowdown", type=float, default=0.0, metavar="SECONDS", help="of each kind: libp2p, lane")
    parser.add_argument("--mbit", type=float, default=20.0, help="of traffic beside training, both ways together")
    parser.add_argument("--body", type=int, default=100_000, help="bytes of each request and reply of that traffic")
    parser.add_argument("--paced", type=float, default=0.0, metavar="MBIT", help="a body in packets at this rate")
    args = parser.parse_args()
    if args.paced:
        for gathers in (False, True) * args.repeat:
            print(json.dumps(paced(gathers, args.paced)), flush=True)
        return 0
    load = Load(1e6 * args.mbit, args.body)
    kinds = [kind for kind in args.kinds.split(",") if kind not in ("uvloop", "guest") or importlib.util.find_spec("uvloop")]
    for kind in kinds * args.repeat:
        if args.slowdown and kind in OWN:
            print(json.dumps({"kind": kind, **slowdown(kind, args.slowdown, load)}), flush=True)
        elif not args.slowdown:
            print(json.dumps({"kind": kind, **measure(kind, args.mib << 20)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
