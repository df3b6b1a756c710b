"""A run that does not admit everybody: who shows no token gets nothing and counts for nothing, at every member."""

import msgspec
import torch
import trio

from legion_p2p.core.admission import make_revocation, make_token
from legion_p2p.core.announcement import sign
from legion_p2p.core.priority import Priority
from legion_p2p.core.run import announce_topic
from legion_p2p.core.wire import (
    Accusation,
    Exchange,
    Exchanged,
    GetShard,
    GetSpec,
    GetUpdates,
    Ping,
    PingFor,
    SpecFound,
)
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import BEGAN_AT, SimPeer
from legion_p2p.visit import show_token
from tests.sim.liar import CAPPED, HUGE, Liar, ends_equal, goes_on

LONG = int(BEGAN_AT) + 100_000


def private() -> Swarm:
    return Swarm(round=CAPPED, numel=32, specified=lambda spec: msgspec.structs.replace(spec, admission="token"))


def token_of(swarm: Swarm, name: str, until: int = LONG) -> bytes:
    """Made by the creator, whose name is a."""
    return make_token(swarm.identity("a"), swarm.peers["a"].engine.id, swarm.identity(name).peer_id, until)


async def three(swarm: Swarm) -> list[SimPeer]:
    peers = [await swarm.add("a")]
    peers += [await swarm.add(name, token=token_of(swarm, name)) for name in "bc"]
    await trio.sleep(5)
    return peers


def knows(peer: SimPeer, other: str) -> bool:
    return peer.engine.members.table.get(other) is not None


async def test_members_with_tokens_train_together(autojump_clock):
    async with private() as swarm:
        await three(swarm)

        with goes_on(swarm):
            await trio.sleep(10)

        assert swarm.owners_agree()
        await ends_equal(swarm)


async def test_a_stranger_gets_nothing_but_the_specification_and_owns_nothing(autojump_clock):
    async with private() as swarm:
        peers = await three(swarm)
        liar = Liar(swarm)
        signed = sign(liar.announcement(ready=True, training=True, weight=HUGE), liar.identity)
        requests = [
            Exchange(liar.run, (signed,)), Ping(liar.run), PingFor(liar.run, peers[1].id), GetShard(liar.run, 0),
            GetUpdates(liar.run, 0, 0, b"d" * 32), Accusation(liar.run, peers[1].id, 0), liar.push(),
            liar.update(peers[0], torch.ones(16)),
        ]  # fmt: skip

        with goes_on(swarm):
            kinds = {await liar.refused(peer, request, Priority.ROUND) for peer in peers for request in requests}
            await liar.network.gossip.publish(announce_topic(liar.run), signed)
            await trio.sleep(10)

        assert kinds == {"NotAdmittedError"}
        assert isinstance(await liar.ask(peers[0], GetSpec(liar.run)), SpecFound)
        assert not any(knows(peer, liar.id) for peer in peers)
        assert not any(liar.is_out(peer) for peer in peers), "to ask is no misbehaviour"
        await ends_equal(swarm, liar)


async def test_a_token_of_another_peer_admits_nobody(autojump_clock):
    async with private() as swarm:
        peers = await three(swarm)
        liar = Liar(swarm)
        stolen = sign(liar.announcement(ready=True, token=token_of(swarm, "b")), liar.identity)

        assert await liar.refused(peers[0], Exchange(liar.run, (stolen,))) == "NotAdmittedError"


async def test_whoever_brings_a_token_by_itself_is_told_of_the_others(autojump_clock):
    async with private() as swarm:
        peers = await three(swarm)
        guest = Liar(swarm, "guest")
        mine = sign(guest.announcement(token=token_of(swarm, "guest")), guest.identity)

        reply = await guest.ask(peers[0], Exchange(guest.run, (mine,)))

        assert isinstance(reply, Exchanged) and len(reply.announcements) == 3


async def test_whoever_shows_its_token_only_to_fetch_something_is_given_it_and_is_no_member(autojump_clock):
    async with private() as swarm:
        peers = await three(swarm)
        guest, stranger = Liar(swarm, "guest"), Liar(swarm, "stranger")
        members = [peer.id for peer in peers]
        token = token_of(swarm, "guest")
        assert await guest.refused(peers[0], Ping(guest.run)) == "NotAdmittedError"

        admitting = await show_token(guest.network.messenger, guest.run, guest.identity, token, members)
        refusing = await show_token(stranger.network.messenger, guest.run, stranger.identity, token, members)
        await trio.sleep(5)

        assert admitting == set(members) and refusing == set()
        assert [await guest.refused(peer, Ping(guest.run)) for peer in peers] == [""] * 3
        assert await stranger.refused(peers[0], Ping(guest.run)) == "NotAdmittedError"
        assert not any(knows(peer, guest.id) for peer in peers)
        swarm.world.kill(guest.id)  # the visit ends, and the same peer joins
        joined = await swarm.add("guest", token=token)
        await trio.sleep(5)
        assert all(knows(peer, joined.id) for peer in peers)


async def test_when_a_token_expires_its_holder_is_no_member_any_more(autojump_clock):
    async with private() as swarm:
        peers = await three(swarm)
        guest = await swarm.add("guest", token=token_of(swarm, "guest", int(BEGAN_AT + trio.current_time()) + 30))
        await trio.sleep(10)
        assert all(knows(peer, guest.id) for peer in peers)

        await trio.sleep(25)

        assert not any(knows(peer, guest.id) for peer in peers)
        await swarm.kill("guest")
        with goes_on(swarm):
            await trio.sleep(10)
        assert swarm.owners_agree()


async def test_a_revocation_that_one_member_knows_of_reaches_all(autojump_clock):
    async with private() as swarm:
        peers = await three(swarm)
        guest = await swarm.add("guest", token=token_of(swarm, "guest"))
        await trio.sleep(5)
        revocation = make_revocation(swarm.identity("a"), peers[0].engine.id, guest.id)

        peers[2].engine.members.revoke(revocation)
        await swarm.until(lambda: not any(knows(peer, guest.id) for peer in peers), 10, "all know")

        await swarm.kill("guest")
        newcomer = await swarm.add("d", token=token_of(swarm, "d"))
        await trio.sleep(5)
        assert "revoked" in newcomer.engine.members.access.admission.refusal(guest.id, token_of(swarm, "guest"), BEGAN_AT)


async def test_a_ban_holds_at_the_peer_whose_user_spoke_it(autojump_clock):
    async with Swarm(round=CAPPED, numel=32) as swarm:
        peers = [await swarm.add(name) for name in "abc"]
        liar = Liar(swarm)
        await liar.become_member(ready=True)
        assert all(knows(peer, liar.id) for peer in peers)

        peers[0].engine.members.access.ban({liar.id})
        await trio.sleep(5)

        assert [knows(peer, liar.id) for peer in peers] == [False, True, True]
        assert await liar.refused(peers[0], Ping(liar.run)) == "NotAdmittedError"
        peers[0].engine.members.access.ban(set())
        assert await liar.refused(peers[0], Ping(liar.run)) == ""
