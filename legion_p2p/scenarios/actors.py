"""The peers of a simulation as its plan has them: each comes, goes, comes back, and tries again where it could not join."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import trio

from legion_p2p.core.access_link import LinkProfile
from legion_p2p.core.identity import PeerId
from legion_p2p.core.profiles import parse_link
from legion_p2p.errors import LegionError
from legion_p2p.scenarios.link_trace import LinkTrace
from legion_p2p.scenarios.swarm_plan import Attendance, PeerPlan
from legion_p2p.scenarios.trace import Record
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer

RETRY_S = 5.0  # until a peer that could not join is started again, as its user would
NO_LIMIT = LinkProfile(rtt_s=0.010)  # of peers without a link, where others have one


@dataclass(eq=False)
class Actor:
    """One peer of the plan, whether it is there or not."""

    plan: PeerPlan
    peer: SimPeer | None = None
    leaving: SimPeer | None = None
    """Its last life, which may not be over."""
    trace: LinkTrace | None = None
    session: Attendance | None = None
    held: Counter[str] = field(default_factory=Counter)
    """How many faults of a kind it is under."""
    n_starts: int = 0
    sent_bytes: int = 0
    """Of its lives so far; of the present one see the network."""
    gossip_bytes: int = 0
    joined_after_s: list[float] = field(default_factory=list)
    began_at_s: float = 0.0

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def is_in_run(self) -> bool:
        """It has joined, and is there."""
        return self.peer is not None and self.peer.joined.is_set() and not self.peer.ended.is_set()

    def free(self) -> None:
        """It is gone, and its faults end with it; but walls stay, also around peers that come back."""
        self.held = Counter(partition=self.held["partition"])

    @property
    def is_apart(self) -> bool:
        """A fault keeps it from the others."""
        return bool(self.held["suspend"] or self.held["partition"])


class Cast:
    """All actors of a simulation, and the swarm that they are in."""

    def __init__(self, swarm: Swarm, plans: tuple[PeerPlan, ...], record: Record, traces: dict[str, LinkTrace]) -> None:
        self.swarm = swarm
        self.record = record
        self.actors = {plan.name: Actor(plan, trace=traces.get(plan.group.trace)) for plan in plans}
        self.by_id: dict[PeerId, Actor] = {}
        self.on_join: Callable[[Actor, SimPeer], object] = lambda actor, peer: None
        """Called when a peer has joined the run."""
        self._nursery: trio.Nursery | None = None
        self._first = next(iter(self.actors.values()))
        for actor in self.actors.values():
            self.by_id[swarm.identity(actor.name).peer_id] = actor
            if swarm.world.links is not None:
                swarm.world.links[swarm.identity(actor.name).peer_id] = self.link_of(actor)

    def link_of(self, actor: Actor) -> LinkProfile:
        """Its link without faults, now."""
        profile = parse_link(actor.plan.group.link) if actor.plan.group.link else NO_LIMIT
        return profile if actor.trace is None else actor.trace.at(trio.current_time() if self._nursery else 0.0, profile)

    async def perform(self, nursery: trio.Nursery) -> None:
        """Start the peer that creates the run, wait for it, and let all others come and go in the background."""
        self._nursery = nursery
        await self.begin(self._first, creates=True)
        assert self._first.peer is not None
        await self._first.peer.joined.wait()
        for actor in self.actors.values():
            nursery.start_soon(self._live, actor)
            if actor.trace is not None:
                nursery.start_soon(self._follow_trace, actor, actor.trace)

    def finish(self) -> None:
        """From now on nobody comes, and one that fails is not started again."""
        self._nursery = None

    def in_run(self) -> list[Actor]:
        """Those that are in the run now, in the order of the plan."""
        return [actor for actor in self.actors.values() if actor.is_in_run]

    async def begin(self, actor: Actor, creates: bool = False) -> None:
        """Start it, unless it is there; one that is still leaving comes back when it has left."""
        if actor.leaving is not None:
            await actor.leaving.ended.wait()
            actor.leaving = None
        if actor.peer is not None or self._nursery is None:
            return
        group = actor.plan.group
        how: dict[str, Any] = {"role": group.role, "weight": group.weight, "region": group.region, "stores": group.stores}
        peer = actor.peer = self.swarm.start(
            actor.name, step_s=actor.plan.step_s, creates=creates, relay=group.role != "client" and not group.hidden, **how
        )
        actor.n_starts += 1
        actor.began_at_s = trio.current_time()
        if group.hidden:
            self.swarm.world.hide(peer.id, relays=[self.swarm.identity(self._first.name).peer_id])
        self.record.peer(actor.name, "started", id=peer.id)
        self._nursery.start_soon(self._tell_joined, actor, peer)

    async def end(self, actor: Actor, leaves: bool) -> None:
        """Kill it, or let it leave."""
        peer = actor.peer
        if peer is None:
            return
        actor.peer = None
        actor.free()
        self._count(actor, peer)
        self.record.peer(actor.name, "left" if leaves else "killed")
        actor.leaving = peer
        if leaves and peer.joined.is_set():
            await self.swarm.leave(actor.name)
        else:
            await self.swarm.kill(actor.name)

    def failed(self, peer: SimPeer, error: Exception) -> None:
        """A peer has ended by an error. One that could not join is started again; anything else should not happen."""
        actor = self.actors[peer.name]
        if actor.peer is peer:
            actor.peer = None
            actor.free()
            self._count(actor, peer)
        known = _plain_cause(error)
        if not isinstance(known, LegionError) or peer.joined.is_set():
            text = f"{peer.name} ended by {type(known).__name__}: {known}"
            self.record.violation("ended", text[:300], peers=[peer.name])
        self.record.peer(actor.name, "failed", reason=f"{type(known).__name__}: {known}"[:300])
        if self._nursery is not None:
            self._nursery.start_soon(self._try_again, actor)

    def sent_bytes(self) -> tuple[int, int]:
        """Requests and replies, and gossip, of all so far."""
        sent = sum(actor.sent_bytes + (actor.peer.network.n_sent if actor.peer else 0) for actor in self.actors.values())
        heard = sum(actor.gossip_bytes + (actor.peer.network.n_gossip if actor.peer else 0) for actor in self.actors.values())
        return sent, heard

    async def _live(self, actor: Actor) -> None:
        for session in actor.plan.sessions:
            await trio.sleep_until(session.begin_s)
            actor.session = session
            await self.begin(actor)
            if session.end_s == math.inf:
                return
            await trio.sleep_until(session.end_s)
            actor.session = None
            await self.end(actor, session.leaves)

    async def _try_again(self, actor: Actor) -> None:
        await trio.sleep(RETRY_S)
        if actor.session is not None:
            await self.begin(actor)

    async def _tell_joined(self, actor: Actor, peer: SimPeer) -> None:
        await peer.joined.wait()
        if actor.peer is peer:
            actor.joined_after_s.append(trio.current_time() - actor.began_at_s)
            self.on_join(actor, peer)

    async def _follow_trace(self, actor: Actor, trace: LinkTrace) -> None:
        while True:
            await trio.sleep_until(trace.next_change(trio.current_time()))
            if not actor.held["link"]:
                self.swarm.world.rates.relink(self.swarm.identity(actor.name).peer_id, self.link_of(actor))

    def _count(self, actor: Actor, peer: SimPeer) -> None:
        actor.sent_bytes += peer.network.n_sent
        actor.gossip_bytes += peer.network.n_gossip
        self.look_for_errors(actor, peer)

    def look_for_errors(self, actor: Actor, peer: SimPeer) -> None:
        """What its handlers have failed with since the last look, as violations."""
        errors, peer.network.handler_errors = peer.network.handler_errors, []
        for error in errors:
            self.record.violation("ended", f"a handler of {actor.name} failed with {type(error).__name__}: {error}"[:300])


def slower(profile: LinkProfile, factor: float) -> LinkProfile:
    """The same link with rates divided by `factor`."""
    return msgspec.structs.replace(profile, up_bps=profile.up_bps / factor, down_bps=profile.down_bps / factor)


def _plain_cause(error: BaseException) -> BaseException:
    """What is inside exception groups of one."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error
