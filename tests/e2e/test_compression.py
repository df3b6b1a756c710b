"""Compressed rounds between real processes, over emulated home links."""

import time
from typing import Any

import pytest
from processes import Workers

from tests.waiting import eventually

LINK = "up=20mbit,down=100mbit,rtt=30ms"


@pytest.mark.parametrize(
    "rounds",
    [
        {"links": "cable", "shard_elements": 4096, "local_steps": 2},
        {"push_codec": "sign", "update_codec": "gauss4", "shard_elements": 4096, "outer": "nesterov", "outer_learning_rate": 0.5,
         "outer_momentum": 0.5, "mixing": 0.5, "ramp_steps": 20},
    ],
    ids=["sparse", "one bit, momentum, mixing, ramp"],
)  # fmt: skip
def test_three_peers_end_with_the_same_model(bootstrap: str, workers: Workers, rounds: dict[str, Any]) -> None:
    three = workers.take(3)
    run = f"e2e/{time.time_ns()}"
    for rank, worker in enumerate(three):
        founding = {"rounds": rounds} if rank == 0 else {}
        worker.tell(
            do="train",
            rank=rank,
            run=run,
            peers=[bootstrap],
            n=3,
            width=64,
            also=["round.closed"],
            netem=LINK,
            step_s=0.1,
            **founding,
        )
    for worker in three:
        worker.wait_for("in_run")
    eventually(lambda: all(len(worker.events("round.closed")) > 30 for worker in three))
    for worker in three:
        worker.tell(say="stop")
    results = [worker.result() for worker in three]

    assert {r["digest"] for r in results} == {results[0]["digest"]}
    assert [r["last_failure"] for r in results] == [None] * 3
    assert all(m["averaged_fraction"] > 0 for m in three[0].events("round.closed"))
