"""Regions that know only a few of each other's members, in runs that restrict who may own, or who may take part."""

import msgspec
import trio

from legion_p2p.core.admission import make_revocation
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.wire import GetRepresentative
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from tests.sim.liar import Liar
from tests.sim.test_admission import token_of
from tests.sim.test_envoys_live import settled
from tests.sim.test_witness import accusations

N_HERE = 5  # one more than a region has envoys
ROUND = RoundSpec(local_steps=5, push_codec="int8", update_codec="int8", aggregation="mean", shard_elements=32, sync_every=2)
PATIENT = msgspec.structs.replace(ROUND, owner_rounds=4, verify="late")


def owners(peer: SimPeer) -> list[object]:
    return [peer.engine.shards.ownership(shard).owner for shard in range(peer.engine.plan.n_shards)]


def synced(peers: list[SimPeer]) -> int:
    return sum(len(peer.events_named("sync.done")) for peer in peers)


async def test_each_region_deals_out_its_shards_and_a_newcomer_of_one_owns_only_later(autojump_clock):
    async with Swarm(round=PATIENT, step_s=0.5) as swarm:
        west = [await swarm.add(f"w{i}", region="west") for i in range(N_HERE)]
        east = [await swarm.add(f"e{i}", region="east") for i in range(N_HERE)]
        salts: dict[str, set[bytes]] = {"west": set(), "east": set()}
        for _ in range(40):
            await trio.sleep(1)
            salts["west"].add(west[0].engine.shards.replicas[0].chain.salt)
            salts["east"].add(east[0].engine.shards.replicas[0].chain.salt)

        newcomer = await swarm.add("w-late", region="west", weight=10)
        await trio.sleep(4)
        assert newcomer.id not in owners(west[0])
        await swarm.until(lambda: newcomer.id in owners(west[0]), 60, "old enough")
        before = synced(east)
        await swarm.until(lambda: synced(east) > before, 60, "the regions go on meeting")

        assert min(len(found) for found in salts.values()) >= 3, "16 rounds"
        assert salts["west"] & salts["east"] <= {b""}
        assert accusations(swarm) == []
        assert set(owners(east[0])) <= {peer.id for peer in east}
        await swarm.settle()


async def test_regions_of_members_with_tokens_sync_and_whoever_is_revoked_in_one_is_out_in_the_other(autojump_clock):
    def private(spec):
        return msgspec.structs.replace(spec, admission="token")

    async with Swarm(round=ROUND, step_s=0.5, specified=private) as swarm:
        west = [await swarm.add("a", region="west")]
        west += [await swarm.add(f"w{i}", region="west", token=token_of(swarm, f"w{i}")) for i in range(N_HERE - 1)]
        east = [await swarm.add(f"e{i}", region="east", token=token_of(swarm, f"e{i}")) for i in range(N_HERE)]
        await swarm.until(lambda: settled(west[0], "east", N_HERE) and settled(east[0], "west", N_HERE), 60)
        await swarm.until(lambda: synced(west) > 0 and synced(east) > 0, 60, "the regions have met")

        stranger = Liar(swarm)
        question = GetRepresentative(stranger.run, "west", 0)
        assert {await stranger.refused(peer, question) for peer in (west[0], east[0])} == {"NotAdmittedError"}

        gone = next(peer for peer in east if not peer.engine.members.own.now().envoy)
        others = [peer for peer in (*west, *east) if peer is not gone]
        await trio.sleep(1)
        west[0].engine.members.revoke(make_revocation(swarm.identity("a"), west[0].engine.id, gone.id))
        await swarm.until(lambda: not any(gone.id in owners(peer) for peer in others), 60, "it owns nothing")
        await swarm.until(lambda: not any(peer.engine.members.table.get(gone.id) for peer in others), 60, "nobody knows it")
        await swarm.kill(gone.name)

        before = synced(east)
        await swarm.until(lambda: synced(east) > before, 60, "the regions go on meeting")
        await swarm.settle()
