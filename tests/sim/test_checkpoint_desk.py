"""The checkpoints of a page: which there are, who has them, and what its buttons do; over real stores, in virtual time."""

import json
import os
from pathlib import Path

import pytest
import trio
from safetensors.torch import load_file

from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.messages.base import MAX_COUNT
from legion_p2p.core.messages.blocks import MAX_CHECKPOINTS, Blocks, Checkpoints, GetBlocks, GetCheckpoints
from legion_p2p.errors import UsageError
from legion_p2p.observe import human
from legion_p2p.services.checkpoint.holders import MAX_MANIFESTS_FETCHED, CheckpointHolders
from legion_p2p.sim.swarm import SimPeer, inline
from legion_p2p.train.checkpoint_tools import CHECKPOINT_TOOLS
from legion_p2p.web.checkpoint_desk import ASK_EVERY_S, LOOK_EVERY_S, CheckpointDesk
from legion_p2p.web.checkpoint_jobs import CheckpointJobs
from tests.sim.test_checkpoints import swarm_in


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def desk_of(peer: SimPeer, exports: Path | None = None) -> CheckpointDesk:
    assert peer.archive is not None
    run = peer.engine
    jobs = CheckpointJobs(CHECKPOINT_TOOLS, peer.archive.store, inline, exports)
    return CheckpointDesk(run.me, run.spec, peer.archive, CheckpointHolders(run.ctx, run.members).look, jobs, inline)


def wish(kind: str, cid: str, **more: object) -> bytes:
    return json.dumps({"type": kind, "cid": cid, **more}).encode()


async def test_it_lists_what_is_kept_with_size_and_who_has_how_much_of_it(tmp_path: Path, autojump_clock):
    async with swarm_in(tmp_path) as swarm:
        a, b = [await swarm.add(name) for name in "ab"]
        await trio.sleep(25)
        desk = desk_of(a)

        await desk.look()
        table = desk.table()

        here = [row for row, key in zip(table.rows, table.keys, strict=True) if key]
        assert [Cid.parse(row[3]) for row in here] == list(a.archive.kept) and here[0][0] > here[-1][0] > 0
        assert all(row[2] > 0 and row[4].startswith("this peer") and row[5] == "" for row in here)
        theirs = [row for row, key in zip(table.rows, table.keys, strict=True) if not key]
        assert {Cid.parse(row[3]) for row in theirs} == set(b.archive.kept)
        there = desk_of(b)
        await there.look()
        own = {row[3]: row for row in there.table().rows if row[4].startswith("this peer")}
        assert [row[0] for row in theirs] == sorted((row[0] for row in own.values()), reverse=True)
        assert all(row[:2] == own[row[3]][:2] and row[4] == b.id[-8:] for row in theirs)
        assert all(row[2] == f"says {human.bytes_text(own[row[3]][2])}" for row in theirs)
        assert f"{b.id[-8:]} (" in here[0][4] and "% of its blocks" in here[0][4]
        assert "others: unknown" in here[-1][4]
        assert "1 of 1 members" in table.note


async def test_members_are_asked_only_while_somebody_looks(tmp_path: Path, autojump_clock):
    async with swarm_in(tmp_path) as swarm, trio.open_nursery() as nursery:
        a, b = [await swarm.add(name) for name in "ab"]
        await trio.sleep(15)
        a.hung = b.hung = True  # what there is to ask for is there
        desk, asked = desk_of(a), []
        look = desk._ask

        async def counted(*what):
            asked.append(trio.current_time())
            return await look(*what)

        desk._ask = counted
        nursery.start_soon(desk.run_forever)
        await trio.sleep(3 * ASK_EVERY_S)
        assert asked == [] and "being asked" in desk.table().note

        for _ in range(int(2 * ASK_EVERY_S)):
            desk.table()
            await trio.sleep(1)
        assert len(asked) == 2 and asked[1] - asked[0] >= ASK_EVERY_S
        nursery.cancel_scope.cancel()


