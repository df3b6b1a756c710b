"""Updates that are applied before they are checked: what turns out wrong, or is never co-signed, is taken back by all."""

from typing import Any

import pytest
import trio

from legion_p2p.core.shard.provisional import WINDOW
from legion_p2p.errors import NetworkError
from legion_p2p.services.shards.taking_back import HELD_UP, WRONG
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer
from tests.sim.test_cosigning import silence
from tests.sim.test_witness import WATCHED, WrongOwner, accusations, busiest, five_under_way, is_excluded


def taken_back(peers: list[SimPeer]) -> list[Any]:
    return [event for peer in peers for event in peer.events_named("shard.taken_back")]


def states_of(peer: SimPeer, shard: int) -> dict[int, bytes]:
    """The versions that its chain came through."""
    return dict(peer.engine.shards.replicas[shard].chain.newest_states(1000))


class Lies:
    """The states that an owner's wrong updates lead to."""

    def __init__(self, culprit: SimPeer, monkeypatch: pytest.MonkeyPatch, shards: list[int]) -> None:
        self.digests: set[bytes] = set()
        self._wrong = WrongOwner(culprit, monkeypatch, shards)
        self._is_lying = lambda: self._wrong.n_lies > 0
        culprit.engine.shards.states.updated.add(self._note)
        self._culprit = culprit

    def _note(self, accepted: Any) -> None:
        if accepted.header.owner == self._culprit.id and self._is_lying():
            self.digests.add(accepted.header.digest)

    def held_by(self, peer: SimPeer) -> bool:
        return any(self.digests & set(states_of(peer, shard).values()) for shard in peer.engine.shards.replicas)


async def test_a_wrong_version_is_taken_back_by_all_and_what_was_pushed_into_it_comes_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    async with Swarm(round=WATCHED) as swarm:
        peers, culprit = await five_under_way(swarm)
        others = [peer for peer in peers if peer is not culprit]
        shards = culprit.engine.shards.owned()
        before = {shard: states_of(others[0], shard) for shard in shards}
        lies = Lies(culprit, monkeypatch, shards)

        await swarm.until(lambda: is_excluded(swarm, culprit), 20, "found out by all")
        await trio.sleep(20)

        assert lies.digests and not any(lies.held_by(peer) for peer in others)
        for peer in others:
            events = peer.events_named("shard.taken_back")
            assert {e.fields["shard"] for e in events} <= set(shards) and WRONG in {e.fields["reason"] for e in events}
            assert sum(e.fields["n_own"] for e in events) >= 1, "its pushes were in them"
            assert all(e.fields["n_versions"] <= WINDOW for e in events)
        for shard in shards:
            assert all(before[shard].items() <= states_of(peer, shard).items() for peer in others), "no honest version is gone"
        await swarm.settle()
        assert swarm.agree()


async def test_what_an_owner_shows_no_inputs_of_is_taken_back_when_it_loses_the_shard(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    async with Swarm(round=WATCHED) as swarm:
        peers, culprit = await five_under_way(swarm)
        others = [peer for peer in peers if peer is not culprit]
        shard = culprit.engine.shards.owned()[0]

        async def show_nothing(*_: Any) -> Any:
            raise NetworkError("no")

        async def go_on(*_: Any) -> bool:
            return True

        monkeypatch.setattr(culprit.engine.shards.exchange._slots, "give", show_nothing)
        monkeypatch.setattr(culprit.engine.shards.cosigner, "may_make_another", go_on)
        lies = Lies(culprit, monkeypatch, [shard])

        await swarm.until(lambda: len(lies.digests) >= WINDOW, 60, "it lies")
        await swarm.until(lambda: not any(lies.held_by(peer) for peer in others), 120, "all took it back")

        refused = [e for peer in others for e in peer.events_named("update.not_cosigned")]
        assert refused and {e.fields["peer"] for e in refused if "not co-signed" in e.fields["reason"]} == {culprit.id}
        reasons = {e.fields["reason"] for e in taken_back(others)}
        assert HELD_UP in reasons, "its next owner"
        assert accusations(swarm) == [], "it proves nothing"
        await trio.sleep(20)
        assert not any(lies.held_by(peer) for peer in others)


async def test_where_standbys_die_or_sign_nothing_others_sign_and_nothing_is_taken_back(autojump_clock: object) -> None:
    async with Swarm(round=WATCHED) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abcde"]
        await trio.sleep(30)
        silence(swarm, next(peer for peer in peers if peer.id == peers[0].engine.shards.ownership(1).standby))
        await trio.sleep(40)
        dead = peers[0].engine.shards.ownership(0).standby
        await swarm.kill(next(peer.name for peer in peers if peer.id == dead))
        before = min(swarm.living()[0].versions())
        await trio.sleep(60)

        assert min(swarm.living()[0].versions()) > before + 6, "of 12"
        for peer in swarm.living():
            provisional = [replica.provisional.n for replica in peer.engine.shards.replicas.values()]
            assert max(provisional) < WINDOW
        assert taken_back(peers) == []


@pytest.mark.parametrize(("seed", "at_s"), [(1, 41.9), (2, 42.6)])
async def test_an_owner_that_is_killed_and_started_again_at_once_lets_others_go_on_first(
    seed: int, at_s: float, autojump_clock: object
) -> None:
    """It has lost pushes that it had signed receipts for (the first), and the inputs of versions without a signature."""
    async with Swarm(round=WATCHED, seed=seed) as swarm:
        peers = [await swarm.add(name, step_s=0.5) for name in "abcd"]
        await trio.sleep(at_s)
        owner = busiest(peers)
        shards, before = owner.engine.shards.owned(), owner.versions()
        await swarm.kill(owner.name)
        await trio.sleep(1.0)

        again = await swarm.add(owner.name, creates=False, step_s=0.5)

        assert all(version > before[shard] for shard, version in enumerate(again.versions()) if shard in shards)
        await trio.sleep(40)
        versions = [peer.versions() for peer in swarm.living()]
        assert all(each[shard] >= before[shard] + 6 for each in versions for shard in shards), "of 9"
        assert set(shards) & set(again.engine.shards.owned()), "it owns again"
        assert accusations(swarm) == [] and taken_back(list(swarm.living())) == []


async def test_of_two_members_the_survivor_has_nobody_to_sign_and_goes_on(autojump_clock: object) -> None:
    async with Swarm(round=WATCHED) as swarm:
        a = await swarm.add("a", step_s=0.5)
        await swarm.add("b", step_s=0.5)
        await trio.sleep(30)
        await swarm.kill("b")
        before = min(a.versions())
        await trio.sleep(60)

        assert min(a.versions()) > before + WINDOW
        assert taken_back([a]) == [] and all(r.provisional.n == 0 for r in a.engine.shards.replicas.values())
