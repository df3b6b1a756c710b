"""legion-peer as one of several processes: by which variables it knows, and what it refuses."""

import contextlib

import pytest

from legion_p2p.cli.peer_options import job_of
from legion_p2p.cli.torchrun import follow, rank_here, worker_of
from legion_p2p.errors import UsageError

LAUNCHED = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_one_of_several_processes_knows_its_rank(launched: pytest.MonkeyPatch) -> None:
    assert rank_here() == 1


@pytest.mark.parametrize(
    ("name", "value"), [("WORLD_SIZE", "1"), ("WORLD_SIZE", ""), ("WORLD_SIZE", "many"), ("RANK", ""), ("MASTER_ADDR", None)]
)
def test_a_process_that_is_alone_has_none(name: str, value: str | None, launched: pytest.MonkeyPatch) -> None:
    launched.delenv(name) if value is None else launched.setenv(name, value)

    assert rank_here() is None


def test_a_helper_has_no_use_for_several_processes(launched: pytest.MonkeyPatch) -> None:
    job = job_of({"run": "some", "initial_peers": (), "role": "helper"})

    with pytest.raises(UsageError, match="--role helper trains nothing: start it without torchrun"):
        follow(job)
    with contextlib.ExitStack() as others, pytest.raises(UsageError, match="start it without torchrun"):
        worker_of(job, others)
