"""`legion-peer --role helper`: a member that trains nothing keeps a run alive. Real processes, real sockets."""

import os
import signal
import time
from pathlib import Path

from processes import UNHURRIED, Process
from test_leaving import owned

from tests.forking import ForkServer
from tests.waiting import eventually


def start(forks: ForkServer, folder: Path, i: int, *which: str) -> Process:
    return Process(
        "-m", "legion_p2p.cli.peer", *which, *UNHURRIED, "--json", "--threads", "1", "--listen", "/ip4/127.0.0.1/tcp/0",
        "--identity", str(folder / f"{i}.key"), "--no-status", forks=forks,
    )  # fmt: skip


def test_a_helper_owns_what_others_train_and_hands_it_to_the_next_that_comes(tmp_path: Path, forks: ForkServer) -> None:
    name = f"e2e/{time.time_ns()}"
    founding = (
        "--new-run", name, "--preset", "xxs", "--local-steps", "3", "--batch", "1", "--store", "none",
        "--placement", "stable",  # of four shards each of two owns at least one, whatever their keys
    )  # fmt: skip
    peers = [start(forks, tmp_path, 0, *founding)]
    try:
        address = peers[0].wait_for("run.join_with")["command"].rpartition(" ")[2]
        helper = start(forks, tmp_path, 1, "--run", name, "--role", "helper", "--initial-peers", address)
        peers.append(helper)
        through_helper = helper.wait_for("run.join_with")["command"].rpartition(" ")[2]
        eventually(lambda: owned(helper) and len(peers[0].events("round.closed")) > 10)
        assert {e["n_expected"] for e in peers[0].events("round.closed")[-4:]} == {1}  # nobody waits for a helper

        os.kill(peers[0].pid, signal.SIGINT)
        assert peers[0].wait() == 130, peers[0].story()
        eventually(lambda: len(owned(helper)) == 4)
        last = max(e["version"] for e in helper.events("round.closed"))

        late = start(forks, tmp_path, 2, "--run", name, "--initial-peers", through_helper, "--steps", "12", "--finish-together",
                     "--role", "client", "--store", "none")  # fmt: skip
        peers.append(late)
        assert late.wait() == 0, late.story()
        assert not owned(late)
        assert max(e["version"] for e in late.events("round.closed")) > last  # it went on from what the helper had
        os.kill(helper.pid, signal.SIGTERM)
        assert helper.wait() == 143, helper.story()
        finished = helper.events("run.finished")[0]
        assert (finished["step"], finished["digest"]) == (0, late.events("run.finished")[0]["digest"])
        assert helper.events("checkpoint.stored")
    finally:
        for peer in peers:
            peer.close()
