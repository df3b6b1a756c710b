"""Several peers killed in the same second, and one that is killed and started again all the time: real processes, SIGKILL."""

import time
from pathlib import Path

import pytest
from processes import Process, Workers
from test_faults import begin, closed, name, report, stop

from tests.waiting import eventually


def survivors_go_on(survivors: list[Process], dead: set[str], seen: dict[int, int]) -> None:
    """The dead are noticed, every shard has new versions, none that two of these held is lost, and all hold the same at the end.

    `seen`: the newest version of each shard that two of them held when the others died.
    """
    killed_at = time.time()
    for worker in survivors:
        waiting = set(dead)
        while waiting:
            gone = worker.wait_for(
                lambda m, waiting=waiting: m.get("event") == "member.changed" and m["peer"] in waiting and m["after"] == "DEAD",
            )
            waiting.discard(gone["peer"])
    for worker in survivors:
        for shard, version in seen.items():

            def has_grown(worker: Process = worker, shard: int = shard, version: int = version) -> bool:
                return any(m["shard"] == shard and m["version"] > version + 1 and m["at"] > killed_at for m in closed(worker))

            eventually(has_grown)
    results = stop(survivors)
    assert {r["digest"] for r in results} == {results[0]["digest"]}
    assert [r["last_failure"] for r in results] == [None] * len(survivors)
    assert not dead & set(results[0]["owners"])
    digests: dict[tuple[int, int], set[str]] = {}
    for worker in survivors:
        versions = [(m["shard"], m["version"], m["digest"]) for m in closed(worker)]
        for shard, version, digest in versions:
            digests.setdefault((shard, version), set()).add(digest)
        for shard in seen:
            grown = [v for s, v, _ in versions if s == shard]
            assert grown == sorted(grown), f"shard {shard} went back"
    assert all(len(made) == 1 for made in digests.values()), "two peers made the same version from different pushes"


def held_by_two(workers: list[Process]) -> dict[int, int]:
    """Shard to the newest version that two of these hold."""
    versions = [report(worker)["versions"] for worker in workers]
    return {shard: sorted(of_shard)[-2] for shard, of_shard in enumerate(zip(*versions, strict=True))}


def test_owner_and_standby_are_killed_together(bootstrap: str, workers: Workers) -> None:
    five = workers.take(5)
    ids = begin(five, name(), bootstrap, n=5)
    for worker in five:
        eventually(lambda worker=worker: len(closed(worker)) > 20)
    first = report(five[0])
    owner = max(ids, key=first["owners"].count)
    shard = first["owners"].index(owner)
    doomed = {owner, first["standbys"][shard]}
    survivors = [worker for worker, peer in zip(five, ids, strict=True) if peer not in doomed]
    seen = held_by_two(survivors)

    for worker in five:
        if worker not in survivors:
            worker.kill()

    survivors_go_on(survivors, doomed, seen)


@pytest.mark.parametrize(("n", "n_dead"), [pytest.param(5, 1, marks=pytest.mark.long), (6, 3)])
def test_a_fifth_or_half_of_all_are_killed_in_the_same_second(n: int, n_dead: int, bootstrap: str, workers: Workers) -> None:
    started = workers.take(n)
    ids = begin(started, name(), bootstrap, n=n)
    for worker in started:
        eventually(lambda worker=worker: len(closed(worker)) > 20)
    survivors, doomed = started[n_dead:], started[:n_dead]
    seen = held_by_two(survivors)

    for worker in doomed:
        worker.kill()

    survivors_go_on(survivors, set(ids[:n_dead]), seen)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("n_times", [2, pytest.param(40, marks=pytest.mark.long)])
def test_a_peer_that_is_killed_and_started_again_every_ten_seconds_stops_nobody(
    n_times: int, bootstrap: str, workers: Workers, tmp_path: Path
) -> None:
    three = workers.take(3)
    run = name()
    begin(three, run, bootstrap, n=3)
    for worker in three:
        eventually(lambda worker=worker: len(closed(worker)) > 10)
    seen = held_by_two(three)
    identities = set()

    for _ in range(n_times):
        (flapping,) = workers.take(1)
        identities |= set(begin([flapping], run, bootstrap, first=3, identity=str(tmp_path / "key")))
        eventually(lambda worker=flapping: closed(worker))
        time.sleep(5)
        before = len(closed(three[0]))
        flapping.kill()
        time.sleep(5)
        eventually(lambda before=before: len(closed(three[0])) > before)

    assert len(identities) == 1
    survivors_go_on(three, identities, seen)
