"""Keys of one network weigh little together, in the same bits everywhere; an owner that makes up networks is named by all."""

import msgspec
import trio

from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from tests.sim.test_witness import WATCHED, accusations

BOUNDED = msgspec.structs.replace(WATCHED, same_network="bounded", shard_elements=8)


def place(swarm: Swarm, peer: SimPeer, host: str) -> None:
    swarm.world.hosts[peer.id] = host


def networks_of(peer: SimPeer) -> set[tuple[str, int]]:
    """Of the newest updates: the members and their numbers."""
    found = set()
    for replica in peer.engine.shards.replicas.values():
        entry = replica.chain.last()
        if entry is not None and entry.header.account is not None:
            found |= set(zip((i.peer for i in entry.header.included), entry.header.account.networks, strict=False))
    return found


async def test_members_of_one_network_are_put_together_by_all_owners_and_standbys_compute_the_same(
    autojump_clock: object,
) -> None:
    async with Swarm(round=BOUNDED) as swarm:
        elsewhere = [await swarm.add(name, step_s=0.5) for name in "abc"]
        together = [await swarm.add(name, step_s=0.5) for name in "wxyz"]
        for i, peer in enumerate(elsewhere):
            place(swarm, peer, f"11.1.{i}.1")
        for i, peer in enumerate(together):
            place(swarm, peer, f"12.1.1.{i}")
        await trio.sleep(40)

        seen = networks_of(elsewhere[0])
        ids = {peer.id for peer in together}
        assert {peer for peer, number in seen if number} == ids, "its own push is from nowhere, to an owner"
        assert accusations(swarm) == [] and not elsewhere[0].events_named("owner.misplaced")
        assert sum(len(peer.engine.shards.witness._followed) for peer in swarm.living()) >= 3, "standbys have looked"
        await swarm.settle()
        assert swarm.agree()


async def test_an_owner_that_puts_members_of_different_networks_together_is_named_by_all(autojump_clock: object) -> None:
    async with Swarm(round=BOUNDED) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abcde"]
        for i, peer in enumerate(peers):
            place(swarm, peer, f"11.1.{i}.1")
        await trio.sleep(30)
        liar = max(peers, key=lambda peer: len(peer.engine.shards.owned()))
        others = [peer for peer in peers if peer is not liar]

        liar.engine.shards.networks.numbers = lambda members: (1,) * len(members)

        await swarm.until(lambda: all(not p.engine.shards.states.owned_by(liar.id) for p in others), 60, "deposed")
        assert {e.fields["owner"] for peer in others for e in peer.events_named("owner.inconsistent")} == {liar.id}
        assert not any(peer.events_named("owner.excluded") for peer in peers), "it proves nothing"
