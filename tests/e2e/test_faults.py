"""Peers that die, sleep, come late, or leave: real processes, real signals, real sockets."""

import itertools
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from processes import HERE, Process, Workers, listening_ports

from tests.forking import ForkServer
from tests.waiting import eventually

_names = itertools.count()
ROUNDS = {"local_steps": 2, "shard_elements": 1024}
WIDTH = 64  # about 4800 parameters in 5 shards
STEP_S = 0.5  # a round a second of five shards: six peers leave a machine of two cores time for other tests

Start = Callable[..., Process]


def name() -> str:
    return f"e2e/{time.time_ns()}/{next(_names)}"


def begin(workers: list[Process], run: str, bootstrap: str | None, n: int = 0, first: int = 0, **more: Any) -> list[str]:
    """Let them train in `run` until they are told to stop; their peer ids. A founder that knows nobody founds at once."""
    for rank, worker in enumerate(workers, first):
        founder = rank == 0
        rounds = {"rounds": ROUNDS} if founder else {}
        peers = [] if bootstrap is None else [bootstrap]
        how = {"step_s": STEP_S, **rounds, **more}
        worker.tell(do="train", rank=rank, run=run, peers=peers, n=n, width=WIDTH, also=["round.closed"], **how)
    return [worker.wait_for("in_run")["peer_id"] for worker in workers]


def address_of(worker: Process) -> str:
    """Of the peer that it began."""
    return worker.events("in_run")[-1]["addresses"][0]


def closed(worker: Process) -> list[dict[str, Any]]:
    return worker.events("round.closed")


def report(worker: Process) -> dict[str, Any]:
    worker.tell(say="report")
    return worker.wait_for("report")


def stop(workers: list[Process]) -> list[dict[str, Any]]:
    """End training everywhere; all serve on until all hold the same."""
    for worker in workers:
        worker.tell(say="stop")
    return [worker.result() for worker in workers]


def test_the_shards_of_a_killed_peer_grow_again(bootstrap: str, workers: Workers) -> None:
    four = workers.take(4)
    ids = begin(four, name(), bootstrap, n=4)
    for worker in four:
        eventually(lambda worker=worker: len(closed(worker)) > 20)
    owners = report(four[0])["owners"]
    doomed = max(ids, key=owners.count)
    victim = four[ids.index(doomed)]
    survivors = [worker for worker in four if worker is not victim]
    owned = [shard for shard, owner in enumerate(owners) if owner == doomed]
    assert listening_ports({victim.pid})

    victim.kill()  # rounds follow each other without a pause: some are open at any moment
    killed_at = time.time()
    deaths = []
    for worker in survivors:
        died = worker.wait_for(lambda m: m.get("event") == "member.changed" and m["peer"] == doomed and m["after"] == "DEAD")
        deaths.append(died["at"])

    assert owned
    standstills = []
    for worker in survivors:
        for shard in owned:
            # Nothing was lost of what it had published: versions go on from there.
            standstills.append(worker_grew(worker, shard, max(deaths)) - killed_at)
    results = stop(survivors)
    assert {r["digest"] for r in results} == {results[0]["digest"]}
    assert [r["last_failure"] for r in results] == [None] * 3
    assert doomed not in set(results[0]["owners"])
    assert victim.left_files() == []
    assert victim.session() == set()  # or one of them would still listen on its ports
    print(f"declared dead within {max(deaths) - killed_at:.1f} s; it had owned {len(owned)} shards")
    print(f"they grew again {min(standstills):.1f} to {max(standstills):.1f} s after the kill")


def worker_grew(worker: Process, shard: int, after: float) -> float:
    """When this shard had its second next version: the first one after `after` may have been under way."""

    def later() -> list[float]:
        return [m["at"] for m in closed(worker) if m["shard"] == shard and m["at"] > after]

    return eventually(later)[0]


