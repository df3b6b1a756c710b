"""Stores that lack blocks: it is said of which checkpoint, how many, and what to do."""

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from legion_p2p.core.cids import Cid
from legion_p2p.errors import UnknownRunError
from legion_p2p.services.run.joiner import joining
from legion_p2p.sim.network import World
from legion_p2p.store.archive import Archive
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoint_summary import MAX_LOSSES_TOLD, Loss, losses, losses_text
from tests.checkpoint_of import FOUNDER, Run, checkpointed
from tests.forking import ForkServer
from tests.parts_of import parts_of


def lose(folder: Path, lost: Callable[[Cid], bool]) -> int:
    """Delete the files of these blocks; how many there were."""
    files = [file for file in folder.glob("blocks/?/*") if lost(Cid.parse(file.name))]
    for file in files:
        file.unlink()
    return len(files)


def stored(folder: Path) -> tuple[Run, Cid, Cid]:
    """A store with two checkpoints, the second one newer."""
    with BlockStore(folder) as store:
        run, first = checkpointed(store)
        run.update(store, 1)
        return run, first, run.publish(store, 20, str(first))


def losses_in(folder: Path, run: str) -> list[Loss]:
    with BlockStore(folder, read_only=True) as store:
        return losses(store, run)


def test_a_whole_store_has_lost_nothing(tmp_path: Path) -> None:
    stored(tmp_path)

    assert losses_in(tmp_path, "tiny") == [] and losses_text([], "store") == ""


def test_the_blocks_that_each_checkpoint_lacks_are_counted_the_newest_first(tmp_path: Path) -> None:
    run, first, second = stored(tmp_path)

    n_lost = lose(tmp_path, lambda cid: cid.codec == "raw" and cid != Cid.of(run.signed.spec))

    found = losses_in(tmp_path, "tiny")
    assert [(one.cid, one.step) for one in found] == [(str(second), 20), (str(first), 10)]
    assert found[0].n_missing == n_lost > found[1].n_missing > 0
    assert losses_in(tmp_path, str(Cid.of(run.signed.spec))) == found and losses_in(tmp_path, "another") == []


def test_a_checkpoint_that_cannot_say_of_which_run_it_is_counts_as_well(tmp_path: Path) -> None:
    run, first, second = stored(tmp_path)

    lose(tmp_path, lambda cid: cid in (second, Cid.of(run.signed.spec)))

    assert losses_in(tmp_path, "tiny") == [Loss(str(first), 10, 1), Loss(str(second), None, 1)]


def test_the_words_name_checkpoints_counts_and_the_command_that_helps() -> None:
    found = [Loss("bafynew", 20, 7), *[Loss(f"bafy{i}", 10, 1) for i in range(MAX_LOSSES_TOLD)], Loss("bafyold", None, 1)]

    told = losses_text(found, "/my store")

    assert "bafynew of step 20 lacks 7 blocks or more, bafy0 of step 10 lacks 1 block or more" in told and "and 2 more" in told
    assert "legion-ctl checkpoint fetch bafynew --store '/my store' --initial-peers ADDR" in told and "bafyold" not in told


async def test_a_search_that_finds_nobody_says_what_the_store_lacks(tmp_path: Path, autojump_clock: object) -> None:
    run, _, second = stored(tmp_path)
    lose(tmp_path, lambda cid: cid.codec == "raw" and cid != Cid.of(run.signed.spec))

    async with World() as world:
        unknown = pytest.raises(UnknownRunError, match=f"{second} of step 20 lacks")
        with closing(Archive(BlockStore(tmp_path), FOUNDER)) as archive, unknown as told:
            async with joining(parts_of(world, "first", archive=archive), "tiny", search_s=1.0):
                pass
    assert "--new-run" not in str(told.value)  # a second run of that name is not the remedy


def test_legion_peer_says_it_where_not_even_the_name_is_left(tmp_path: Path, forks: ForkServer) -> None:
    _, _, second = stored(tmp_path / "store")
    lose(tmp_path / "store", lambda cid: cid.codec == "raw")
    words = ["--run", "tiny", "--store", str(tmp_path / "store"), "--identity", "none", "--no-status"]

    done = forks.run([sys.executable, "-m", "legion_p2p.cli.peer", *words], capture_output=True, text=True, timeout=120)

    assert done.returncode == 2 and f"{second} of step 20 lacks" in done.stderr, done.stderr
    assert "holds no checkpoint of it" not in done.stderr
