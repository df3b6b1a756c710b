"""What the page in the browser costs a peer: CPU time of the process for each second, with nobody looking and with windows open.

    python benchmarks/page.py --members 6 --shards 12 --seconds 20 --windows 1

A process serves the page of a made-up run, in which a round closes five times a second and a step is told of twice. Windows are
connections that read all that comes; what the browser itself takes is not counted. `load` is what loading starlette and hypercorn
takes, once, when the first window opens.
"""

import argparse
import contextlib
import time
from functools import partial

import trio

from legion_p2p.core.identity import Identity
from legion_p2p.observe.events import Events
from legion_p2p.observe.status import ConnectionStatus, MemberStatus, RunStatus, ShardStatus, Status
from legion_p2p.web.page_blocks import WebPage
from legion_p2p.web.page_server import serve_page
from legion_p2p.web.peer_page import PeerFacts, peer_page
from legion_p2p.web.record import RunRecord

TOKEN = "t" * 43
WARM_UP_S = 3.0


class MadeUpRun:
    """A status that changes, and the events of a run."""

    def __init__(self, n_members: int, n_shards: int) -> None:
        self.ids = [Identity((i + 1).to_bytes(32, "big")).peer_id for i in range(n_members)]
        self.n_shards = n_shards
        self.step = 0
        self.record = RunRecord()
        self.events = Events()

    def record_events(self) -> None:
        self.events.add_sink(self.record)

    def status(self) -> Status:
        step, digest = self.step, f"{self.step:064x}"
        members = tuple(MemberStatus(peer, "home", "ALIVE", step, 5000.0 + step, step, 2.0, True, True) for peer in self.ids)
        owners = [self.ids[i % len(self.ids)] for i in range(self.n_shards)]
        shards = tuple(ShardStatus(i, step, digest, owner, None) for i, owner in enumerate(owners))
        connections = tuple(ConnectionStatus(peer, "direct", None, 0.02, 1e7) for peer in self.ids[1:])
        return Status(
            peer_id=self.ids[0], addresses=(), run=RunStatus("bafkrei", "made-up"), region="home", state="training",
            step=step, members=members, shards=shards, sent_bytes=step, received_bytes=step, last_round=None, errors=(),
            connections=connections,
        )  # fmt: skip

    def page(self) -> WebPage:
        return peer_page(self.status(), self.record, PeerFacts(1_000_000), now=time.time())

    async def go_on(self) -> None:
        while True:
            for i in range(5):
                self.events.emit(
                    "round.closed", shard=i, version=self.step, n_included=2, n_expected=3, averaged_fraction=0.9,
                    owner=self.ids[0], failed=[{"peer_id": self.ids[-1], "reason": "did not push in time"}],
                )  # fmt: skip
            for _ in range(2):
                self.events.emit("step", step=self.step, tokens=1, loss=2.0, tokens_per_s=5000.0)
            self.events.emit("sample", step=self.step, swarm_loss=2.0, swarm_tokens_per_s=9.0, sent_bytes=1, received_bytes=1)
            self.step += 1
            await trio.sleep(1.0)


async def look(port: int) -> None:
    request = f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request.encode())
        async for _ in stream:
            pass


async def measure(n_members: int, n_shards: int, seconds: float, n_windows: int) -> None:
    async with trio.open_nursery() as nursery:
        run = MadeUpRun(n_members, n_shards)
        nursery.start_soon(run.go_on)
        without = await ms_per_s(seconds)
        run.record_events()
        port = int((await nursery.start(partial(serve_page, run.page, token=TOKEN, ports=(0,)))).rpartition(":")[2])
        idle = await ms_per_s(seconds)
        began = time.process_time()
        for _ in range(n_windows):
            nursery.start_soon(look, port)
        await trio.sleep(WARM_UP_S)
        load_ms = 1000 * (time.process_time() - began)
        watched = await ms_per_s(seconds)
        print("| members | shards | windows | recorded, ms/s | watched, ms/s | load, ms |\n|---|---|---|---|---|---|")
        print(f"| {n_members} | {n_shards} | {n_windows} | {idle - without:.2f} | {watched - idle:.2f} | {load_ms:.0f} |")
        nursery.cancel_scope.cancel()


async def ms_per_s(seconds: float) -> float:
    began, cpu = time.perf_counter(), time.process_time()
    await trio.sleep(seconds)
    return 1000 * (time.process_time() - cpu) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--members", type=int, default=6)
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--windows", type=int, default=1)
    given = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        trio.run(measure, given.members, given.shards, given.seconds, given.windows)


if __name__ == "__main__":
    main()
