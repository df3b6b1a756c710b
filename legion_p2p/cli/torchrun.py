"""`legion-peer` as several processes that torchrun starts: rank 0 is the peer, the others compute for it (train/rank_work.py)."""

import contextlib
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from legion_p2p.cli.failures import DONE
from legion_p2p.core.roles import Role
from legion_p2p.errors import UsageError

if TYPE_CHECKING:
    from legion_p2p.cli.peer_options import Job
    from legion_p2p.train.outcome import Outcome
    from legion_p2p.train.rank_work import RankWork


def rank_here() -> int | None:
    """Of this process among those that torchrun has started; None: it is alone."""
    size, rank = (os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK"))
    is_one_of_many = size.isdecimal() and int(size) > 1 and rank.isdecimal() and "MASTER_ADDR" in os.environ
    return int(rank) if is_one_of_many else None


def worker_of(job: "Job", others: contextlib.ExitStack) -> "Callable[..., Outcome]":
    """What does the job; on `others` stands how the other processes end. Raises: UsageError."""
    if not Role(job.peer.role).trains:
        if rank_here() is not None:
            raise UsageError(f"--role {job.peer.role} trains nothing: start it without torchrun")
        from legion_p2p.train.helper import run_helper

        return run_helper
    from legion_p2p.train.job import run_job

    if rank_here() is None:
        return run_job
    ranks, _ = _ranks(job)
    others.callback(ranks.close)
    return partial(run_job, ranks=ranks)


def follow(job: "Job") -> int:
    """What another rank than 0 does.

    A signal ends it at once while it waits for the others, because rank 0 may have failed before it came to them. From then on it
    ends when rank 0 does, so signals, which all of them get, are left to that.
    """
    if not Role(job.peer.role).trains:
        raise UsageError(f"--role {job.peer.role} trains nothing: start it without torchrun")
    _on_signals(signal.SIG_DFL)  # Python's own handler of SIGINT would come after the wait
    ranks, device = _ranks(job)
    _on_signals(signal.SIG_IGN)
    try:
        ranks.follow(device, job.training)
    finally:
        ranks.close()
    return DONE


def _on_signals(handler: signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _ranks(job: "Job") -> "tuple[RankWork, str]":
    """All processes of this peer, and the device of this one. Waits for the others. Raises: UsageError."""
    import torch

    from legion_p2p.train.compute import choose_device
    from legion_p2p.train.rank_work import RankWork, device_of_rank

    if job.training.threads:
        torch.set_num_threads(job.training.threads)
    device = device_of_rank(choose_device(job.training.device))
    return RankWork.of_this_job(device), device
