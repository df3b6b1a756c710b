"""One peer that trains alone, killed and started again: a real process and a real disk, with no update of anybody to go by."""

import time
from pathlib import Path

from processes import UNHURRIED, Process

from tests.forking import ForkServer
from tests.waiting import eventually

WRITTEN_S = 3.0  # after which what it made is on the disk, however busy the machine


def start(forks: ForkServer, folder: Path, *which: str) -> Process:
    return Process(
        "-m", "legion_p2p.cli.peer", *which, *UNHURRIED, "--json", "--no-status", "--threads", "1",
        "--listen", "/ip4/127.0.0.1/tcp/0",
        "--identity", str(folder / "key"), "--store", str(folder / "store"), "--checkpoint-every-s", "10000", forks=forks,
    )  # fmt: skip


def made(peer: Process, until: float) -> dict[int, int]:
    """The newest version of each shard that it had made then."""
    return {event["shard"]: event["version"] for event in peer.events("round.closed") if event["at"] < until}


def test_a_peer_that_trains_alone_goes_on_where_it_was_killed(tmp_path: Path, forks: ForkServer) -> None:
    name = f"e2e/{time.time_ns()}"
    peer = start(forks, tmp_path, "--new-run", name, "--preset", "xxs", "--local-steps", "3", "--batch", "1")
    try:
        eventually(lambda: made(peer, time.time() - WRITTEN_S))
        eventually(lambda: min(made(peer, time.time() - WRITTEN_S).values()) > 10)
        stored = made(peer, time.time() - WRITTEN_S)
        peer.kill()
        steps = max(event["step"] for event in peer.events("step") if event["at"] < time.time() - WRITTEN_S)
    finally:
        peer.close()

    again = start(forks, tmp_path, "--run", name)
    try:
        assert again.wait_for("run.resuming")["version"] >= max(stored.values())
        assert again.wait_for("run.resumed")["step"] >= steps // 2
        again.wait_for("step")
        assert not again.events("data.begins_anew") and not again.events("checkpoint.journal_damaged")
        eventually(lambda: made(again, time.time()).keys() == stored.keys())
        first = {}
        for event in again.events("round.closed"):
            first.setdefault(event["shard"], event["version"])
        assert all(first[shard] > version for shard, version in stored.items())
    finally:
        again.close()
