"""Leaving in order: what only an owner has arrives at the next one, however long that takes, in virtual time."""

import msgspec
import pytest
import trio

from legion_p2p.core.contact import Bandwidth
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import HandoverPart
from legion_p2p.errors import UnreachableError
from legion_p2p.services.run import leaving
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer

MBIT = 125_000.0  # bytes a second
SMALL = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", aggregation="mean", shard_elements=16)
MOVED = RoundSpec(
    local_steps=5, push_codec="int8", update_codec="int8", aggregation="mean", shard_elements=640_000, outer="nesterov",
    outer_learning_rate=0.7,
)  # fmt: skip


async def owner_at_rest(swarm: Swarm, train_s: float = 15) -> SimPeer:
    """The owner of shard 0, of three that have trained for a while. A round that closed now would change what is handed over."""
    for name in "abc":
        await swarm.add(name)
    await trio.sleep(train_s)
    for peer in swarm.peers.values():
        peer.hung = True
    await trio.sleep(12)
    return owner_of(swarm)


def owner_of(swarm: Swarm, shard: int = 0) -> SimPeer:
    return next(p for p in swarm.living() if p.engine.shards.replicas[shard].round is not None)


def names(peer: SimPeer) -> list[str]:
    return [event.name for event in peer.log]


async def test_who_leaves_asks_the_next_owner_in_few_bytes_whatever_its_last_update_named(autojump_clock):
    """The header that shows who owned the shard may be a megabyte long, and goes with what is handed over only."""
    async with Swarm(round=MOVED, numel=64, step_s=1.0) as swarm:
        leaver = await owner_at_rest(swarm)
        rpc, sent = leaver.engine.shards.states.rpc, []
        ask = rpc.ask

        async def record(peer, message, *how, **deadline):
            sent.append(message)
            return await ask(peer, message, *how, **deadline)

        rpc.ask = record
        await swarm.leave(leaver.name)
        await leaver.ended.wait()

        given = [message for message in sent if isinstance(message, HandoverPart)]
        assert {bool(message.payload) for message in given} == {True, False}
        assert all(bool(message.header) == bool(message.signature) == bool(message.payload) for message in given)


async def test_a_shard_that_takes_long_arrives_whole_and_the_time_is_told(autojump_clock):
    async with Swarm(round=MOVED, numel=640_000, step_s=1.0) as swarm:
        leaver = await owner_at_rest(swarm)
        replica = leaver.engine.shards.replicas[0]
        residual, momentum = replica.owner_residual, replica.outer.momentum
        assert residual.any() and momentum.any()
        swarm.world.rate_bytes_s = lambda sender, to: MBIT if sender == leaver.id else 1e9
        began = trio.current_time()

        await swarm.leave(leaver.name)
        await leaver.ended.wait()

        next_owner = owner_of(swarm).engine.shards.replicas[0]
        assert next_owner.owner_residual.equal(residual) and next_owner.outer.momentum.equal(momentum)
        assert 40 < trio.current_time() - began < 60  # 20 s for each of the two
        told = leaver.events_named("run.handing_over")
        assert len(told) > 8 and told[0].fields["left_bytes"] == 2 * 4 * 640_000
        later = [event.fields["remaining_s"] for event in told if event.fields["left_bytes"] == 4 * 640_000]
        assert 15 < later[0] < 25 and later == sorted(later, reverse=True)
        assert names(leaver).index("shard.handed_over") < names(leaver).index("run.left")


async def test_what_would_not_arrive_in_time_arrives_in_fewer_bytes(autojump_clock):
    async with Swarm(round=MOVED, numel=640_000, step_s=1.0) as swarm:
        leaver = await owner_at_rest(swarm)
        replica = leaver.engine.shards.replicas[0]
        residual, momentum = replica.owner_residual, replica.outer.momentum
        swarm.world.rate_bytes_s = lambda sender, to: MBIT / 2 if sender == leaver.id else 1e9  # 82 s, precisely
        swarm.world.bandwidths[leaver.id] = Bandwidth(upload_bps=0.5e6)
        began = trio.current_time()

        await swarm.leave(leaver.name)
        await leaver.ended.wait()

        next_owner = owner_of(swarm).engine.shards.replicas[0]
        assert float((next_owner.owner_residual - residual).norm()) < 0.01 * float(residual.norm())
        assert float((next_owner.outer.momentum - momentum).norm()) < 0.01 * float(momentum.norm())
        assert trio.current_time() - began < 25
        assert leaver.events_named("run.handing_over")[0].fields["left_bytes"] < 2 * 1.1 * 640_000


@pytest.mark.parametrize("owns", [False, True], ids=["a member", "the owner"])
async def test_a_push_that_was_on_its_way_when_its_peer_left_comes_into_an_update(autojump_clock, owns):
    async with Swarm(round=msgspec.structs.replace(MOVED, outer="average"), numel=640_000, step_s=1.0) as swarm:
        for name in "abc":
            await swarm.add(name)
        await trio.sleep(30)
        leaver = next(p for p in swarm.living() if (p.engine.shards.replicas[0].round is not None) is owns)
        replica = leaver.engine.shards.replicas[0]
        swarm.world.rate_bytes_s = lambda sender, to: MBIT if sender == leaver.id else 1e9
        await swarm.until(lambda: replica.life.push.packed is None, 20, "the one before has arrived")
        await swarm.until(lambda: replica.life.push.packed is not None, 20, "another one begins its way of 5 s")
        seq = replica.life.push.packed.seq

        await swarm.leave(leaver.name)
        await leaver.ended.wait()

        others = [p.engine.shards.replicas[0].chain for p in swarm.living()]
        await swarm.until(lambda: all(chain.includes(leaver.id, seq) for chain in others), 30, "it is in an update")


