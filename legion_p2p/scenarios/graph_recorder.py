"""Recording the graph of a simulation: from what peers do to the lines of graph.py.

What it hears of one thing comes from several peers; a state counts as made when it is first heard of, which is at its owner,
unless that one is still joining. A state of which it never hears how it was made has a number, but cannot be replayed.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial

from legion_p2p.core.identity import PeerId
from legion_p2p.observe.events import Event
from legion_p2p.scenarios.graph import (
    AS_HANDED_IN,
    FORMAT,
    AloneLine,
    BeginLine,
    CloseLine,
    EndLine,
    GraphHeader,
    HandInLine,
    Line,
    LookLine,
    MergeLine,
    OriginLine,
    PackLine,
    ReleaseLine,
    SyncedLine,
    SyncLine,
    TakeLine,
)
from legion_p2p.scenarios.scenario import Scenario
from legion_p2p.scenarios.swarm_plan import SwarmPlan
from legion_p2p.services.shards.mailbox import Delivery
from legion_p2p.services.shards.replica import LocalChange, Replica
from legion_p2p.services.shards.states import AcceptedUpdate
from legion_p2p.sim.swarm import identity_of
from legion_p2p.sim.swarm_peer import SimPeer
from legion_p2p.tensor.compact import value_of
from legion_p2p.tensor.flatten import digest

WriteLine = Callable[[GraphHeader | Line], object]


class GraphRecorder:
    """Hears of everything, and writes lines."""

    def __init__(self, seed: int, scenario: Scenario, plan: SwarmPlan, write: WriteLine) -> None:
        self._about = seed, scenario
        self._write = write
        self._has_begun = False
        self._index = {peer.name: i for i, peer in enumerate(plan.peers)}
        self._lives: dict[str, SimPeer] = {}
        self._states: dict[tuple[str, int, int, bytes], int] = {}
        """By region, shard, version and digest: rounds in which nothing changes have the digest of those before."""
        self._anywhere: dict[tuple[int, int, bytes], int] = {}
        self._pushes: dict[tuple[str, int, int], int] = {}
        """By peer id, shard and number."""
        self._n_pushes = 0
        self._held: dict[tuple[str, int], int] = {}
        self._merging: set[tuple[str, int]] = set()
        self._index_of_id: dict[PeerId, int] = {}
        self._keeping: dict[tuple[int, str, int], None] = {}
        """Owner, region and shard of which it keeps something for later rounds."""
        self._asked: set[tuple[str, str, int]] = set()

    # see sim.swarm_peer.TrainingTap

    def took_in(self, peer: SimPeer, deliveries: Collection[Delivery]) -> None:
        if self._lives.get(peer.name) is not peer:
            self._enter(peer)
        taken = []
        for delivery in deliveries:
            state = AS_HANDED_IN
            if delivery.reference is not None:
                state = self._state_of(peer, delivery.shard, delivery.version, digest(value_of(delivery.reference)))
            taken.append((delivery.shard, state))
        self._write(TakeLine(self._index[peer.name], peer.local_trainer.steps, tuple(taken)))

    def handed_in(self, peer: SimPeer, changes: Sequence[LocalChange]) -> None:
        shards = tuple(change.shard for change in changes)
        self._write(HandInLine(self._index[peer.name], peer.local_trainer.steps, shards))

    # what the simulation tells

    def event(self, peer: SimPeer, event: Event) -> None:
        """An event of a peer."""
        if self._lives.get(peer.name) is not peer:
            return  # it is not in the run yet
        fields = event.fields
        if event.name == "shard.merged":
            self._merging.add((peer.name, fields["shard"]))
        elif event.name in ("shard.handed_over", "shard.handover_failed"):
            heir = self._index_of_id.get(fields["owner"]) if event.name == "shard.handed_over" else None
            self._release(self._index[peer.name], peer.engine.region, fields["shard"], heir)
        elif event.name == "sync.done":
            region, other, shard = peer.engine.region, fields["region"], fields["shard"]
            if (other, region, shard) in self._asked:  # the other side has moved before: this is the one that asked
                self._asked.discard((other, region, shard))
                self._write(SyncedLine(region, other, shard))
            else:
                self._asked.add((region, other, shard))
                self._write(SyncLine(region, other, shard, fields["rate"]))

    def look(self, at_s: float, n_steps: int, speakers: Sequence[SimPeer]) -> None:
        """A sample of the common models that these peers hold."""
        copies = []
        for peer in speakers:
            replicas = peer.engine.shards.replicas
            chains = [(shard, replicas[shard].chain) for shard in range(peer.engine.plan.n_shards)]
            copies.append(tuple(self._state_of(peer, shard, chain.version, chain.digest) for shard, chain in chains))
        self._write(LookLine(at_s, n_steps, tuple(copies)))

    # what happens at one peer

    def _begin(self, n_shards: int) -> None:
        seed, scenario = self._about
        ids = tuple(identity_of(seed, peer).peer_id for peer in self._index)
        self._index_of_id = {peer: i for i, peer in enumerate(ids)}
        self._write(GraphHeader(FORMAT, seed, scenario, n_shards, tuple(self._index), ids))
        self._has_begun = True

    def _enter(self, peer: SimPeer) -> None:
        if not self._has_begun:
            self._begin(peer.engine.plan.n_shards)
        before = self._lives.get(peer.name)
        index = self._index[peer.name]
        if before is not None:
            self._write(EndLine(index, before.local_trainer.steps))
            for owner, region, shard in [key for key in self._keeping if key[0] == index]:
                self._release(owner, region, shard, None)
        self._lives[peer.name] = peer
        self._write(BeginLine(index))
        states = peer.engine.shards.states
        states.updated.add(partial(self._updated, peer))
        states.packed.add(partial(self._packed, peer))
        states.replaced.add(partial(self._replaced, peer))
        for shard, replica in states.replicas.items():
            chain = replica.chain
            self._held[peer.name, shard] = self._state_of(peer, shard, chain.version, chain.digest)

    def _packed(self, peer: SimPeer, replica: Replica) -> None:
        packed = replica.life.push.packed
        if packed is None:
            return
        self._pushes[peer.id, replica.shard, packed.seq] = push = self._n_pushes
        self._n_pushes += 1
        index = self._index[peer.name]
        self._write(PackLine(push, index, replica.shard, packed.version, packed.tokens, packed.steps, packed.body.codec))

    def _updated(self, peer: SimPeer, accepted: AcceptedUpdate) -> None:
        header, region = accepted.header, peer.engine.region
        key = (region, header.shard, header.version, header.digest)
        owner = self._index_of_id.get(PeerId(header.owner))
        if key not in self._states and owner is not None:
            base = self._state_of(peer, header.shard, header.version - 1, header.base_digest)
            pushes = [self._pushes.get((PeerId(one.peer), header.shard, one.seq)) for one in header.included]
            known = tuple(push for push in pushes if push is not None)
            state = self._new_state(key)
            self._keeping[owner, region, header.shard] = None
            if len(known) == len(pushes):
                self._write(CloseLine(region, owner, header.shard, header.version, base, state, known, header.codec))
        self._held[peer.name, header.shard] = self._state_of(peer, header.shard, header.version, header.digest)

    def _replaced(self, peer: SimPeer, replica: Replica) -> None:
        chain, shard, region = replica.chain, replica.shard, peer.engine.region
        where = (peer.name, shard)
        is_known = (shard, chain.version, chain.digest) in self._anywhere
        if not is_known and chain.owner == peer.id:  # what it trained alone
            state = self._new_state((region, shard, chain.version, chain.digest))
            self._write(AloneLine(region, self._index[peer.name], shard, state))
        else:
            state = self._state_of(peer, shard, chain.version, chain.digest)
            if where in self._merging and where in self._held:
                self._write(MergeLine(self._index[peer.name], shard, self._held[where], state))
        self._merging.discard(where)
        self._held[where] = state

    def _release(self, owner: int, region: str, shard: int, heir: int | None) -> None:
        self._keeping.pop((owner, region, shard), None)
        if heir is not None:
            self._keeping[heir, region, shard] = None
        self._write(ReleaseLine(region, owner, shard, heir))

    def _state_of(self, peer: SimPeer, shard: int, version: int, of: bytes) -> int:
        known = self._states.get((peer.engine.region, shard, version, of))
        if known is None:
            known = self._anywhere.get((shard, version, of))  # it came from another region
        if known is None:
            known = self._new_state((peer.engine.region, shard, version, of))
            if not version:
                self._write(OriginLine(known, shard))
        return known

    def _new_state(self, key: tuple[str, int, int, bytes]) -> int:
        _, shard, version, of = key
        state = self._states[key] = len(self._states)
        self._anywhere.setdefault((shard, version, of), state)
        return state
