"""Peers that stall, sleep, flap and come in crowds, in virtual time, over the real engine."""

import msgspec
import pytest
import torch
import trio

from legion_p2p.core.contact import Bandwidth
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import GetRuns, GetSpec, Push, encode
from legion_p2p.errors import IncompatibleModelError, JoinError, RefusedError, RunExistsError, UnknownRunError
from legion_p2p.services.run.joiner import RunCreation, creating, joining
from legion_p2p.services.run.lobby import PeerParts
from legion_p2p.services.run.run_discovery import known_runs
from legion_p2p.sim.swarm import Swarm

LOSSY = RoundSpec(local_steps=10, push_codec="int8", update_codec="int8", shard_elements=32)


async def test_a_swarm_of_one_trains_like_plain_torch(autojump_clock):
    async with Swarm(round=LOSSY) as swarm:
        peer = await swarm.add("a")
        await trio.sleep(30)
        n = peer.local_trainer.steps

        theta = torch.zeros(swarm.numel)
        for _ in range(n):
            theta += peer.rate * (peer.target - theta)

        assert torch.equal(peer.theta.detach(), theta)
        assert peer.versions()[0] == n // 10


async def test_a_frozen_peer_catches_up_by_itself(autojump_clock):
    async with Swarm(round=LOSSY) as swarm:
        peers = [await swarm.add(name) for name in "abcd"]
        await trio.sleep(10)
        asleep = peers[1]

        swarm.world.freeze(asleep.id)
        asleep.training = False
        await trio.sleep(30)
        others = [p for p in peers if p is not asleep]
        assert all(p.events_named("member.dead") for p in others)
        ahead = others[0].versions()
        swarm.world.thaw(asleep.id)
        asleep.training = True

        await swarm.until(lambda: all(v >= w for v, w in zip(asleep.versions(), ahead, strict=True)), 15, "caught up")
        await swarm.until(swarm.owners_agree, 15, "one view of who owns what")
        await swarm.settle()
        assert swarm.agree()


async def test_who_was_cut_off_alone_follows_the_others_when_back(autojump_clock):
    """It went on training alone. Back among them, it does not pull the common model to its own state."""
    async with Swarm(round=LOSSY) as swarm:
        peers = [await swarm.add(name) for name in "abcd"]
        await trio.sleep(10)
        alone, others = peers[0], peers[1:]

        swarm.world.partition({alone.id}, {p.id for p in others})
        await trio.sleep(60)
        then = others[0].versions()
        swarm.world.heal()

        await swarm.until(lambda: bool(alone.events_named("run.rejoined")), 60, "came back as a newcomer")
        await swarm.until(swarm.owners_agree, 30, "one view of who owns what")
        assert all(now >= before for now, before in zip(others[0].versions(), then, strict=True))
        await swarm.settle()
        assert swarm.agree()


async def test_a_slow_peer_delays_nobody_and_does_fewer_steps_a_round(autojump_clock):
    async with Swarm(round=LOSSY) as swarm:
        quick = [await swarm.add(name) for name in "abc"]
        slow = await swarm.add("slow", step_s=0.5)
        await trio.sleep(20)
        before = quick[0].versions()

        await trio.sleep(30)

        assert slow.engine.local_steps == 2
        assert all(p.engine.local_steps == 10 for p in quick)
        grown = quick[0].versions()[0] - before[0]
        assert grown >= 20  # a round is ten steps of 0.1 s; with fifty of 0.5 s it would be 6


async def test_a_peer_that_stops_training_is_soon_not_waited_for(autojump_clock):
    async with Swarm(round=LOSSY) as swarm:
        a, b = await swarm.add("a"), await swarm.add("b")
        await trio.sleep(20)

        b.hung = True  # its loop hangs; its network lives on
        await trio.sleep(60)
        before = a.versions()
        await trio.sleep(30)

        assert all(now - then >= 20 for now, then in zip(a.versions(), before, strict=True))
        assert a.engine.members.table.get(b.id).liveness.value == "ALIVE"


async def test_sixteen_that_start_in_the_same_second_end_in_one_run(autojump_clock):
    async with Swarm(round=LOSSY) as swarm:
        await swarm.add("founder")
        for i in range(15):
            swarm.start(f"p{i}")

        await swarm.until(lambda: all(p.joined.is_set() for p in swarm.peers.values()), 60, "all joined")
        await swarm.until(lambda: all(len(p.engine.members.roster.everyone()) == 16 for p in swarm.living()), 30, "all know all")
        await swarm.until(swarm.owners_agree, 30, "one view of who owns what")
        await swarm.settle(90)
        assert swarm.agree()


async def test_peers_that_come_and_go_all_the_time_do_not_stop_the_rest(autojump_clock):
    async with Swarm(round=LOSSY) as swarm:
        stay = [await swarm.add(f"stay{i}") for i in range(3)]
        before = stay[0].versions()
        for i in range(12):
            await swarm.add(f"flap{i}")
            await trio.sleep(5)
            await (swarm.kill if i % 2 else swarm.leave)(f"flap{i}")

        await trio.sleep(20)
        assert all(now - then > 30 for now, then in zip(stay[0].versions(), before, strict=True))
        await swarm.settle()
        assert swarm.agree()