async def test_a_button_verifies_and_exports_below_the_folder_that_the_owner_named(tmp_path: Path, autojump_clock):
    exports = tmp_path / "exports"
    async with swarm_in(tmp_path / "stores") as swarm, trio.open_nursery() as nursery:
        a = await swarm.add("a")
        await trio.sleep(15)
        desk = desk_of(a, exports)
        nursery.start_soon(desk.run_forever)
        desk.table()
        await trio.sleep(LOOK_EVERY_S + 1)
        table = desk.table()
        cid = table.keys[0]
        assert [action.label for action in table.actions] == ["Verify", "Export"]

        assert desk.obey(wish("verify", cid))
        assert desk.table().rows[0][5] == "verifying: 0 %"
        with pytest.raises(UsageError, match="one is verified or exported already"):
            desk.obey(wish("export", cid))
        await trio.sleep(0.1)
        assert desk.table().rows[0][5] == "whole: every block and digest is right"

        assert desk.obey(wish("export", cid, folder="/etc", out="../../x"))
        await trio.sleep(0.1)
        (made,) = exports.iterdir()
        assert made.name == f"sim-step-{table.rows[0][0]}-{cid[-8:]}" and made.name in desk.table().rows[0][5]
        assert load_file(made / "model.safetensors")["w"].numel() == swarm.numel
        nursery.cancel_scope.cancel()


async def test_a_damaged_block_is_found_and_told(tmp_path: Path, autojump_clock):
    async with swarm_in(tmp_path) as swarm, trio.open_nursery() as nursery:
        a = await swarm.add("a")
        await trio.sleep(15)
        desk = desk_of(a)
        nursery.start_soon(desk.jobs.run_forever)
        await desk.look()
        newest = max(desk._kept.values(), key=lambda one: one.step)
        leaf = next(cid for cid in newest.blocks if cid.codec == "raw")
        path = next((tmp_path / "a" / "blocks").rglob(str(leaf)))
        path.chmod(0o600)
        data = path.read_bytes()
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])

        desk.obey(wish("verify", str(newest.cid)))
        await trio.sleep(0.1)

        assert desk.jobs.result(str(newest.cid)).startswith("damaged: ")
        nursery.cancel_scope.cancel()


async def test_wishes_of_an_attacker_do_nothing(tmp_path: Path, autojump_clock):
    async with swarm_in(tmp_path / "stores") as swarm:
        a, b = [await swarm.add(name) for name in "ab"]
        await trio.sleep(25)
        desk = desk_of(a)
        await desk.look()
        mine, theirs = desk.table().keys[0], str(b.archive.kept[0])

        for other in ("../../etc/passwd", "", theirs, mine.upper(), mine + "/..", f" {mine}", "/ipfs/" + mine):
            with pytest.raises(UsageError, match="keeps no such checkpoint"):
                desk.obey(wish("verify", other))
        with pytest.raises(UsageError, match="its user can name a folder with --exports"):
            desk.obey(wish("export", mine))
        for garbage in (
            b"",
            b"{}",
            b"[" * 2000,
            b"\xff",
            wish("erase", mine),
            wish("verify", "x" * 101),
            b'{"type":"verify","cid":7}',
        ):
            assert not desk.obey(garbage)
        assert desk.jobs.running is None


async def test_what_members_say_of_checkpoints_is_checked_and_bounded(tmp_path: Path, autojump_clock, monkeypatch):
    """One sends another block than was asked for, one names many checkpoints, one says an absurd size: none harms the page."""
    async with swarm_in(tmp_path) as swarm:
        a, b = [await swarm.add(name) for name in "ab"]
        await trio.sleep(25)
        reports, sent = [], []
        monkeypatch.setattr(a.engine.ctx.messenger, "report", lambda peer, reason: reports.append((peer, reason)))
        made_up = tuple(Cid.of(bytes([n]), DAG_CBOR).raw for n in range(MAX_CHECKPOINTS))

        async def names_many(peer, message):
            return Checkpoints(made_up, (MAX_COUNT,) * MAX_CHECKPOINTS)

        async def sends_another(peer, message):
            sent.append(message.cids)
            return Blocks((b"another",))

        dispatcher = b.engine.lobby.dispatcher
        dispatcher.on(GetCheckpoints, names_many)
        dispatcher.on(GetBlocks, sends_another)
        desk = desk_of(a)

        await desk.look()

        theirs = [row for row, key in zip(desk.table().rows, desk.table().keys, strict=True) if not key]
        assert len(theirs) == MAX_CHECKPOINTS and all(row[:2] == (None, "unknown") for row in theirs)
        assert len(sent) == MAX_MANIFESTS_FETCHED and all(len(cids) == 1 for cids in sent)
        assert reports and all(peer == b.id and "has another CID" in reason for peer, reason in reports)