def test_a_peer_that_was_stopped_for_half_a_minute_catches_up(bootstrap: str, workers: Workers) -> None:
    three = workers.take(3)
    begin(three, name(), bootstrap, n=3)
    sleeper = three[2]
    eventually(lambda: len(closed(sleeper)) > 10)

    os.kill(sleeper.pid, signal.SIGSTOP)
    slept_from = time.monotonic()
    n_before = len(closed(three[0]))
    time.sleep(max(0.0, slept_from + 30 - time.monotonic()))
    eventually(lambda: len(closed(three[0])) > n_before + 50)  # the others do not wait for it
    os.kill(sleeper.pid, signal.SIGCONT)

    there = max(report(three[0])["versions"])
    eventually(lambda: max((m["version"] for m in closed(sleeper)), default=0) > there)
    results = stop(three)
    assert {r["digest"] for r in results} == {results[0]["digest"]}
    assert results[0]["versions"] == results[1]["versions"] == results[2]["versions"]


def test_a_late_joiner_holds_the_common_model_before_its_first_push(bootstrap: str, workers: Workers) -> None:
    *three, late = workers.take(4)
    run = name()
    begin(three, run, bootstrap, n=3)
    eventually(lambda: min((m["version"] for m in closed(three[0])[-5:]), default=0) >= 10)

    begin([late], run, bootstrap, first=3)
    joined = late.events("run.joined")[0]
    marks = late.events("in_run")[0]["marks"]
    own = late.events("in_run")[0]["own"]

    assert joined["n_donors"] > 1
    assert len(own) == len(marks) > 1 and all(version >= 10 for version, _ in marks.values())
    held = {(int(shard), version, digest[:16]) for shard, (version, digest) in marks.items()}
    held |= {(shard, version, digest[:16]) for shard, (version, digest) in enumerate(own)}  # in the model, before the first step

    def known() -> set[tuple[int, int, str]]:
        return {(m["shard"], m["version"], m["digest"]) for worker in three for m in closed(worker)}

    eventually(lambda: held <= known())  # it may have made the newest of them itself, as an owner: then they hear of it
    results = stop([*three, late])
    assert {r["digest"] for r in results} == {results[0]["digest"]}


@pytest.mark.parametrize(
    ("how", "code"), [("end", 0), ("exit", 7), ("raise", 1), ("forever", 130), ("forever-quietly", 130), ("kill", -9)]
)
def test_every_way_out_leaves_nothing_behind(workers: Workers, script: Start, forks: ForkServer, how: str, code: int) -> None:
    (other,) = workers.take(1)
    run = name()
    begin([other], run, None)
    words = (str(HERE / "loop.py"), "forever" if how == "kill" else how, run, address_of(other))
    leaver = script(*words) if how in ("end", "raise") else script(*words, forks=forks)
    peer = leaver.wait_for("in_run")["peer_id"]
    leaver.wait_for("tenth")
    # libp2p, the status and the page
    eventually(lambda: len(listening_ports({leaver.pid})) == 3)

    leaver.tell(go="on")
    if how.startswith("forever"):
        leaver.popen.send_signal(signal.SIGINT)
    elif how == "kill":
        leaver.popen.kill()
    # One that leaves in order may have been suspected before, as is anybody on a busy machine.
    ends = {"SUSPECT", "DEAD", "absent"} if how == "kill" else {"DEAD", "absent"}
    left = other.wait_for(lambda m: m.get("event") == "member.changed" and m["peer"] == peer and m["after"] in ends)
    got = leaver.wait()

    assert got in (code, -signal.SIGINT if code == 130 else code), leaver.story()
    assert left["after"] == ("SUSPECT" if how == "kill" else "absent")
    assert leaver.session() == set()  # or one of them would still listen on its ports
    assert leaver.left_files() == []
    if how == "raise":
        assert "ValueError: a bug of the user's" in leaver.stderr()
    elif how in ("end", "exit"):  # on a busy machine handing over may take long enough to be told of
        assert all(line.startswith("legion_p2p: handing over ") for line in leaver.stderr().splitlines())
    stop([other])