async def test_a_newcomer_holds_the_common_model_before_its_first_push(autojump_clock):
    async with Swarm(round=LOSSY) as swarm:
        peers = [await swarm.add(name) for name in "abc"]
        await swarm.until(lambda: peers[0].versions()[0] >= 20, 60, "twenty rounds")
        history: dict[tuple[int, int], bytes] = {}
        for peer in peers:
            for shard, replica in peer.engine.shards.replicas.items():
                history.update({(shard, v): d for v, d in replica.chain._digests.items()})

        late = await swarm.add("late")

        fetched = [e for e in late.log if e.name == "shard.fetched"]
        assert len({e.fields["peer"] for e in fetched}) > 1, "from several owners"
        for shard, (version, digest) in enumerate(zip(late.versions(), late.digests(), strict=True)):
            for peer in peers:
                chain = peer.engine.shards.replicas[shard].chain
                if version <= chain.version:
                    assert chain.passed(version, digest)
        joined_at = late.events_named("run.joined")[0].at
        assert all(late.id not in str(e.fields) for p in peers for e in p.events_named("round.closed") if e.at < joined_at)


async def test_an_unknown_name_is_an_error_and_founds_nothing(autojump_clock):
    async with Swarm() as swarm:
        await swarm.add("a")
        network = swarm.world.join(swarm.identity("lost"))

        with pytest.raises(UnknownRunError, match=r"no peer knows a run named 'sym'.*new-run"):
            async with joining(parts_of(network), "sym"):
                pass


async def test_a_wrong_name_is_told_within_three_seconds_with_the_names_that_are_known(autojump_clock):
    async with Swarm() as swarm:
        a, b = await swarm.add("a"), await swarm.add("b")
        network = swarm.world.join(swarm.identity("lost"))
        for other in (a, b):
            network.messenger.add_addresses(other.id, other.network.messenger.addresses())
            await network.messenger.request(other.id, encode(GetRuns()))
        began = trio.current_time()

        with pytest.raises(UnknownRunError, match="known here: sim") as told:
            async with joining(parts_of(network), "stroies"):
                pass

        assert told.value.known == (a.engine.spec.name,)
        assert trio.current_time() - began <= 3.5
        (found,) = (await known_runs(network.messenger)).values()
        assert found.n_members == 2


async def test_founding_a_name_that_is_taken_is_an_error(autojump_clock):
    async with Swarm() as swarm:
        a = await swarm.add("a")
        await trio.sleep(5)
        network = swarm.world.join(swarm.identity("second"))
        network.messenger.add_addresses(a.id, a.network.messenger.addresses())
        await network.messenger.request(a.id, encode(GetSpec("sim")))  # a contact
        founding = RunCreation(a.engine.spec, torch.zeros(swarm.numel))

        with pytest.raises(RunExistsError, match="exists"):
            async with creating(parts_of(network), founding):
                pass


async def test_a_model_that_differs_is_refused_by_its_first_difference(autojump_clock):
    from legion_p2p.core.plan import ParamSpec

    async with Swarm() as swarm:
        await swarm.add("a")
        network = swarm.world.join(swarm.identity("other"))

        with pytest.raises(IncompatibleModelError, match=r"parameter 0 differs: this model has w \[63\], the run has w \[64\]"):
            async with joining(parts_of(network), "sim", (ParamSpec("w", (63,)),)):
                pass


async def test_joining_a_run_of_which_nobody_holds_the_model_says_so(autojump_clock):
    async with Swarm() as swarm:
        a = await swarm.add("a")
        a.engine.presence.suspend()
        a.engine.members.announcer.announce_soon()
        network = swarm.world.join(swarm.identity("late"))

        with pytest.raises(JoinError, match="no member that holds the model"):
            async with joining(parts_of(network), "sim"):
                pass


def parts_of(network):
    import random

    from legion_p2p.config import PeerConfig
    from legion_p2p.observe.events import Events
    from legion_p2p.services.shards.mailbox import Mailbox
    from legion_p2p.sim.swarm import inline

    return PeerParts(
        network,
        offload=inline,
        mailbox=Mailbox(),
        events=Events(wall_time=trio.current_time),
        config=PeerConfig(),
        rng=random.Random(1),
        wall_time=trio.current_time,
    )


