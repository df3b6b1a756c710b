"""A peer that patches its own program, among real processes: the others go on, end with the same bytes, and each names it."""

import time

from processes import Workers

from tests.waiting import eventually

ROUNDS = {"local_steps": 2, "shard_elements": 1024, "verify": "strict"}
TRAINING = {"n": 4, "width": 64, "step_s": 0.3, "also": ["round.closed"]}


def test_an_owner_that_publishes_lies_is_named_by_all_and_the_others_go_on(bootstrap: str, workers: Workers) -> None:
    four = workers.take(4)
    *honest, liar = four
    run = f"e2e/{time.time_ns()}/liars"
    for rank, worker in enumerate(four):
        what = "train_and_publish_lies" if worker is liar else "train"
        rounds = {"rounds": ROUNDS} if rank == 0 else {}
        worker.tell(do=what, rank=rank, run=run, peers=[bootstrap], **TRAINING, **rounds)
    ids = [worker.wait_for("in_run")["peer_id"] for worker in four]
    eventually(lambda: bool(liar.events("lied")))

    for worker in honest:
        eventually(lambda worker=worker: [e["peer"] for e in worker.events("owner.excluded")] == [ids[-1]])
    liar.kill()
    before = [len(worker.events("round.closed")) for worker in honest]
    for worker, n in zip(honest, before, strict=True):
        eventually(lambda worker=worker, n=n: len(worker.events("round.closed")) > n + 10)

    for worker in honest:
        worker.tell(say="stop")
    results = [worker.result() for worker in honest]
    assert len({result["digest"] for result in results}) == 1
    assert not any(e["peer"] != ids[-1] for worker in honest for e in worker.events("owner.excluded"))
