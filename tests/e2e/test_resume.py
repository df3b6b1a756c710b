"""All peers of a run killed at once, and started again: real processes, real disks, nobody else to ask."""

import math
import time
from pathlib import Path
from typing import Any

from processes import UNHURRIED, Process

from legion_p2p.core.cids import Cid
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.identity import load_or_create_identity
from legion_p2p.train.checkpoint import Checkpoint
from tests.forking import ForkServer
from tests.ports import free_ports
from tests.waiting import eventually

N_SHARDS = 4
WRITTEN_S = 2.0  # after which an update is on the disk, however busy the machine


def start(forks: ForkServer, folder: Path, i: int, port: int, *which: str) -> Process:
    return Process(
        "-m", "legion_p2p.cli.peer", *which, *UNHURRIED, "--json", "--no-status", "--threads", "1",
        "--listen", f"/ip4/127.0.0.1/tcp/{port}",
        "--identity", str(folder / f"{i}.key"), "--store", str(folder / f"store-{i}"), "--checkpoint-every-s", "3",
        forks=forks,
    )  # fmt: skip


def closed(peer: Process, until: float = math.inf) -> dict[int, tuple[int, str]]:
    """Of each shard the newest version that it held then, and the digest."""
    newest: dict[int, tuple[int, str]] = {}
    for event in peer.events("round.closed"):
        if event["at"] < until:
            newest[event["shard"]] = max(newest.get(event["shard"], (0, "")), (event["version"], event.get("digest", "")))
    return newest


def peer_id(folder: Path, i: int) -> str:
    identity: Any = load_or_create_identity(str(folder / f"{i}.key"))
    identity.release()
    return str(identity.peer_id)


def test_a_run_whose_peers_were_all_killed_goes_on_from_their_disks(tmp_path: Path, forks: ForkServer) -> None:
    name, ports = f"e2e/{time.time_ns()}", free_ports(3)
    address = f"/ip4/127.0.0.1/tcp/{ports[0]}/p2p/{peer_id(tmp_path, 0)}"
    peers = [start(forks, tmp_path, 0, ports[0], "--new-run", name, "--preset", "xxs", "--local-steps", "3", "--batch", "1")]
    try:
        peers[0].wait_for("run.created")
        peers += [start(forks, tmp_path, i, ports[i], "--run", name, "--initial-peers", address) for i in (1, 2)]
        for peer in peers[1:]:
            peer.wait_for("run.joined")
        eventually(lambda: all(len(closed(peer, time.time() - WRITTEN_S)) == N_SHARDS for peer in peers))
        stored_until = time.time() - WRITTEN_S
        for peer in peers:
            peer.kill()
        held = [closed(peer, stored_until) for peer in peers]
    finally:
        for peer in peers:
            peer.close()
    newest = {shard: sorted(one[shard] for one in held)[-2] for shard in range(N_SHARDS)}  # that two had
    history: dict[tuple[int, int], set[str]] = {}
    for peer in peers:
        for e in peer.events("round.closed"):
            history.setdefault((e["shard"], e["version"]), set()).add(e["digest"])
    steps = [max(event["step"] for event in peer.events("step")) for peer in peers]

    peers = [start(forks, tmp_path, i, ports[i], "--run", name) for i in range(3)]
    try:
        began = time.time()
        resuming = [peer.wait_for("run.resuming") for peer in peers]
        resumed = [peer.wait_for("run.resumed") for peer in peers]
        eventually(lambda: all(all(closed(p).get(s, (0,))[0] > v for s, (v, _) in newest.items()) for p in peers))

        print(f"resumed within {max(event['at'] for event in resumed) - began:.1f} s of the start of the processes")
        assert len({event["run"] for event in resumed}) == 1
        assert all(event["manifest"].startswith("bafy") for event in resuming)
        assert min(event["step"] for event in resumed) > max(steps) // 2
        eventually(lambda: all(p.events("round.closed")[-1]["n_expected"] == 3 for p in peers[:3]))
        stored = peers[0].wait_for("checkpoint.stored")["cid"]
        fetch = Process(
            "-m", "legion_p2p.cli.ctl", "checkpoint", "fetch", stored, "--initial-peers", address, "--json",
            "--store", str(tmp_path / "fetched"), forks=forks,
        )  # fmt: skip
        peers.append(fetch)
        fetched = fetch.wait_for(lambda message: message.get("cid") == stored)["fetched"]
        assert fetched["n_blocks"] > N_SHARDS and address.rpartition("/")[2] in fetched["from_whom"] and not fetched["dropped"]
        with BlockStore(tmp_path / "fetched") as store:
            assert sum(len(shard) for shard in Checkpoint(store, Cid.parse(stored)).shards()) > 100_000
        for peer in peers[:3]:
            for event in peer.events("round.closed"):  # one that was behind catches up; nobody makes another version
                at = event["shard"], event["version"]
                assert at[1] > newest[at[0]][0] or event["digest"] in history[at]
    finally:
        for peer in peers:
            peer.close()
