"""Newcomers in virtual time: what they believe, where it comes from, and what their coming costs the others."""

import os
from pathlib import Path

import msgspec
import pytest
import trio

from legion_p2p.config import PeerConfig
from legion_p2p.core.checkpoint_policy import CheckpointConfig
from legion_p2p.core.cids import RAW, Cid
from legion_p2p.core.identity import Identity
from legion_p2p.core.manifest import decode_base, decode_manifest, decode_shard, encode_node, sign_manifest
from legion_p2p.core.priority import Priority
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.shard_chunks import encode_chunk
from legion_p2p.core.wire import GetShard
from legion_p2p.errors import NetworkError, UnknownRunError
from legion_p2p.observe.events import Events
from legion_p2p.services import upload_slots as services_slots
from legion_p2p.services.run import state_sync
from legion_p2p.services.run.run_discovery import find_run
from legion_p2p.sim.network import World
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from legion_p2p.store.blocks import BlockStore

SPARSE = RoundSpec(
    local_steps=10,
    push_codec="topk128-2bit",
    update_codec="topk128-2bit",
    aggregation="mean",
    shard_elements=1 << 14,
    warmup_codec="",
)
CONFIG = PeerConfig(checkpoints=CheckpointConfig(every_s=4, base_every=16, gather_s=4))


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Processes are killed here, not machines: nothing needs to wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(autouse=True)
def small_models_are_weighed(monkeypatch):
    monkeypatch.setattr(state_sync, "WORTH_SELECTING_BYTES", 0)


def swarm_in(folder: Path, config: PeerConfig = CONFIG, **world: float) -> Swarm:
    return Swarm(
        numel=1 << 16, shape=(1 << 8, 1 << 8), round=SPARSE, config=config, stores=folder, step_s=0.2, world=World(**world)
    )


async def trained(swarm: Swarm, names: str = "abc") -> list[SimPeer]:
    peers = [await swarm.add(name) for name in names]
    await swarm.until(lambda: min(min(peer.versions()) for peer in peers) > 5, 120, "some versions")
    await swarm.until(lambda: all(peer.engine.checkpoints.newest for peer in peers), 60, "checkpoints")
    return peers


def give_whole_only(peers: list[SimPeer], monkeypatch, *shards: int) -> None:
    """From now on they refuse to send any other shard whole."""
    for peer in peers:
        handlers = peer.engine.lobby.dispatcher._handlers

        async def reluctant(asker, message, answer=handlers[GetShard]):
            if message.shard not in shards:
                raise NetworkError("not from here")
            return await answer(asker, message)

        monkeypatch.setitem(handlers, GetShard, reluctant)


async def test_a_newcomer_builds_on_checkpoints_what_nobody_sends_whole(tmp_path: Path, autojump_clock, monkeypatch):
    async with swarm_in(tmp_path) as swarm:
        peers = await trained(swarm)
        give_whole_only(peers, monkeypatch, 0)

        joined = await swarm.add("d")

        (event,) = joined.events_named("run.joined")
        assert event.fields["n_from_checkpoints"] >= 3 and event.fields["n_donors"] >= 2
        assert all(joined.engine.shards.replicas[s].chain.version >= min(p.versions()[s] for p in peers) - 1 for s in range(4))
        await swarm.settle()
        assert swarm.agree()


async def test_what_a_newcomer_built_on_is_kept_and_led_on_to_its_first_checkpoint(tmp_path: Path, autojump_clock):
    async with swarm_in(tmp_path) as swarm:
        await trained(swarm)

        joined = await swarm.add("d")
        built = {e.fields["shard"]: e.fields["base"] for e in joined.events_named("shard.built")}
        await swarm.until(lambda: joined.engine.checkpoints.newest is not None, 30, "a checkpoint")

        with BlockStore(tmp_path / "d", read_only=True) as store:
            manifest = decode_manifest(store.get(joined.engine.checkpoints.newest))
            states = [decode_shard(store.get(cid)) for cid in manifest.shards]
            bases = {state.shard: decode_base(store.get(state.base)).version for state in states}
        assert built and all(bases[shard] >= version for shard, version in built.items())
        assert any(bases[shard] == version for shard, version in built.items())


def forge(donor: SimPeer, signer: Identity, *, wrong_digest: bool) -> Cid:
    """A manifest of a far later step and of other bytes, all that `donor` tells of; whether it says so before it is fetched."""
    archive = donor.engine.lobby.parts.archive
    true = decode_manifest(archive.get(archive.newest))
    nodes = []
    for cid in true.shards:
        state = decode_shard(archive.get(cid))
        base = decode_base(archive.get(state.base))
        leaf = archive.store.put(encode_chunk(b"\x01\x02\x03\x04" * (1 << 14)))
        false = msgspec.structs.replace(base, leaves=(leaf,))
        state = msgspec.structs.replace(state, base=archive.store.put(encode_node(false), "dag-cbor"))
        if wrong_digest:
            state = msgspec.structs.replace(state, digest=b"w" * 32)
        nodes.append(archive.store.put(encode_node(state), "dag-cbor"))
    forged = msgspec.structs.replace(true, step=1 << 40, shards=tuple(nodes), publisher=signer.peer_id, signature=b"")
    root = archive.store.put(encode_node(sign_manifest(forged, signer)), "dag-cbor")
    archive.store.pin(root)
    archive.kept = (root,)
    return root


