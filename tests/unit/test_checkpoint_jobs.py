"""Jobs that buttons of the page begin: names of folders, links, and an end when the peer leaves."""

import threading
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.cids import Cid
from legion_p2p.errors import StoreError
from legion_p2p.net.offload import ThreadOffload
from legion_p2p.web.checkpoint_jobs import (
    MAX_NAME_CHARS,
    MAX_PROBLEM_CHARS,
    MAX_RESULTS,
    CheckpointJobs,
    CheckpointTools,
    ExportCheckpoint,
    RunningJob,
    VerifyCheckpoint,
    export_name,
)
from tests.waiting import PATIENCE_S

CID = Cid.of(b"manifest", "dag-cbor")
TEXT = str(CID)
STORE: Any = None


async def inline(fn: Any, *args: Any) -> Any:
    return fn(*args)


def jobs_of(tools: CheckpointTools, exports: Path | None = None, offload: Any = inline) -> CheckpointJobs:
    return CheckpointJobs(tools, STORE, offload, exports)


async def result_of(jobs: CheckpointJobs, wish: Any) -> str:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(jobs.run_forever)
        jobs.begin(wish, CID, "name", 100)
        with trio.fail_after(PATIENCE_S):
            while jobs.running is not None:  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    return jobs.result(TEXT)


@given(st.text(max_size=200), st.integers(0, 10**12))
def test_the_folder_of_an_export_is_one_plain_name_whatever_the_run_is_called(run: str, step: int) -> None:
    name = export_name(run, step, TEXT)

    assert Path(name).name == name and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not name.startswith("-") and len(name) <= MAX_NAME_CHARS + 40 and name.endswith(TEXT[-8:])


def test_two_checkpoints_of_one_run_have_folders_of_their_own() -> None:
    assert export_name("Org/My Run!", 7, TEXT) == f"org-my-run-step-7-{TEXT[-8:]}"
    assert export_name("../..", 7, TEXT) == f"run-step-7-{TEXT[-8:]}"


async def test_what_a_job_fails_with_is_told_in_short_and_the_next_one_runs(autojump_clock: object) -> None:
    def fail(store: object, cid: Cid, folder: Path, progress: object) -> str:
        raise StoreError("no space\x1b[2J" + "x" * 1000)

    jobs = jobs_of(CheckpointTools(lambda store, cid, progress: ["one", "two"], fail), Path("/nowhere"))

    told = await result_of(jobs, ExportCheckpoint(TEXT))
    assert told.startswith("failed: no space") and "\x1b" not in told and len(told) < MAX_PROBLEM_CHARS + 20
    assert await result_of(jobs, VerifyCheckpoint(TEXT)) == "damaged: one, and 1 more problems"


async def test_a_mistake_in_a_job_is_told_and_ends_nothing_else(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    def broken(store: object, cid: Cid, progress: object) -> list[str]:
        raise ZeroDivisionError("oh")

    jobs = jobs_of(CheckpointTools(broken, lambda *more: "run"))

    assert await result_of(jobs, VerifyCheckpoint(TEXT)) == "failed: ZeroDivisionError('oh')"
    assert "a job of the page failed" in caplog.text


async def test_an_export_does_not_follow_a_link_that_stands_in_its_place(tmp_path: Path, autojump_clock: object) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "name").symlink_to(elsewhere)
    written: list[Path] = []
    tools = CheckpointTools(lambda *more: [], lambda store, cid, folder, progress: written.append(folder) or "run")

    told = await result_of(jobs_of(tools, tmp_path), ExportCheckpoint(TEXT))

    assert "is a link" in told and written == []


async def test_results_are_bounded(autojump_clock: object) -> None:
    jobs = jobs_of(CheckpointTools(lambda *more: [], lambda *more: "run"))
    for i in range(3 * MAX_RESULTS):
        jobs._results[str(i)] = "x"

    assert len(jobs._results) == MAX_RESULTS


def test_a_job_says_how_far_it_is_and_never_more_than_all() -> None:
    job = RunningJob(VerifyCheckpoint(TEXT), 200)

    job.advance(50)
    assert job.text() == "verifying: 25.0 %"
    job.advance(500)
    assert job.text() == "verifying: 100 %"


async def test_a_peer_that_leaves_waits_for_one_shard_and_not_for_the_job() -> None:
    begun, n_done = threading.Event(), [0]

    def verify(store: object, cid: Cid, progress: Any) -> list[str]:
        begun.set()
        for _ in range(10_000):
            progress(1)
            n_done[0] += 1
            threading.Event().wait(0.01)
        return []

    jobs = jobs_of(CheckpointTools(verify, lambda *more: "run"), offload=ThreadOffload(1))
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(jobs.run_forever)
            jobs.begin(VerifyCheckpoint(TEXT), CID, "name", 10_000)
            await trio.to_thread.run_sync(begun.wait)
            nursery.cancel_scope.cancel()

    assert 0 < n_done[0] < 1000 and jobs.running is None


@pytest.mark.parametrize("kind", [VerifyCheckpoint, ExportCheckpoint])
def test_a_wish_holds_a_cid_and_nothing_else(kind: Any) -> None:
    assert kind.__struct_fields__ == ("cid",)
