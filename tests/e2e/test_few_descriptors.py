"""A peer that may open few files, and a crowd that connects to it."""

import re
import socket
from pathlib import Path

from processes import UNHURRIED, Process

from tests.forking import ForkServer
from tests.waiting import PATIENCE_S

FEW = 120
LIMITED = (
    f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({FEW}, {FEW})); sys.argv[0] = 'legion-peer'\n"
    "from legion_p2p.cli.peer import main; main()"
)


def test_a_peer_says_once_that_it_turns_connections_away_and_trains_on(tmp_path: Path, forks: ForkServer) -> None:
    peer = Process(
        "-c", LIMITED, "--new-run", "few", "--preset", "xxs", "--batch", "1", "--json", "--no-status", "--threads", "1",
        "--listen", "/ip4/127.0.0.1/tcp/0", "--identity", str(tmp_path / "key"), "--store", str(tmp_path / "store"), *UNHURRIED,
        forks=forks,
    )  # fmt: skip
    opened: list[socket.socket] = []
    try:
        port = int(re.search(r"/tcp/(\d+)/", peer.wait_for("run.join_with")["command"])[1])
        for _ in range(2 * FEW):
            opened.append(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S))

        told = peer.wait_for("network.scarce")["text"]
        n_steps = len(peer.events("step"))
        peer.wait_for(lambda message: len(peer.events("step")) > n_steps + 1)

        assert "ulimit -n" in told and str(FEW) in told
        assert len(peer.events("network.scarce")) == 1 and "Traceback" not in peer.stderr()
    finally:
        for each in opened:
            each.close()
        peer.close()
