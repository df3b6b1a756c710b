"""Former members: a peer that is alone tries those that its store remembers, and finds one that is back."""

import os
from pathlib import Path

import pytest
import trio

from legion_p2p.config import PeerConfig
from legion_p2p.core.checkpoint_policy import CheckpointConfig
from legion_p2p.services.run.former import MAX_PAUSE_S
from legion_p2p.services.run.joiner import creating, joining
from legion_p2p.services.run.status import status_of
from legion_p2p.sim.network import World
from tests.parts_of import PARAMS, creation_of, parts_of
from tests.unit.test_joiner import met, stored_at

CONFIG = PeerConfig(checkpoints=CheckpointConfig(every_s=2.0, gather_s=2.0))
NAMES = ("first", "second")


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here needs to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


async def two_stores(folder: Path) -> None:
    """Two members of a run that have left; the store of the first remembers both."""
    async with World() as world:
        with stored_at(folder, "first") as one, stored_at(folder, "second") as other:
            first, second = (
                parts_of(world, name, archive=archive, config=CONFIG) for name, archive in zip(NAMES, (one, other), strict=True)
            )
            async with creating(first, creation_of()) as run:
                await met(world, second, first)
                async with joining(second, "run"):
                    await run.wait_for_members(2)
                    one.remember([(a.peer_id, a.addresses) for a in run.members.roster.everyone()])


async def test_one_that_comes_back_late_is_found_by_the_address_that_the_store_remembers(
    tmp_path: Path, autojump_clock: object
) -> None:
    await two_stores(tmp_path)
    for contacts in (tmp_path / "second").glob("journal/*.peers"):
        contacts.unlink()  # so that only the first one can find the other

    async with World() as world:
        with stored_at(tmp_path, "first") as one, stored_at(tmp_path, "second") as other:
            first = parts_of(world, "first", archive=one, config=CONFIG)
            second = parts_of(world, "second", archive=other, config=CONFIG)
            async with joining(first, "run", PARAMS) as alone:
                await trio.sleep(30)  # checkpoints are written meanwhile, and must not forget the other one
                assert alone.members.roster.alone()
                assert [address.rpartition("/")[2] for address in status_of(alone).former] == [second.network.identity.peer_id]
                async with joining(second, "run", PARAMS):
                    with trio.fail_after(2 * MAX_PAUSE_S):
                        await alone.wait_for_members(2)
                    await trio.sleep(MAX_PAUSE_S)
                    assert status_of(alone).former == ()
