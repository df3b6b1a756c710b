"""Runs in which no update counts that nobody but its owner has computed."""

from typing import Any

import msgspec
import pytest
import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import Cosign, Update, decode_request, encode
from legion_p2p.errors import NetworkError
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from tests.sim.liar import Liar
from tests.sim.test_witness import WATCHED, WrongOwner, accusations, busiest, is_excluded

STRICT = msgspec.structs.replace(WATCHED, verify="strict")


def made_by_others(peer: SimPeer) -> list[Update]:
    """The updates in its logs that other peers made."""
    found = []
    for replica in peer.engine.shards.replicas.values():
        for version in range(replica.chain.version + 1):
            entry = replica.chain.entry(version)
            if entry is not None and entry.header.owner != peer.id:
                found.append(entry.update)
    return found


def silence(swarm: Swarm, peer: SimPeer) -> None:
    """It answers all, but signs for nobody."""

    async def nothing(*_: Any, **__: Any) -> Any:
        raise NetworkError("nothing is signed here")

    peer.engine.shards.cosigner.on_cosign = nothing
    peer.engine.shards.cosigner._watch.check = nothing


async def test_every_update_was_computed_again_before_anybody_applied_it(autojump_clock: object) -> None:
    async with Swarm(round=STRICT) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abcd"]
        await trio.sleep(40)
        await swarm.kill(busiest(peers).name)
        await trio.sleep(30)
        await swarm.add("late")
        await trio.sleep(30)
        await swarm.leave(busiest(list(swarm.living())).name)
        await trio.sleep(20)

        assert accusations(swarm) == []
        assert min(swarm.living()[0].versions()) > 12, "of 24 that there is time for, less what deaths and joins take"
        await swarm.settle()
        assert swarm.agree()
        for peer in swarm.living():
            updates = made_by_others(peer)
            assert updates and all(update.cosigner for update in updates)


async def test_a_wrong_update_does_nothing_to_anybody(monkeypatch: pytest.MonkeyPatch, autojump_clock: object) -> None:
    async with Swarm(round=STRICT) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abcde"]
        await trio.sleep(40)
        culprit = busiest(peers)
        others = [peer for peer in peers if peer is not culprit]
        lie = WrongOwner(culprit, monkeypatch)
        applied: list[Any] = []
        for peer in others:
            peer.engine.shards.states.updated.add(lambda a: applied.append(a.header) if a.header.owner == culprit.id else None)

        await swarm.until(lambda: is_excluded(swarm, culprit), 20, "found out by all")
        await trio.sleep(20)

        assert lie.n_lies >= 1 and applied == [], "not one that it made since"
        await swarm.settle()
        assert swarm.agree()


async def test_where_the_standby_does_not_sign_the_next_one_does(autojump_clock: object) -> None:
    async with Swarm(round=STRICT) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abcd"]
        await trio.sleep(20)
        standby = peers[0].engine.shards.ownership(0).standby
        silent = next(peer for peer in peers if peer.id == standby)
        silence(swarm, silent)
        before = min(peers[0].versions())
        await trio.sleep(60)

        assert min(peers[0].versions()) > before + 6, "of 12"
        refused = [e for peer in peers for e in peer.events_named("update.not_cosigned")]
        assert refused and {e.fields["peer"] for e in refused} == {silent.id}
        assert len(refused) <= 12, "one that is silent is asked last for a minute"


async def test_members_that_do_not_believe_the_one_that_signed_compute_the_update_again(autojump_clock: object) -> None:
    async with Swarm(round=STRICT) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abcd"]
        await trio.sleep(20)
        for peer in peers:  # for them whoever signs has just been excluded
            peer.engine.shards.cosignatures._cosigners.believed = lambda *_: (PeerId("another"),)
        before = min(peers[0].versions())
        await trio.sleep(60)

        assert min(min(peer.versions()) for peer in peers) > before + 6, "of 12"
        assert all(peer.events_named("update.not_cosigned") for peer in peers) and accusations(swarm) == []
        await swarm.settle()
        assert swarm.agree()


async def test_of_two_members_the_survivor_goes_on_alone(autojump_clock: object) -> None:
    async with Swarm(round=STRICT) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "ab"]
        await trio.sleep(30)
        made = [update for peer in peers for update in made_by_others(peer)]
        assert made and all(update.cosigner for update in made)
        await swarm.kill("b")
        before = min(peers[0].versions())
        await trio.sleep(40)

        assert min(peers[0].versions()) > before + 2


async def test_nobody_signs_for_one_that_owns_nothing(autojump_clock: object) -> None:
    async with Swarm(round=STRICT) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abc"]
        await trio.sleep(20)
        liar = Liar(swarm)
        await liar.become_member()
        update = peers[0].engine.shards.replicas[0].chain.last().update
        ours = Cosign(liar.run, 0, update.header, update.signature)

        kinds = [
            await liar.refused(peers[0], ours),
            await liar.refused(peers[0], msgspec.structs.replace(ours, signature=b"s" * 64)),
            await liar.refused(peers[0], msgspec.structs.replace(ours, shard=1)),
        ]

        assert kinds == ["DecodeError", "SignatureError", "DecodeError"]


async def test_an_update_without_a_signature_is_not_applied(autojump_clock: object) -> None:
    async with Swarm(round=STRICT) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abc"]
        await trio.sleep(20)
        stripped = []

        def strip(source: SimPeer) -> None:
            request = source.network.messenger.request

            async def changed(peer: Any, body: bytes, *rest: Any) -> bytes:
                message = decode_request(bytes(body)) if isinstance(body, bytes) else None
                if isinstance(message, Update):
                    stripped.append(message)
                    body = encode(msgspec.structs.replace(message, cosigner="", cosignature=b""))
                return await request(peer, body, *rest)

            source.network.messenger.request = changed

        culprit = busiest(peers)
        strip(culprit)
        others = [peer for peer in peers if peer is not culprit]
        await trio.sleep(10)

        assert stripped
        assert [e for peer in others for e in peer.events_named("update.not_cosigned") if "nobody" in e.fields["reason"]]
