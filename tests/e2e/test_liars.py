"""A peer that patches its own program, among real processes: the others go on, end with the same bytes, and each names it."""

import time
from typing import Any

import pytest
from processes import Process, Workers

from tests.waiting import eventually

TRAINING = {"n": 4, "width": 64, "step_s": 0.3, "also": ["round.closed"]}
LIES = {
    "train_and_publish_lies": ({"verify": "strict"}, "owner.excluded"),
    "train_and_push_lies": ({"screening": "trend", "shard_elements": 8192}, "member.discounted"),
}
"""What the liar does, in what run, and the event by which others name it. Of thirty shards it owns one, surely."""


def named(worker: Process, event: str) -> set[Any]:
    return {said["peer"] for said in worker.events(event)}


@pytest.mark.parametrize("lie", LIES)
def test_a_peer_that_lies_is_named_by_all_and_the_others_go_on(lie: str, bootstrap: str, workers: Workers) -> None:
    special, event = LIES[lie]
    four = workers.take(4)
    *honest, liar = four
    run = f"e2e/{time.time_ns()}/liars"
    for rank, worker in enumerate(four):
        rounds = {"rounds": {"local_steps": 2, "shard_elements": 160, **special}} if rank == 0 else {}
        worker.tell(do=lie if worker is liar else "train", rank=rank, run=run, peers=[bootstrap], **TRAINING, **rounds)
    ids = [worker.wait_for("in_run")["peer_id"] for worker in four]

    for worker in honest:
        eventually(lambda worker=worker: named(worker, event) == {ids[-1]})
    liar.kill()
    before = [len(worker.events("round.closed")) for worker in honest]
    for worker, n in zip(honest, before, strict=True):
        eventually(lambda worker=worker, n=n: len(worker.events("round.closed")) > n + 10)

    for worker in honest:
        worker.tell(say="stop")
    results = [worker.result() for worker in honest]
    assert len({result["digest"] for result in results}) == 1
    assert all(named(worker, "owner.excluded") <= {ids[-1]} for worker in honest)
