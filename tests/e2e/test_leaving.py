"""Ctrl+C: a peer gives its shards away before it says goodbye, and the others go on. Real processes, real sockets."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from processes import UNHURRIED, Process

from tests.forking import ForkServer
from tests.waiting import eventually


def start(forks: ForkServer, folder: Path, i: int, *which: str) -> Process:
    return Process(
        "-m", "legion_p2p.cli.peer", *which, *UNHURRIED, "--json", "--threads", "1", "--listen", "/ip4/127.0.0.1/tcp/0",
        "--identity", str(folder / f"{i}.key"), "--store", "none", "--no-status", forks=forks,
    )  # fmt: skip


def owned(peer: Process) -> set[int]:
    """The shards that it owns, by what it said last of each."""
    last: dict[int, str] = {}
    for event in list(peer.said):
        if event.get("event") in ("shard.owned", "shard.handed_over"):
            last[event["shard"]] = event["event"]
    return {shard for shard, what in last.items() if what == "shard.owned"}


def test_a_peer_that_is_interrupted_gives_its_shards_away_and_then_leaves(
    tmp_path: Path, bootstrap: str, forks: ForkServer
) -> None:
    name = f"e2e/{time.time_ns()}"
    founding = ("--new-run", name, "--preset", "xxs", "--local-steps", "3", "--batch", "1")
    peers = [start(forks, tmp_path, 0, *founding, "--initial-peers", bootstrap)]
    try:
        peers[0].wait_for("run.created")
        peers += [start(forks, tmp_path, i, "--run", name, "--initial-peers", bootstrap) for i in (1, 2)]
        for peer in peers[1:]:
            peer.wait_for("run.joined")
        eventually(lambda: all(len(p.events("round.closed")) > 20 for p in peers) and any(owned(p) for p in peers))
        leaver = next(p for p in peers if owned(p))  # of four shards any one of three may own none
        others = [p for p in peers if p is not leaver]

        os.kill(leaver.pid, signal.SIGINT)
        code = leaver.wait()

        assert code == 130, leaver.story()
        order = [event["event"] for event in leaver.said]
        assert owned(leaver) == set() and not leaver.events("shard.handover_failed")
        assert max(i for i, event in enumerate(order) if event == "shard.handed_over") < order.index("run.left")
        left_at = leaver.events("run.left")[0]["at"]
        print(f"left {left_at - leaver.events('run.finished')[0]['at']:.2f} s after the end of training")
        eventually(lambda: all(p.events("round.closed")[-1]["at"] > left_at + 1 for p in others))
        assert not any(gone["after"] == "DEAD" for p in others for gone in p.events("member.changed"))
        next_owners: list[dict[str, Any]] = [event for p in others for event in p.events("shard.owned")]
        assert {event["shard"] for event in leaver.events("shard.handed_over")} <= {event["shard"] for event in next_owners}
    finally:
        for peer in peers:
            peer.close()
