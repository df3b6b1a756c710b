"""Runs that outlive their peers: stores on disk, peers in virtual time, over the real engine."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from legion_p2p.config import PeerConfig
from legion_p2p.core.checkpoint_policy import CheckpointConfig
from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.manifest import block_key, checkpoint_key
from legion_p2p.core.priority import Priority
from legion_p2p.core.rendezvous import shard_key
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import name_key, run_key
from legion_p2p.core.wire import Blocks, GetBlocks, HasBlocks, encode
from legion_p2p.errors import DiskFullError, MissingBlockError, RefusedError, UnreachableError
from legion_p2p.observe.events import Events
from legion_p2p.services.checkpoint import fetch as fetch_module
from legion_p2p.services.checkpoint import serve, writer
from legion_p2p.services.checkpoint.fetch import Fetcher
from legion_p2p.sim.swarm import Swarm, inline
from legion_p2p.sim.swarm_peer import SimPeer
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.journal import Journal
from legion_p2p.train.checkpoint import Checkpoint
from tests.replies import decode_reply

ROUND = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", aggregation="mean", shard_elements=16)
CONFIG = PeerConfig(checkpoints=CheckpointConfig(every_s=8, base_every=8, gather_s=4))


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Processes are killed here, not machines: nothing needs to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def one_by_one(monkeypatch):
    """Blocks are asked for singly, or the first to be asked has all of so few to send."""
    monkeypatch.setattr(fetch_module, "BATCH", 1)


def swarm_in(folder: Path) -> Swarm:
    return Swarm(round=ROUND, config=CONFIG, stores=folder)


async def killed_at_once(folder: Path, names: str, train_s: float = 25) -> list[tuple[int, bytes]]:
    """Of each shard the newest version that at least two held when all were killed, and its digest."""
    async with swarm_in(folder) as swarm:
        for name in names:
            await swarm.add(name)
        await trio.sleep(train_s)
        held = [list(zip(peer.versions(), peer.digests(), strict=True)) for peer in swarm.peers.values()]
        for name in names:
            await swarm.kill(name)
    return [sorted(states)[-2] for states in zip(*held, strict=True)]


async def started(swarm: Swarm, names: str, training: bool = True) -> list[SimPeer]:
    peers = [swarm.start(name, creates=False, training=training) for name in names]
    for peer in peers:
        await peer.joined.wait()
    return peers


def reached(peer: SimPeer, states: list[tuple[int, bytes]]) -> bool:
    """It holds these states, or what came of them."""
    chains = [peer.engine.shards.replicas[shard].chain for shard in range(len(states))]
    return all(chain.passed(*state) for chain, state in zip(chains, states, strict=True))


async def test_a_swarm_that_was_killed_at_once_goes_on_where_it_was(tmp_path: Path, autojump_clock):
    before = await killed_at_once(tmp_path, "abc")

    async with swarm_in(tmp_path) as swarm:
        peers = await started(swarm, "abc")

        assert len({peer.engine.id for peer in peers}) == 1
        assert all(reached(peer, before) for peer in peers)
        newest = [version for version, _ in before]
        await swarm.until(lambda: all(min(p.versions()) > max(newest) + 3 for p in peers), 60, "versions go on")
        assert peers[0].engine.run_step() > 150
        await swarm.settle()
        assert swarm.agree()


async def test_what_two_disks_had_outlives_the_loss_of_one(tmp_path: Path, autojump_clock):
    before = await killed_at_once(tmp_path, "abc")
    shutil.rmtree(tmp_path / "b")

    async with swarm_in(tmp_path) as swarm:
        peers = await started(swarm, "abc")

        assert all(peer.engine.restored is not None for peer in peers if peer.name != "b")
        assert swarm.peers["b"].engine.restored is None
        assert all(reached(peer, before) for peer in peers)


@pytest.mark.parametrize("names", ["abd", "abcdxyz"], ids=["three", "seven"])
async def test_a_run_saved_by_four_is_resumed_by_other_numbers(tmp_path: Path, autojump_clock, names: str):
    before = await killed_at_once(tmp_path, "abcd")

    async with swarm_in(tmp_path) as swarm:
        peers = await started(swarm, names, training=False)
        await swarm.until(swarm.agree, 20, "all hold the same")

        assert len({peer.engine.common_digest() for peer in peers}) == 1
        for (version, digest), now, digest_now in zip(before, peers[0].versions(), peers[0].digests(), strict=True):
            assert now >= version and (digest_now == digest or now > version)


async def test_one_that_comes_back_alone_founds_no_second_run(tmp_path: Path, autojump_clock):
    await killed_at_once(tmp_path, "abc")

    async with swarm_in(tmp_path) as swarm:
        (first,) = await started(swarm, "a")
        await trio.sleep(20)
        late, other = await started(swarm, "bc")

        assert first.engine.id == late.engine.id == other.engine.id
        assert late.engine.restored is not None
        await swarm.settle()
        assert swarm.agree()


async def test_a_checkpoint_in_the_store_is_whole_and_is_what_was_held(tmp_path: Path, autojump_clock):
    async with swarm_in(tmp_path) as swarm:
        for name in "ab":
            await swarm.add(name)
        await trio.sleep(25)
        await swarm.settle()
        common = swarm.peers["a"].engine.common_parameters()
        await swarm.leave("a")
        await trio.sleep(5)

    with BlockStore(tmp_path / "a", read_only=True) as store:
        newest = max(store.pins(), key=lambda cid: Checkpoint(store, cid).manifest.step)
        opened = Checkpoint(store, newest)
        assert [param.name for param, _ in opened.parameters()] == ["w"]
        for _, value in opened.parameters():
            assert value.equal(common)
        assert 1 <= len(store.pins()) <= 3
        assert opened.manifest.parent


async def trained(swarm: Swarm, names: str) -> Cid:
    """A swarm at rest that has stored what it holds; the checkpoint of the first."""
    for name in names:
        await swarm.add(name)
    await trio.sleep(20)
    await swarm.settle()
    stored = swarm.peers[names[0]].engine.shards.marks()
    await swarm.until(lambda: all(peer.engine.checkpoints.stored_marks == stored for peer in swarm.living()), 60, "stored")
    await trio.sleep(5)  # until it is advertised
    newest = swarm.peers[names[0]].engine.checkpoints.newest
    assert newest is not None
    return newest


def fetcher(swarm: Swarm, store: BlockStore, **more) -> Fetcher:
    network = swarm.world.join(swarm.identity("fetcher"))
    return Fetcher(network.messenger, network.discovery, store, inline, Events(), **more)


async def test_a_checkpoint_is_fetched_from_all_who_have_its_blocks(tmp_path: Path, autojump_clock, one_by_one):
    async with swarm_in(tmp_path) as swarm:
        root = await trained(swarm, "abc")
        with BlockStore(tmp_path / "fetched") as store:
            fetched = await fetcher(swarm, store).fetch(root)

            common = swarm.peers["b"].engine.common_parameters()
            assert next(Checkpoint(store, root).parameters())[1].equal(common)
        assert set(fetched.from_whom) == {peer.id for peer in swarm.living()} and not fetched.dropped


async def test_peers_are_found_by_the_checkpoints_that_they_have_and_the_shards_they_own_not_by_block(
    tmp_path: Path, autojump_clock
):
    async with swarm_in(tmp_path) as swarm:
        await trained(swarm, "abc")
        peers, run = swarm.living(), swarm.peers["a"].engine.id
        seeker = swarm.world.join(swarm.identity("seeker")).discovery

        async def found(key: str) -> set[str]:
            return {contact.peer_id for contact in await seeker.find(key)}

        assert await found(checkpoint_key(run)) == {peer.id for peer in peers}
        for peer in peers:
            kept = peer.engine.lobby.parts.archive.kept
            for cid in kept:
                assert peer.id in await found(block_key(cid))
            owned = {shard_key(run, peer.engine.region, shard) for shard in peer.engine.shards.owned()}
            for key in owned:
                assert await found(key) == {peer.id}
            expected = {run_key(run), name_key("sim"), checkpoint_key(run), *map(block_key, kept)} | owned
            assert peer.engine.advertise._provided == expected
            assert len(list(peer.engine.lobby.parts.archive.store)) > len(expected)


async def test_a_fetch_that_was_stopped_goes_on(tmp_path: Path, autojump_clock):
    async with swarm_in(tmp_path) as swarm:
        root = await trained(swarm, "ab")
        with BlockStore(tmp_path / "fetched") as store:
            fetching = fetcher(swarm, store)
            with trio.CancelScope() as scope:
                fetching._progress = lambda n_bytes: scope.cancel() if fetching._n_blocks > 8 else None
                await fetching.fetch(root)
            n_had = len(list(store))
            again = Fetcher(fetching._messenger, fetching._discovery, store, inline, Events())
            fetched = await again.fetch(root)

            assert n_had > 8 and fetched.n_had == n_had
            assert fetched.n_blocks + n_had == len(list(store))
            Checkpoint(store, root)


async def test_a_provider_that_lies_is_reported_and_dropped_and_the_others_suffice(
    tmp_path: Path, autojump_clock, one_by_one, monkeypatch
):
    async with swarm_in(tmp_path) as swarm:
        root = await trained(swarm, "abc")
        liar = swarm.peers["b"]

        async def lie(peer, message):
            answer = await liar.engine.lobby.provider.on_get_blocks(peer, message)
            return replace(answer, reply=Blocks(tuple(b"lie" for _ in answer.reply.blocks)))

        liar.engine.lobby.dispatcher.on(GetBlocks, lie)
        with BlockStore(tmp_path / "fetched") as store:
            fetching = fetcher(swarm, store)
            reported = []
            monkeypatch.setattr(fetching._messenger, "report", lambda peer, misbehaviour: reported.append(peer))
            fetched = await fetching.fetch(root)

            assert set(reported) == {liar.id}
            assert fetched.dropped == (liar.id,) and liar.id not in fetched.from_whom
            for _ in Checkpoint(store, root).parameters():
                pass


async def test_an_answer_has_its_limit_and_asks_of_nonsense_raise_the_score(tmp_path: Path, autojump_clock, monkeypatch):
    async with swarm_in(tmp_path) as swarm:
        root = await trained(swarm, "ab")
        donor = swarm.peers["a"]
        stranger = swarm.world.join(swarm.identity("stranger"))
        stranger.messenger.add_addresses(donor.id, donor.network.messenger.addresses())
        size = len(donor.engine.lobby.parts.archive.get(root))

        async def ask(message):
            return decode_reply(await stranger.messenger.request(donor.id, encode(message), priority=Priority.ROUND))

        monkeypatch.setattr(serve, "MAX_BLOCKS_BYTES", 2 * size + 1)
        reply = await ask(GetBlocks((root.raw, Cid.of(b"nothing").raw, root.raw, root.raw)))
        assert [len(block) for block in reply.blocks] == [size, 0, size, 0]
        assert (await ask(HasBlocks((root.raw, Cid.of(b"nothing").raw)))).sizes == (size, 0)
        for _ in range(20):
            with contextlib.suppress(RefusedError, UnreachableError):
                await ask(GetBlocks((b"c" * 36,)))
        assert donor.network.messenger.refusals.is_refused(stranger.peer_id)


async def test_what_nobody_has_is_an_error_that_names_it(tmp_path: Path, autojump_clock):
    async with swarm_in(tmp_path) as swarm:
        await swarm.add("a")
        with BlockStore(tmp_path / "fetched") as store, pytest.raises(MissingBlockError, match="no peer that can be reached"):
            await fetcher(swarm, store).fetch(Cid.of(b"nothing", DAG_CBOR))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root alone")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def test_a_disk_that_is_really_full_harms_nothing_that_is_stored(small_disk: Path, autojump_clock, monkeypatch):
    monkeypatch.setattr(writer, "RETRY_S", 5.0)
    async with swarm_in(small_disk) as swarm:
        a, b = [await swarm.add(name) for name in "ab"]
        await trio.sleep(10)
        stored = list(zip(a.versions(), a.digests(), strict=True))
        await trio.sleep(2)  # until it is written
        with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(512))
        before = min(a.versions())
        await trio.sleep(20)

        assert min(a.versions()) > before + 10
        for peer in (a, b):
            (failed,) = peer.events_named("checkpoint.failed")
            assert "no space left on the disk of" in failed.fields["text"] and "training goes on" in failed.fields["text"]
        with BlockStore(small_disk / "a", read_only=True) as store:
            for cid in store.pins():
                Checkpoint(store, cid)
        for name in "ab":
            await swarm.kill(name)

    (small_disk / "filler").unlink()
    async with swarm_in(small_disk) as swarm:
        peers = await started(swarm, "ab")
        # one of them may have fetched whole shards of the other, which are fewer bytes here than updates, and tell no history
        assert any(reached(peer, stored) for peer in peers)
        assert all(now >= then for peer in peers for now, (then, _) in zip(peer.versions(), stored, strict=True))
        before = min(peers[0].versions())
        await swarm.until(lambda: min(peers[0].versions()) > before + 3, 20, "the run goes on")
        await swarm.settle(30)
        assert swarm.agree()


async def test_a_full_disk_is_told_once_and_training_goes_on(tmp_path: Path, autojump_clock, monkeypatch):
    async with swarm_in(tmp_path) as swarm:
        a, b = [await swarm.add(name) for name in "ab"]
        await trio.sleep(10)
        monkeypatch.setattr(writer, "RETRY_S", 5.0)
        append = Journal.append

        def full(self, records):
            raise DiskFullError("no space left")

        monkeypatch.setattr(Journal, "append", full)
        before = min(a.versions())
        await trio.sleep(20)

        assert min(a.versions()) > before + 10
        assert [len(peer.events_named("checkpoint.failed")) for peer in (a, b)] == [1, 1]
        monkeypatch.setattr(Journal, "append", append)
        await trio.sleep(15)
        states = list(zip(a.versions(), a.digests(), strict=True))
        for name in "ab":
            await swarm.kill(name)

    async with swarm_in(tmp_path) as swarm:
        (peer,) = await started(swarm, "a", training=False)
        assert list(zip(peer.versions(), peer.digests(), strict=True)) == states
