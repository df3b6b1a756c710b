"""legion-peer as one of several processes: by which variables it knows, and what it refuses."""

import contextlib
import signal
from collections.abc import Iterator

import pytest
import torch

from legion_p2p.cli import torchrun
from legion_p2p.cli.failures import DONE
from legion_p2p.cli.peer_options import job_of
from legion_p2p.cli.torchrun import follow, rank_here, worker_of
from legion_p2p.config import Training
from legion_p2p.errors import UsageError
from legion_p2p.train.rank_work import device_of_rank

LAUNCHED = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1"}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


@pytest.mark.usefixtures("launched", "own_handlers")
def test_a_signal_ends_a_process_that_waits_for_the_others_and_none_that_follows_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: list[object] = []

    def look() -> None:
        handlers.append({signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)})

    class Ranks:
        def follow(self, device: str, job: Training) -> None:
            look()

        def close(self) -> None:
            pass

    def waits(job: object) -> tuple[Ranks, str]:
        look()
        return Ranks(), "cpu"

    monkeypatch.setattr(torchrun, "_ranks", waits)

    assert follow(job_of({"run": "some", "initial_peers": ()})) == DONE
    assert handlers == [{signal.SIG_DFL}, {signal.SIG_IGN}]


def test_each_process_takes_the_cpu_or_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (device_of_rank("cpu"), device_of_rank("cuda")) == ("cpu", "cuda:1")
    for shared in ("cuda:0", "mps"):
        with pytest.raises(UsageError, match=f"device '{shared}': .*: cpu, or cuda"):
            device_of_rank(shared)

    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="this machine has 2, so start at most 2 with torchrun here"):
        device_of_rank("cuda")
