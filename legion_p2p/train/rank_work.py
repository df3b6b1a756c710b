"""`legion-peer` under torchrun: rank 0 has the peer, and the other processes compute their part of each of its batches.

    rank 0 is about to train    -> tells the others the run's specification, by which they build the same model
    rank 0 makes a step         -> its parameters and the batch go to all, each computes the gradients of its windows, and their
                                   sum comes back
    rank 0 has ended, or failed -> tells the others to end
    a process is gone           -> the next collective of the others fails; where rank 0 is left, its peer leaves in order

A step is that of one process with the whole batch: only rank 0 has an optimizer, reads text, and knows of the swarm. Batches are
small beside the model, and the model passes twice a step, as where gradients are averaged.
"""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from legion_p2p.config import Training
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import ClosedError, UsageError
from legion_p2p.train.compute import Compute
from legion_p2p.train.described import model_of
from legion_p2p.train.ranks import RankGroup

BEGIN, STEP, END = 1, 2, 3


def device_of_rank(device: str) -> str:
    """The device of this process, of all those of its machine. Raises: UsageError, if there is none for each."""
    if device.startswith("cpu"):
        return device
    if device != "cuda":
        raise UsageError(f"device {device!r}: several processes that are one peer take the CPU, or a GPU each: cpu, or cuda")
    gpu, n_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if gpu >= n_gpus:
        raise UsageError(f"a GPU for each process: this machine has {n_gpus}, so start at most {n_gpus} with torchrun here")
    return f"cuda:{gpu}"


class RankWork:
    """The processes of one peer, as each of them sees the others."""

    def __init__(self, group: RankGroup) -> None:
        """`group`: over it rank 0 says what is to be done."""
        self.size = group.size
        self._group = group
        self._is_in_step = False

    @classmethod
    def of_this_job(cls, device: str) -> Self:
        """Waits until all are there."""
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        group = RankGroup.of_this_job()
        if group is None:
            raise UsageError("one process has nobody to share its work with: start several with torchrun, or leave it out")
        return cls(group)

    def check(self, spec: RunSpec) -> None:
        """Raises: UsageError, if several processes cannot be one peer of this run."""
        if spec.sharding == "full":
            told = "start a peer for each GPU, without torchrun; they hold its model together"
            raise UsageError(f"run {spec.name!r} is sharded: {told}")
        if spec.inner.batch < self.size:
            raise UsageError(
                f"a step of run {spec.name!r} has {spec.inner.batch} windows, too few for {self.size} processes: start at most "
                f"{spec.inner.batch} with torchrun"
            )

    def close(self) -> None:
        """The last of it, at any rank: where rank 0 has ended, the others do. In the middle of a step that failed here, they find
        rank 0 gone."""
        if self._group.leads and not self._is_in_step:
            with contextlib.suppress(ClosedError):  # they are gone
                self._group.tell(END)
        with contextlib.suppress(RuntimeError):  # the same
            dist.destroy_process_group()

    # rank 0

    def begin(self, spec: RunSpec) -> None:
        """From now on steps of this run come. Raises: ClosedError, if another is gone."""
        self._group.tell(BEGIN)
        self._group.share(spec)

    def step(self, compute: Compute, x_BT: Tensor, y_BT: Tensor) -> float:
        """Add the gradients of the batch's mean loss to the parameters'; that loss. Raises: ClosedError, if another is gone."""
        self._is_in_step = True
        self._group.tell(STEP, *x_BT.shape)
        loss = self._part(compute, torch.stack([x_BT, y_BT]).to(compute.device, torch.int64))
        self._is_in_step = False
        return loss

    # the others

    def follow(self, device: str, job: Training) -> None:
        """Compute parts of batches until rank 0 ends.

        Raises: ClosedError, if it is gone; IncompatibleModelError, UsageError, where its model cannot be trained here.
        """
        compute: Compute | None = None
        while True:
            command, n_windows, n_tokens, *_ = self._group.told()
            if command == BEGIN:
                compute = Compute(model_of(self._group.share()), device, job)
            elif command == STEP and compute is not None:
                self._part(compute, torch.zeros((2, n_windows, n_tokens), dtype=torch.int64, device=device))
                compute.model.module.zero_grad()
            else:
                return

    # all

    def _part(self, compute: Compute, xy: Tensor) -> float:
        """This process's windows of a batch; at rank 0 the gradients of all, and the loss."""
        parameters = list(compute.model.module.parameters())
        for tensor in (xy, *(p.detach() for p in parameters)):
            self._together(partial(dist.broadcast, tensor, src=0))
        x, y = (whole.tensor_split(self.size)[self._group.rank] for whole in xy)
        loss = self._group.sum(compute.backward(x, y, xy.shape[1]))
        for p in parameters:
            if p.requires_grad:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                self._together(partial(dist.reduce, p.grad, dst=0))
        return loss

    def _together(self, collective: Callable[[], object]) -> None:
        """Raises: ClosedError, if another process is gone."""
        try:
            collective()
        except RuntimeError as broken:
            raise self._group.lost() from broken
