"""Verifying and exporting a checkpoint at the press of a button of the page: one at a time, beside training.

    IDLE -> RUNNING   one of the checkpoints that this peer keeps is chosen, and nothing runs
    RUNNING -> IDLE   it is done, or failed: what came of it stands beside the checkpoint
    RUNNING -> IDLE   the peer leaves: the job stops at its next shard

The page names a checkpoint and nothing else. Where an export is written follows from the checkpoint and from the folder that the
owner of the peer has named, never from the request.
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import trio

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.cids import MAX_CID_CHARS, Cid
from legion_p2p.errors import LegionError, StoreError, UsageError
from legion_p2p.files.paths import shown
from legion_p2p.observe import human
from legion_p2p.services.ports import Offload
from legion_p2p.store.blocks import BlockStore

MAX_RESULTS = 16  # that are remembered: a peer keeps a few checkpoints
MAX_PROBLEM_CHARS = 200
MAX_NAME_CHARS = 40
_UNSAFE = re.compile(r"[^a-z0-9]+")

log = logging.getLogger("legion_p2p.web")

Progress = Callable[[int], None]

CidText = Annotated[str, msgspec.Meta(max_length=MAX_CID_CHARS)]


class VerifyCheckpoint(msgspec.Struct, frozen=True, tag="verify"):
    """Read every block of it, and rebuild its parameters."""

    cid: CidText


class ExportCheckpoint(msgspec.Struct, frozen=True, tag="export"):
    """Write it as safetensors."""

    cid: CidText


CheckpointWish = VerifyCheckpoint | ExportCheckpoint


class CheckpointTools(msgspec.Struct, frozen=True):
    """What can be done with a stored checkpoint. Each waits for the disk and computes, and tells of bytes as they are done."""

    verify: Callable[[BlockStore, Cid, Progress], list[str]]
    """What is wrong with it."""
    export: Callable[[BlockStore, Cid, Path, Progress], str]
    """Write it into that folder; how its parameters are named. Raises: LegionError."""


class StoppedJob(Exception):
    """The peer leaves."""


class RunningJob:
    """What runs now. `advance` is called in a thread."""

    def __init__(self, wish: CheckpointWish, total_bytes: int) -> None:
        self.wish = wish
        self.done_bytes = 0
        self.is_stopped = False
        self._total_bytes = max(1, total_bytes)

    def advance(self, n_bytes: int) -> None:
        """Raises: StoppedJob."""
        if self.is_stopped:
            raise StoppedJob
        self.done_bytes += n_bytes

    def text(self) -> str:
        """How far it is."""
        doing = "verifying" if isinstance(self.wish, VerifyCheckpoint) else "exporting"
        return f"{doing}: {human.percent_text(min(1.0, self.done_bytes / self._total_bytes))}"


class CheckpointJobs:
    """Runs them for one peer."""

    def __init__(self, tools: CheckpointTools, store: BlockStore, offload: Offload, exports: Path | None) -> None:
        """`offload`: of its own, so that nothing waits for a job. `exports`: below it exports are written; None: none are."""
        self.exports = exports
        self.running: RunningJob | None = None
        self._tools = tools
        self._store = store
        self._offload = offload
        self._results: BoundedMap[str, str] = BoundedMap(MAX_RESULTS)
        self._wanted, self._wishes = trio.open_memory_channel[tuple[RunningJob, Cid, str]](1)

    def begin(self, wish: CheckpointWish, cid: Cid, name: str, total_bytes: int) -> None:
        """Begin with it, in the background. `name`: of the folder of an export. Raises: UsageError, where it cannot be now."""
        if self.running is not None:
            raise UsageError("one is verified or exported already: wait until that is done")
        if isinstance(wish, ExportCheckpoint) and self.exports is None:
            raise UsageError("this peer exports nothing from the page: its user can name a folder with --exports FOLDER")
        self.running = RunningJob(wish, total_bytes)
        self._wanted.send_nowait((self.running, cid, name))

    def result(self, cid: str) -> str:
        """What came of the newest job with it, or how far one is; empty: nothing was asked."""
        if self.running is not None and self.running.wish.cid == cid:
            return self.running.text()
        return self._results.get(cid, "")

    async def run_forever(self) -> None:
        """Do what is wanted, one after the other."""
        while True:
            job, cid, name = await self._wishes.receive()
            try:
                self._results[job.wish.cid] = await self._run(job, cid, name)
            finally:
                self.running = None

    async def _run(self, job: RunningJob, cid: Cid, name: str) -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_at_the_end, job)
            try:
                return await self._offload(self._work, job, cid, name)
            except StoppedJob:
                await trio.lowlevel.checkpoint_if_cancelled()
                return "stopped"
            finally:
                nursery.cancel_scope.cancel()
        raise AssertionError("a block that returns, or raises")

    def _work(self, job: RunningJob, cid: Cid, name: str) -> str:
        """In a thread; what to tell of it."""
        try:
            if isinstance(job.wish, VerifyCheckpoint):
                problems = self._tools.verify(self._store, cid, job.advance)
                return f"damaged: {_told(problems)}" if problems else "whole: every block and digest is right"
            assert self.exports is not None  # or it was refused
            folder = self.exports / name
            if folder.is_symlink():  # the folder is the owner's; whatever a link in it leads to need not be
                raise StoreError(f"{shown(folder)} is a link")
            names = self._tools.export(self._store, cid, folder, job.advance)
            return f"exported to {shown(folder)}, parameters named as in {names}"
        except LegionError as failed:
            return f"failed: {human.clean(str(failed), MAX_PROBLEM_CHARS)}"
        except StoppedJob:
            raise
        except Exception as broken:  # whatever a button finds must not end the peer that trains
            log.exception("a job of the page failed")
            return f"failed: {human.clean(repr(broken), MAX_PROBLEM_CHARS)}"


async def _stop_at_the_end(job: RunningJob) -> None:
    try:
        await trio.sleep_forever()
    finally:
        job.is_stopped = True


def export_name(run: str, step: int, cid: str) -> str:
    """The name of the folder of an export: of plain letters, whatever the run is called."""
    slug = _UNSAFE.sub("-", run.lower()).strip("-")[:MAX_NAME_CHARS].strip("-") or "run"
    return f"{slug}-step-{step}-{cid[-8:]}"


def _told(problems: list[str]) -> str:
    more = f", and {len(problems) - 1} more problems" if len(problems) > 1 else ""
    return human.clean(problems[0], MAX_PROBLEM_CHARS) + more
