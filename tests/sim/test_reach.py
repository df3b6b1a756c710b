"""Who owns what where some peers can be reached through relays only."""

from collections.abc import Collection

import msgspec
import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.reach import OwnReach, Reach
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer

ROUND = RoundSpec(local_steps=5, push_codec="fp32", update_codec="fp32", aggregation="mean", shard_elements=8)
VERDICT_S = 4.0  # until a peer has found out that nobody can dial it


def hide(swarm: Swarm, peer: SimPeer, relays: Collection[PeerId]) -> None:
    """It is behind a NAT from the first moment on, and finds that out later."""
    swarm.world.hide(peer.id, relays=relays)

    async def find_out() -> None:
        await trio.sleep(VERDICT_S)
        peer.network.reachability.found(OwnReach(Reach.RELAYED, relays=tuple(relays)))

    swarm.world.start(find_out)


def owners(swarm: Swarm) -> set[str]:
    """The peers that own a shard, in the eyes of anybody."""
    names = {peer.id: name for name, peer in swarm.peers.items()}
    views = (peer.engine.shards.ownership(shard).owner for peer in swarm.living() for shard in range(peer.engine.plan.n_shards))
    return {names.get(owner, "one that left") for owner in views if owner is not None}


class Longest:
    """Watches for how long each peer owns without a break."""

    def __init__(self, swarm: Swarm) -> None:
        self.owned_s: dict[str, float] = {}
        self.n_changes = 0
        self._swarm = swarm
        self._since: dict[str, float] = {}

    async def watch(self, for_s: float) -> None:
        until, before = trio.current_time() + for_s, owners(self._swarm)
        while trio.current_time() < until:
            await trio.sleep(0.5)
            now, found = trio.current_time(), owners(self._swarm)
            self.n_changes += found != before
            before = found
            self._since = {name: self._since.get(name, now) for name in found}
            for name, since in self._since.items():
                self.owned_s[name] = max(self.owned_s.get(name, 0.0), now - since)


async def test_of_many_peers_those_that_cannot_be_dialed_own_nothing_for_long_and_all_pushes_count(autojump_clock):
    async with Swarm(seed=3, round=ROUND, numel=96, step_s=0.4) as swarm:
        relay = await swarm.add("public-0")
        for n in range(1, 6):
            await swarm.add(f"public-{n}")
        for peer in swarm.living():
            peer.network.reachability.found(OwnReach(Reach.PUBLIC))
        longest = Longest(swarm)
        for n in range(6):
            peer = swarm.start(f"hidden-{n}")
            hide(swarm, peer, [relay.id, swarm.peers["public-1"].id])
        await swarm.until(lambda: len(swarm.living()) == 12, 20, "twelve members")

        await longest.watch(20)

        lasting = {name for name, owned_s in longest.owned_s.items() if owned_s > 10}
        assert len(lasting) > 3 and all(name.startswith("public") for name in lasting)
        await swarm.until(swarm.owners_agree, 5)
        included = relay.events_named("round.closed")[-20:]
        assert all(event.fields["averaged_fraction"] == 1.0 for event in included)
        assert all(event.fields["n_included"] == 12 for event in included)
        await swarm.settle(60)
        assert swarm.agree()


async def test_a_run_that_begins_with_nothing_known_gives_its_shards_to_those_that_can_be_reached(autojump_clock):
    async with Swarm(seed=4, round=ROUND, numel=40, step_s=0.2) as swarm:
        relay = await swarm.add("public")
        for n in range(3):
            hide(swarm, swarm.start(f"hidden-{n}"), [relay.id])
        await swarm.until(lambda: len(swarm.living()) == 4, 20, "four members")
        relay.network.reachability.found(OwnReach(Reach.PUBLIC))
        longest = Longest(swarm)

        await longest.watch(20)

        assert owners(swarm) == {"public"}
        assert max((longest.owned_s.get(f"hidden-{n}", 0.0) for n in range(3)), default=0.0) <= 10
        standby = relay.engine.shards.ownership(0).standby
        assert standby in {swarm.peers[f"hidden-{n}"].id for n in range(3)}
        await swarm.settle(60)


