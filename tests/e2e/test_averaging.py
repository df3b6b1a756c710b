"""Averages over processes: exact, the same bits everywhere, and honest about who is missing."""

import itertools
import time

import numpy as np
import pytest
import torch
from processes import Workers
from workers import hex_of, loss_of, model_of, tensors_of

from tests.waiting import eventually

_names = itertools.count()


def values_of(hexed: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(hexed), dtype=np.float32)


def name() -> str:
    return f"e2e/{time.time_ns()}/{next(_names)}"


@pytest.mark.parametrize(("codec", "bound"), [("fp32", 1e-6), ("int8", 0.05)])
def test_four_processes_end_with_the_mean_and_the_same_bytes(bootstrap: str, workers: Workers, codec: str, bound: float) -> None:
    run, four = name(), workers.take(4)

    for seed, worker in enumerate(four):
        worker.tell(do="average", seed=seed, run=run, peers=[bootstrap], new_run=seed == 0, n_peers=4, codec=codec)
    results = [worker.result() for worker in four]

    mean = sum(values_of(hex_of(tensors_of(seed))).astype(np.float64) for seed in range(4)) / 4
    assert len(mean) == 1 + 1001 + 7 * 13 * 3
    for result in results:
        assert np.abs(values_of(result["bytes"]) - mean).max() <= bound
        assert result["bytes"] == results[0]["bytes"]
        assert result["digest"] == results[0]["digest"]
        assert result["averaged_fraction"] == 1.0
        assert result["failed"] == {}
        # Of 4 peers each pushes at least part of its values, and receives those of others.
        assert result["sent_bytes"] > 0 and result["received_bytes"] > 0


def test_a_peer_that_dies_before_its_contribution_is_named_and_the_others_agree(bootstrap: str, workers: Workers) -> None:
    run, four = name(), workers.take(4)
    for seed, worker in enumerate(four):
        # The last one waits for a fifth that never comes: it takes part, and never contributes.
        n_peers = 4 if seed < 3 else 5
        worker.tell(do="average", seed=seed, run=run, peers=[bootstrap], new_run=seed == 0, n_peers=n_peers, codec="fp32")

    doomed = four[3]
    doomed.wait_for("run.joined")
    for worker in four[:3]:
        eventually(lambda worker=worker: len({m["peer"] for m in worker.events("member.changed") if m["after"] == "ALIVE"}) == 3)
    # The owners' rounds wait for it as long as it lives: the others have pushed by now, and are not done.
    time.sleep(3)
    assert not [w for w in four[:3] if any("done" in m for m in w.said)]
    doomed.kill()
    results = [worker.result() for worker in four[:3]]

    mean = sum(values_of(hex_of(tensors_of(seed))).astype(np.float64) for seed in range(3)) / 3
    for result in results:
        assert np.abs(values_of(result["bytes"]) - mean).max() <= 1e-6
        assert result["digest"] == results[0]["digest"]
        assert result["averaged_fraction"] == pytest.approx(3 / 4)
        assert len(result["failed"]) == 1
        assert "died" in next(iter(result["failed"].values()))


def test_too_few_peers_are_an_error_not_an_average(workers: Workers) -> None:
    (one,) = workers.take(1)

    one.tell(do="average", seed=0, run=name(), peers=[], new_run=True, n_peers=2, codec="fp32", gather_s=1.0)

    assert one.failure() == {"failed": "JoinError", "text": "1 of 2 peers came within 1 s"}


def test_synchronous_peers_equal_one_process_with_the_batches_of_all(bootstrap: str, workers: Workers) -> None:
    n, steps, run = 3, 20, name()
    three = workers.take(n)

    for rank, worker in enumerate(three):
        worker.tell(do="data_parallel", rank=rank, n=n, steps=steps, run=run, peers=[bootstrap])
    results = [worker.result() for worker in three]

    model = model_of(seed=0)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(steps):
        sgd.zero_grad()
        (sum(loss_of(model, rank, step) for rank in range(n)) / n).backward()
        sgd.step()
    expected = values_of(hex_of(model.parameters()))
    start = values_of(hex_of(model_of(seed=0).parameters()))
    assert np.abs(expected - start).max() > 0.01  # it did learn something
    for result in results:
        assert set(result["fractions"]) == {1.0}
        assert np.abs(values_of(result["own"]) - expected).max() <= 1e-4
        assert np.abs(values_of(result["parameters"]) - expected).max() <= 1e-4
        assert result["digest"] == results[0]["digest"]


def test_a_swarm_of_one_trains_bit_for_bit_like_plain_torch(workers: Workers) -> None:
    (one,) = workers.take(1)

    one.tell(do="lone", steps=60)
    result = one.result()

    assert result["swarm"] == result["plain"]
    assert result["flushed"]
    assert min(result["versions"]) >= 5  # it did push: every third step, as fast as they were taken
    print(f"60 steps: {result['plain_s']:.3f} s plain, {result['swarm_s']:.3f} s in a swarm of one (joining included)")