@pytest.mark.parametrize(("upload_bps", "is_dense"), [(None, True), (1e6, True), (1e4, False)], ids=["unknown", "quick", "slow"])
async def test_what_compression_left_out_goes_with_the_last_push_where_the_link_allows_it(autojump_clock, upload_bps, is_dense):
    sparse = RoundSpec(local_steps=10, push_codec="topk64-2bit", update_codec="int8", aggregation="mean")
    async with Swarm(round=sparse, numel=1 << 14, shape=(128, 128)) as swarm:
        peers = [await swarm.add(name) for name in "ab"]
        await trio.sleep(20)
        last = next(p for p in peers if len(p.engine.shards.owned()) < p.engine.plan.n_shards)
        swarm.world.bandwidths[last.id] = Bandwidth(upload_bps=upload_bps)
        left_out = norm(last)
        assert left_out > 0

        last.engine.push_last()
        last.max_steps = last.local_trainer.steps + 5
        await swarm.until(lambda: last.engine.progress.done, 20, "pushed the rest")

        assert (norm(last) < 0.05 * left_out) is is_dense


def norm(peer: SimPeer) -> float:
    """Of what compression has left out of all pushes so far."""
    return sum(float(r.residual.norm()) for r in peer.engine.shards.replicas.values() if r.residual is not None)


async def test_what_arrived_though_its_answer_was_lost_counts_once(autojump_clock):
    async with Swarm(round=SMALL) as swarm:
        leaver = await owner_at_rest(swarm, train_s=20)
        residual = leaver.engine.shards.replicas[0].owner_residual
        assert residual.any()
        handover = leaver.engine.shards.handover
        give, n_given = handover.give, 0

        async def loses_the_first_answer(next_owner, message):
            nonlocal n_given
            held = await give(next_owner, message)
            n_given += bool(message.payload) and message.shard == 0
            if message.payload and message.shard == 0 and n_given == 1:
                raise UnreachableError(next_owner, "the connection broke")
            return held

        handover.give = loses_the_first_answer
        await swarm.leave(leaver.name)
        await leaver.ended.wait()

        assert n_given == 2 and owner_of(swarm).engine.shards.replicas[0].owner_residual.equal(residual)


async def test_a_hand_over_that_never_ends_is_cut_off(autojump_clock, monkeypatch):
    monkeypatch.setattr(leaving, "HAND_OVER_S", 10.0)
    async with Swarm(round=MOVED, numel=640_000, step_s=1.0) as swarm:
        leaver = await owner_at_rest(swarm)
        swarm.world.rate_bytes_s = lambda sender, to: MBIT if sender == leaver.id else 1e9
        began = trio.current_time()

        await swarm.leave(leaver.name)
        await leaver.ended.wait()

        assert trio.current_time() - began < 12
        await swarm.until(
            lambda: all(leaver.id not in {m.peer_id for m in p.engine.members.table.counted()} for p in swarm.living()), 5
        )


@pytest.mark.parametrize("cancelled", [False, True], ids=["left", "cancelled"])
async def test_with_a_small_model_leaving_takes_less_than_two_seconds(autojump_clock, cancelled):
    """The shards first, each of which says that it has arrived; then goodbye. Nobody is taken for dead, and no round is lost."""
    async with Swarm(round=SMALL) as swarm:
        swarm.world.delay_s = 0.05
        peers = [await swarm.add(name) for name in "abcd"]
        await trio.sleep(20)
        leaver = next(p for p in peers if p.engine.shards.owned())
        owned = set(leaver.engine.shards.owned())
        others = [p for p in peers if p is not leaver]
        began = trio.current_time()

        if cancelled:
            swarm.peers.pop(leaver.name)
            leaver.scope.cancel()
        else:
            await swarm.leave(leaver.name)
        await leaver.ended.wait()

        assert trio.current_time() - began < 2
        handed_over = {event.fields["shard"] for event in leaver.events_named("shard.handed_over") if event.at >= began}
        assert handed_over == owned and not leaver.events_named("shard.handover_failed")
        assert max(i for i, name in enumerate(names(leaver)) if name == "shard.handed_over") < names(leaver).index("run.left")
        versions = others[0].versions()
        await swarm.until(lambda: all(p.versions()[s] > versions[s] + 2 for p in others for s in owned), 10, "rounds go on")
        assert not any(p.events_named("member.dead") for p in others)
        await swarm.settle()
        assert swarm.agree()


async def test_all_leave_at_once_and_nobody_waits_for_heirs_that_leave_as_well(autojump_clock):
    async with Swarm(round=SMALL) as swarm:
        peers = [await swarm.add(name) for name in "abcdef"]
        await trio.sleep(20)
        began = trio.current_time()

        for peer in peers:
            await swarm.leave(peer.name)
        for peer in peers:
            await peer.ended.wait()

        assert trio.current_time() - began < 4