@pytest.mark.parametrize("signer", ["stranger", "b"])
async def test_a_forged_checkpoint_of_a_far_later_step_is_not_believed(tmp_path: Path, autojump_clock, signer: str):
    async with swarm_in(tmp_path) as swarm:
        a, _, _ = await trained(swarm)
        root = forge(a, swarm.identity(signer), wrong_digest=True)

        joined = await swarm.add("d")

        not_believed = [e for e in joined.events_named("checkpoint.not_believed") if e.fields["cid"] == str(root)]
        assert len(not_believed) == (signer == "stranger")
        assert not joined.events_named("shard.not_built") and len(joined.events_named("shard.built")) == 4
        assert joined.engine.run_step() < 1 << 20
        await swarm.settle()
        assert swarm.agree()


async def test_blocks_that_lead_elsewhere_are_fetched_in_vain_and_nothing_else(tmp_path: Path, autojump_clock):
    async with swarm_in(tmp_path) as swarm:
        for peer in await trained(swarm):
            forge(peer, peer.network.identity, wrong_digest=False)

        joined = await swarm.add("d")

        assert len(joined.events_named("shard.not_built")) == len(joined.events_named("shard.fetched")) == 4
        await swarm.settle()
        assert swarm.agree()


def n_leaves(folder: Path) -> int:
    with BlockStore(folder, read_only=True) as store:
        return sum(cid.codec == RAW for cid in store)


async def test_a_provider_that_dies_midway_is_done_without(tmp_path: Path, autojump_clock):
    async with swarm_in(tmp_path, up_bytes_s=8e3) as swarm:
        await trained(swarm)

        joining = swarm.start("d", creates=False)
        await swarm.until(lambda: (tmp_path / "d" / "STORE").exists() and n_leaves(tmp_path / "d") > 1, 60, "some blocks")
        assert not joining.joined.is_set()
        await swarm.kill("b")
        await joining.joined.wait()

        assert joining.events_named("shard.built")
        await swarm.settle(240)
        assert swarm.agree()


async def test_a_newcomer_that_was_killed_midway_goes_on_with_what_it_has(tmp_path: Path, autojump_clock):
    # Bases outlive the attempts to join.
    long = PeerConfig(checkpoints=CheckpointConfig(every_s=4, base_every=512, gather_s=4))
    async with swarm_in(tmp_path, long, up_bytes_s=8e3) as swarm:
        await trained(swarm)

        first = swarm.start("d", creates=False)
        # More than training adds until it is weighed again, and fewer than all, so that it is killed before it has joined.
        await swarm.until(lambda: (tmp_path / "d" / "STORE").exists() and n_leaves(tmp_path / "d") > 20, 60, "some blocks")
        assert not first.joined.is_set()
        await swarm.kill("d")
        fresh = swarm.start("e", creates=False)
        again = await swarm.add("d", creates=False)
        await fresh.joined.wait()

        (all_of_it,), (the_rest,) = fresh.events_named("join.weighed"), again.events_named("join.weighed")
        assert the_rest.fields["n_bytes"] < all_of_it.fields["n_bytes"]
        await trio.sleep(1)
        await swarm.settle(240)
        assert swarm.agree()


async def test_twenty_newcomers_at_once_slow_training_by_less_than_a_fifth(autojump_clock, monkeypatch):
    monkeypatch.setattr(services_slots, "FREE_BYTES", 1 << 10)  # as in large models: no shard is small
    dense = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", aggregation="mean", shard_elements=1 << 13)
    # Training fills half of each connection; twenty models through what is left of four take a dozen rounds.
    async with Swarm(numel=1 << 16, round=dense, step_s=0.075, world=World(up_bytes_s=250e3)) as swarm:
        trainers = [await swarm.add(name) for name in "abcd"]
        await trio.sleep(5)

        def rounds() -> int:
            return sum(sum(peer.versions()) for peer in trainers)

        def holds_all(peer: SimPeer) -> bool:
            return len(peer.events_named("shard.fetched")) >= 8

        began, before = trio.current_time(), rounds()
        await trio.sleep(6)
        alone_per_s = (rounds() - before) / (trio.current_time() - began)
        began, before = trio.current_time(), rounds()
        most_given = 0
        joining = {f"n{i}": swarm.start(f"n{i}", training=False, weight=0) for i in range(20)}
        while joining:
            await trio.sleep(0.1)
            most_given = max(most_given, *(peer.engine.upload_slots.n_under_way(Priority.DOWNLOAD) for peer in trainers))
            for name in [name for name, peer in joining.items() if holds_all(peer)]:
                await swarm.kill(name)  # as a member it would be sent updates: that is not the cost of joining
                del joining[name]
        crowd_per_s = (rounds() - before) / (trio.current_time() - began)

        assert trio.current_time() - began > 5
        assert most_given == services_slots.TO_OTHERS.max_items
        assert crowd_per_s > 0.8 * alone_per_s, (crowd_per_s, alone_per_s)


async def test_a_run_whose_members_cannot_be_reached_is_told_apart_from_one_that_nobody_knows(autojump_clock):
    async with Swarm(seed=9) as swarm:
        member = await swarm.add("hidden")
        swarm.world.hide(member.id)
        await trio.sleep(5)
        stranger = swarm.world.join(swarm.identity("stranger"))

        with pytest.raises(UnknownRunError) as unknown:
            await find_run("sim", stranger.messenger, stranger.discovery, Events())
        with pytest.raises(UnknownRunError) as nobody:
            await find_run("another", stranger.messenger, stranger.discovery, Events())

    assert unknown.value.unreachable == {member.id: f"{member.network.address}: no answer in 5 s"}
    assert f"{member.id} ({member.network.address}: no answer in 5 s)" in str(unknown.value)
    assert nobody.value.unreachable == {} and "no peer knows a run named 'another'" in str(nobody.value)
