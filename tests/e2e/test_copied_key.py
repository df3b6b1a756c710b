"""Two processes with copies of one key: both say so, and the newer one ends with a clear error."""

import shutil
import time
from pathlib import Path

from processes import UNHURRIED, Process

from legion_p2p.cli.failures import NOT_JOINED
from legion_p2p.store.identity import load_or_create_identity
from tests.forking import ForkServer


def start(forks: ForkServer, key: Path, *which: str) -> Process:
    return Process(
        "-m", "legion_p2p.cli.peer", *which, *UNHURRIED, "--json", "--no-status", "--threads", "1",
        "--listen", "/ip4/127.0.0.1/tcp/0",
        "--identity", str(key), forks=forks,
    )  # fmt: skip


def test_both_say_so_and_the_newer_one_ends(tmp_path: Path, forks: ForkServer) -> None:
    name = f"e2e/{time.time_ns()}"
    key, copied = tmp_path / "peer.key", tmp_path / "copied.key"
    load_or_create_identity(str(key)).release()
    shutil.copy(key, copied)
    idle = ("--wait-for-members", "9")  # only the older of the two trains
    founder = ("--new-run", name, "--preset", "xxs", "--local-steps", "3", "--batch", "1", *idle)
    peers = [start(forks, tmp_path / "founder.key", *founder)]
    try:
        address = peers[0].wait_for("run.join_with")["command"].split()[-1]
        peers.append(start(forks, key, "--run", name, "--initial-peers", address))
        older = peers[-1]
        older.wait_for("run.joined")
        time.sleep(10)  # so that it has announced itself several times
        peers.append(start(forks, copied, "--run", name, "--initial-peers", address, *idle))
        newer = peers[-1]

        code = newer.wait()
        told = older.wait_for("member.same_key")["text"]

        assert code == NOT_JOINED, newer.story()
        assert "runs with this peer's key: this one is the newer and ends" in newer.stderr()
        assert "--identity FILE" in newer.stderr() and "Traceback" not in newer.stderr()
        assert "runs with this peer's key: that one is the newer and should end" in told
        n_steps = len(older.events("step"))
        older.wait_for("step")
        older.wait_for(lambda message: len(older.events("step")) > n_steps)  # it goes on
        assert older.popen.poll() is None and peers[0].popen.poll() is None
    finally:
        for peer in peers:
            peer.close()