async def test_where_nobody_can_be_dialed_everything_goes_through_relays(autojump_clock):
    async with Swarm(seed=5, round=ROUND, numel=40, step_s=0.2) as swarm:
        relay = swarm.world.join(swarm.identity("relay"))  # a bootstrap node: it is in no run
        first = swarm.start("hidden-0")
        hide(swarm, first, [relay.peer_id])
        await first.joined.wait()
        for n in range(1, 4):
            hide(swarm, swarm.start(f"hidden-{n}"), [relay.peer_id])
        await swarm.until(lambda: len(swarm.living()) == 4, 20, "four members")
        await trio.sleep(3 * VERDICT_S)
        before = first.versions()

        await trio.sleep(20)

        assert len(owners(swarm)) > 1
        status = first.status()
        assert {(c.kind, c.relay) for c in status.connections if c.peer_id != relay.peer_id} == {("relayed", relay.peer_id)}
        assert (status.reach.reach, status.reach.relays) == ("relayed", (relay.peer_id,))
        assert {m.reach for m in status.members} == {"relayed"}
        assert min(now - then for now, then in zip(first.versions(), before, strict=True)) > 8
        assert {e.fields["n_included"] for e in first.events_named("round.closed")[-10:]} == {4}
        await swarm.settle(60)
        assert swarm.agree()


async def test_when_the_last_reachable_peer_dies_the_relayed_own_until_one_is_there_again(
    autojump_clock,
):
    async with Swarm(seed=6, round=ROUND, numel=40, step_s=0.2) as swarm:
        relay = swarm.world.join(swarm.identity("relay"))
        public = await swarm.add("public")
        public.network.reachability.found(OwnReach(Reach.PUBLIC))
        for n in range(3):
            hide(swarm, swarm.start(f"hidden-{n}"), [relay.peer_id])
        await swarm.until(lambda: len(swarm.living()) == 4, 20, "four members")
        await swarm.until(lambda: owners(swarm) == {"public"}, 20)

        await swarm.kill("public")
        await swarm.until(lambda: swarm.owners_agree() and owners(swarm) <= {"hidden-0", "hidden-1", "hidden-2"}, 20)
        before = swarm.peers["hidden-0"].versions()
        await trio.sleep(10)
        assert min(now - then for now, then in zip(swarm.peers["hidden-0"].versions(), before, strict=True)) > 3

        again = await swarm.add("public-again", creates=False)
        again.network.reachability.found(OwnReach(Reach.PUBLIC))
        await swarm.until(lambda: swarm.owners_agree() and owners(swarm) == {"public-again"}, 20)
        await swarm.settle(60)


async def test_a_peer_whose_reach_wavers_moves_its_shards_a_few_times_only(autojump_clock):
    async with Swarm(seed=7, round=ROUND, numel=80, step_s=2.0) as swarm:
        for n in range(3):
            peer = await swarm.add(f"p{n}")
            peer.network.reachability.found(OwnReach(Reach.PUBLIC))
        await trio.sleep(5)
        longest, wavering = Longest(swarm), swarm.peers["p2"]

        async def waver() -> None:
            while True:
                for reach in (Reach.RELAYED, Reach.PUBLIC):
                    wavering.network.reachability.found(OwnReach(reach))
                    await trio.sleep(15)

        swarm.world.start(waver)
        await longest.watch(300)

        # twenty changes were found; a change that is announced is seen by one peer after the other
        announced = [peer.engine.members.roster.announced(wavering.id) for peer in swarm.living() if peer is not wavering]
        assert {a.reach for a in announced if a is not None} == {Reach.RELAYED}
        assert longest.n_changes <= 6
        assert {"p0", "p1"} <= owners(swarm)


async def test_a_client_trains_and_owns_nothing_and_a_helper_owns_and_is_never_waited_for(autojump_clock):
    async with Swarm(seed=8, round=ROUND, numel=80, step_s=0.2) as swarm:
        trainer = await swarm.add("trainer")
        client = await swarm.add("client", role="client")
        helper = await swarm.add("helper", role="helper")
        await swarm.until(lambda: swarm.owners_agree() and owners(swarm) == {"trainer", "helper"}, 20)
        before = client.versions()

        await trio.sleep(20)

        assert min(now - then for now, then in zip(client.versions(), before, strict=True)) > 10
        closed = trainer.events_named("round.closed")[-10:]
        assert {(e.fields["n_included"], e.fields["n_expected"]) for e in closed} == {(2, 2)}
        assert helper.digests() == trainer.digests() or helper.versions() != trainer.versions()
        await swarm.leave("trainer")
        await swarm.until(lambda: owners(swarm) == {"helper"}, 20)
        assert client.engine.members.roster.announced(helper.id).weight == 1.0
        assert msgspec.to_builtins(client.engine.members.roster.announced(helper.id).role) == "helper"
