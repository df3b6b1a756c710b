"""Who may join, who may not, and what they are told; and what a step costs."""

import itertools
import time

import pytest
from processes import Process, Workers
from test_faults import address_of, begin, stop

_names = itertools.count()
DEAD = "/ip4/127.0.0.1/tcp/{}/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"


def name() -> str:
    return f"e2e/{time.time_ns()}/{next(_names)}"


@pytest.fixture
def run(workers: Workers) -> tuple[str, Process, str, Process]:
    """A run, its only member and its address, and somebody who may want to join."""
    member, other = workers.take(2)
    run = name()
    begin([member], run, None)
    return run, member, address_of(member), other


def test_a_model_that_differs_is_refused_with_the_first_parameter_that_does(run: tuple[str, Process, str, Process]) -> None:
    name, member, address, other = run

    other.tell(do="join", run=name, peers=[address], width=32)
    misfit = other.failure()
    other.tell(do="join", run=name, peers=[address], width=64, extra=3)
    too_large = other.failure()

    assert misfit["failed"] == too_large["failed"] == "IncompatibleModelError"
    assert misfit["text"] == "parameter 0 differs: this model has 0.weight [32, 8], the run has 0.weight [64, 8]"
    assert "only this model has 5.weight [3, 1]" in too_large["text"]
    stop([member])


def test_a_name_that_nobody_knows_is_an_error_that_says_how_to_found_it(run: tuple[str, Process, str, Process]) -> None:
    name, member, address, other = run

    other.tell(do="join", run=name + "x", peers=[address], width=64, search_s=1.0)
    failure = other.failure()

    assert failure["failed"] == "UnknownRunError"
    assert repr(name + "x") in failure["text"] and "NewRun(" in failure["text"] and "--new-run" in failure["text"]
    stop([member])


def test_dead_initial_peers_are_named_and_one_that_lives_is_enough(run: tuple[str, Process, str, Process]) -> None:
    name, member, address, other = run
    dead = [DEAD.format(1), DEAD.format(2)]

    other.tell(do="join", run=name, peers=dead, width=64)
    failure = other.failure()
    other.tell(do="join", run=name, peers=[*dead, address], width=64)
    joined = other.result()

    assert failure["failed"] == "NoContactError"
    for address in dead:
        assert f"{address}: connection refused" in failure["text"]
    assert len(joined["digest"]) == 64 and len(joined["members"]) >= 2
    stop([member])


def test_the_same_name_is_not_founded_twice(run: tuple[str, Process, str, Process]) -> None:
    name, member, address, other = run

    other.tell(do="train", rank=1, run=name, peers=[address], width=64, new_run=True, steps=1)
    failure = other.failure()

    assert failure["failed"] == "RunExistsError"
    assert "join it" in failure["text"]
    stop([member])


def test_a_step_waits_little_for_the_swarm(bootstrap: str, workers: Workers) -> None:
    four = workers.take(4)
    begin(four, name(), bootstrap, n=4, steps=60, step_s=0.05)

    results = [worker.result() for worker in four]

    blocked = [round(r["blocked_fraction"], 4) for r in results]
    print(f"blocked fraction of 4 peers on this machine: {blocked}")
    assert max(blocked) < 0.5
    assert {r["digest"] for r in results} == {results[0]["digest"]}
    assert all(r["steps"] == 60 for r in results)