async def test_while_somebody_warms_up_its_pushes_and_what_is_made_of_them_are_precise(autojump_clock):
    rounds = RoundSpec(
        local_steps=10, push_codec="sign", update_codec="int8", warmup_codec="fp32", shard_elements=16, dense_codec=""
    )
    async with Swarm(round=rounds) as swarm:
        a, b = [await swarm.add(name) for name in "ab"]
        for peer in (a, b):
            peer.warming_up = True
        await trio.sleep(20)

        def codecs() -> set[str]:
            chains = [replica.chain for peer in (a, b) for replica in peer.engine.shards.replicas.values()]
            return {last.header.codec for chain in chains if (last := chain.last()) is not None}

        assert codecs() == {"fp32"}
        b.warming_up = False
        await trio.sleep(20)
        assert codecs() == {"fp32"}  # one that warms up is enough
        a.warming_up = False
        await trio.sleep(20)
        assert codecs() == {"int8"}
        await swarm.settle()
        assert swarm.agree()


async def test_a_codec_that_the_run_does_not_allow_is_refused_before_it_is_decoded(autojump_clock):
    async with Swarm(round=LOSSY) as swarm:
        a, b = [await swarm.add(name) for name in "ab"]
        await trio.sleep(5)
        if not a.engine.shards.owned():
            a, b = b, a
        push = Push(a.engine.id, a.engine.shards.owned()[0], 0, 10_000, 1, 1, "fp32", b"not even a body")

        with pytest.raises(RefusedError, match=f"push of {b.id} in codec 'fp32', this run allows int8"):
            await b.network.messenger.request(a.id, encode(push))
        with pytest.raises(RefusedError, match=f"push of {b.id}: "):
            await b.network.messenger.request(a.id, encode(msgspec.structs.replace(push, codec="int8", seq=20)))
        assert all(not e.events_named("shard.lost") for e in (a, b))


@pytest.mark.parametrize("seed", range(2))
async def test_in_a_crowd_of_newcomers_each_shard_takes_its_momentum_along(seed, autojump_clock):
    """They have fetched the shards whole, and have no update that shows who owned them."""
    spec = RoundSpec(
        local_steps=10, push_codec="int8", update_codec="int8", aggregation="mean", shard_elements=64, outer="nesterov"
    )
    async with Swarm(seed=seed, numel=64 * 16, round=spec, step_s=0.4) as swarm:
        old = [await swarm.add(f"p{i}") for i in range(4)]
        await trio.sleep(20)  # five rounds
        new = [swarm.start(f"n{i}") for i in range(10)]
        await swarm.until(lambda: all(p.joined.is_set() for p in new) and swarm.owners_agree(), 30, "all have joined")
        await trio.sleep(10)

        owned = {shard for peer in new for shard in peer.engine.shards.owned()}
        assert len(owned) > 5
        assert not [event for peer in (*old, *new) for event in peer.events_named("shard.handover_failed")]
        given = [event.fields["shard"] for peer in (*old, *new) for event in peer.events_named("shard.handed_over")]
        assert owned <= set(given)


async def test_the_momentum_of_the_outer_optimizer_goes_with_the_shard(autojump_clock):
    rounds = RoundSpec(
        local_steps=10, push_codec="fp32", update_codec="fp32", shard_elements=16, outer="nesterov", outer_learning_rate=0.7
    )
    async with Swarm(round=rounds) as swarm:
        a, b = [await swarm.add(name) for name in "ab"]
        await trio.sleep(20)
        a, b = (a, b) if b.engine.shards.owned() else (b, a)
        a.hung = b.hung = True  # a round that closed meanwhile would change the momentum
        shard = b.engine.shards.owned()[0]
        held = [peer.engine.shards.replicas[shard] for peer in (a, b)]
        await swarm.until(lambda: all(one.life.push.is_idle for one in held), 60, "the last pushes are in an update")
        before = b.engine.shards.replicas[shard].outer.momentum
        assert before is not None and before.any()

        await swarm.leave(b.name)
        await swarm.until(lambda: a.engine.shards.replicas[shard].round is not None, 10, "the next owner owns it")
        after = a.engine.shards.replicas[shard].outer.momentum
        assert after is not None and after.equal(before)


async def test_a_slow_connection_makes_sparser_pushes_and_longer_rounds_and_a_quick_one_denser(autojump_clock):
    rounds = RoundSpec(
        local_steps=10, push_codec="int8", push_codecs=("fp32", "sign"), update_codec="int8", update_codecs=("sign",),
        shard_elements=4096, max_local_steps=40, dense_codec="",
    )  # fmt: skip
    async with Swarm(round=rounds, numel=16384) as swarm:
        a, slow = [await swarm.add(name) for name in ("a", "slow")]
        carries = {a.id: 100e6, slow.id: 15e3}
        for peer in (a, slow):
            peer.network.messenger.bandwidth = lambda bps=carries[peer.id]: Bandwidth(upload_limit_bps=bps)
        await trio.sleep(30)

        assert a.status().push_codec == "fp32" and a.engine.local_steps == 10
        assert slow.status().push_codec == "sign" and slow.status().update_codec == "sign"
        assert 10 < slow.engine.local_steps <= 40
        assert slow.events_named("link.adapted")
        await swarm.settle()
        assert swarm.agree()
