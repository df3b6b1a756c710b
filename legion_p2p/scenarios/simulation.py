"""A scenario, simulated: whole peers of the real engine in virtual time, from the first join to the last sample."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import trio
from trio.testing import MockClock

from legion_p2p.config import DEFAULT_REGION, PeerConfig
from legion_p2p.core.access_link import LinkProfile
from legion_p2p.core.identity import PeerId
from legion_p2p.core.membership import MembershipConfig
from legion_p2p.observe.events import Event
from legion_p2p.scenarios.actors import Actor, Cast
from legion_p2p.scenarios.faults import carry_out
from legion_p2p.scenarios.graph_recorder import GraphRecorder, WriteLine
from legion_p2p.scenarios.link_trace import LinkTrace, read_link_trace
from legion_p2p.scenarios.scenario import Scenario
from legion_p2p.scenarios.summary import SimOutcome, n_behind, position_of
from legion_p2p.scenarios.swarm_plan import SwarmPlan, plan_of
from legion_p2p.scenarios.tasks import TrainedTask, trained_task
from legion_p2p.scenarios.trace import Record, Sample, Write
from legion_p2p.scenarios.watch import Holding, TakenUpdate, Violation, Watch
from legion_p2p.services.shards.states import AcceptedUpdate
from legion_p2p.sim.attackers import ATTACKS, Conspiracy
from legion_p2p.sim.network import World
from legion_p2p.sim.swarm import Swarm
from legion_p2p.sim.swarm_peer import SimPeer

QUIET_S = 15.0  # after a fault, until peers count as undisturbed: a death takes 8 s to be noticed
DEFAULTS = MembershipConfig()
OnSample = Callable[[Sample], object]


def simulate(
    scenario: Scenario, seed: int, *, write: Write | None = None, on_sample: OnSample = lambda sample: None,
    stop_at_violation: bool = False, plan: SwarmPlan | None = None, graph: WriteLine | None = None,
) -> SimOutcome:  # fmt: skip
    """Run a scenario. `write`: gets the lines of the trace; `graph`: those of the graph (graph.py). `plan`: in place of the one
    that follows from scenario and seed.

    Raises: UsageError, where the scenario cannot be carried out.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are small, and sums in another order are other sums
    try:
        plan = plan or plan_of(scenario, seed)
        recorder = None if graph is None else GraphRecorder(seed, scenario, plan, graph)
        simulation = _Simulation(scenario, seed, plan, Record(trio.current_time, write), recorder, on_sample, stop_at_violation)
        return trio.run(simulation.run, clock=MockClock(autojump_threshold=0))
    finally:
        torch.set_num_threads(threads)


class _Simulation:
    """One run of a scenario."""

    def __init__(
        self, scenario: Scenario, seed: int, plan: SwarmPlan, record: Record, recorder: GraphRecorder | None,
        on_sample: OnSample, stop_at_violation: bool,
    ) -> None:  # fmt: skip
        self._scenario = scenario
        self._seed = seed
        self._plan = plan
        self._on_sample = on_sample
        self._stop_at_violation = stop_at_violation
        self._task: TrainedTask = trained_task(scenario.task, seed)
        self._watch = Watch()
        self._record = record
        self._recorder = recorder
        self._cast: Cast
        self._attack = next((group.attack for group in scenario.peers if group.attack != "none"), "none")
        self._conspiracy: Conspiracy | None = None
        self._n_steps = 0
        self._disturbed_at = 0.0
        self._was_disturbed = False
        self._n_dead_wrongly = 0

    async def run(self) -> SimOutcome:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        with contextlib.ExitStack() as folders:
            stores = None
            if any(group.stores for group in self._scenario.peers):
                stores = Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="legion-sim-")))
            async with self._swarm(stores) as swarm:
                self._cast = Cast(swarm, self._plan.peers, self._record, self._traces())
                self._cast.on_join = self._joined
                swarm.on_failure = self._cast.failed
                async with trio.open_nursery() as nursery:
                    await self._cast.perform(nursery)
                    nursery.start_soon(carry_out, self._cast, self._plan.faults, nursery)
                    await self._sample_until(self._scenario.duration_s)
                    self._cast.finish()
                    nursery.cancel_scope.cancel()
                agreed = await self._settle(swarm)
                return self._outcome(agreed, time.perf_counter() - began_s, time.process_time() - began_cpu_s)

    def _swarm(self, stores: Path | None) -> Swarm:
        scenario = self._scenario
        links: dict[PeerId, LinkProfile] | None = None
        if any(group.link or group.trace for group in scenario.peers) or any(fault.kind == "link" for fault in scenario.faults):
            links = {}
        pace = scenario.announce_s / DEFAULTS.announce_s
        membership = MembershipConfig(
            announce_s=scenario.announce_s, suspect_after_s=DEFAULTS.suspect_after_s * pace, grace_s=DEFAULTS.grace_s * pace,
            probe_every_s=DEFAULTS.probe_every_s * pace,
        )  # fmt: skip
        world = World(self._seed, links=links, gossip_takes_links=True)
        return Swarm(
            seed=self._seed, world=world, numel=self._task.start.numel(), start=self._task.start,
            round=scenario.round_spec(), config=PeerConfig(membership=membership), local_step=self._step,
            model=self._task.model, stores=stores, on_event=self._event, tap=self._recorder,
        )  # fmt: skip

    def _traces(self) -> dict[str, LinkTrace]:
        return {path: read_link_trace(path) for path in {group.trace for group in self._scenario.peers} if path}

    # what peers do

    def _step(self, peer: SimPeer) -> None:
        self._task.step(peer.name, peer.theta)
        self._n_steps += 1

    def _event(self, peer: SimPeer, event: Event) -> None:
        self._record.event(peer, event)
        if self._recorder is not None:
            self._recorder.event(peer, event)
        if event.name == "member.dead":
            actor = self._cast.by_id.get(event.fields["peer"])
            observer = self._cast.actors[peer.name]
            now = trio.current_time()
            if actor is not None and actor.is_in_run and now - self._disturbed_at > QUIET_S and now - actor.began_at_s > QUIET_S:
                self._n_dead_wrongly += not observer.is_apart

    def _joined(self, actor: Actor, peer: SimPeer) -> None:
        def accepted(what: AcceptedUpdate) -> None:
            header = what.header
            update = TakenUpdate(
                peer.engine.region, header.shard, header.version, header.base_digest, header.digest,
                tuple((PeerId(one.peer), one.seq) for one in header.included), header.tokens,
            )  # fmt: skip
            self._report(self._watch.accepted(actor.name, update))

        peer.engine.shards.states.updated.add(accepted)
        self._record.peer(actor.name, "joined", after_s=round(actor.joined_after_s[-1], 6))
        if self._attack != "none":
            self._conspire(actor, peer)

    def _conspire(self, actor: Actor, peer: SimPeer) -> None:
        if self._conspiracy is None:
            self._conspiracy = Conspiracy(ATTACKS[self._attack])
        if actor.plan.group.attack != "none":
            self._conspiracy.turn([peer])
        else:
            self._conspiracy.overhear([peer])

    # looking at it

    async def _sample_until(self, end_s: float) -> None:
        every_s = self._scenario.sample_every_s()
        while trio.current_time() < end_s:
            await trio.sleep_until(min(end_s, trio.current_time() + every_s))
            self._look()
            if self._stop_at_violation and self._record.violations:
                return

    async def _settle(self, swarm: Swarm) -> bool | None:
        """Let everything arrive that is on its way; whether all agree then."""
        if not self._scenario.settle_s or (self._stop_at_violation and self._record.violations):
            return None
        self._undo_faults(swarm)
        swarm.stop_training()
        deadline = trio.current_time() + self._scenario.settle_s
        agreed = False
        while trio.current_time() < deadline and not agreed:
            await trio.sleep(1.0)
            living = swarm.living()
            agreed = len(living) > 0 and {peer.engine.all_done() for peer in living} == {True}
        self._look()
        if not swarm.living():
            return None  # nobody is left that could agree
        if not agreed:
            self._record.violation("no-agreement", f"not all hold the same {self._scenario.settle_s:g} s after the last step")
        self._report(self._watch.ended(self._holdings(), self._was_disturbed))
        return agreed

    def _undo_faults(self, swarm: Swarm) -> None:
        swarm.world.heal()
        for actor in self._cast.actors.values():
            if actor.peer is not None and (actor.held["suspend"] or actor.held["hang"]):
                swarm.world.thaw(actor.peer.id)
                actor.peer.hung = False
            actor.held.clear()

    def _look(self) -> None:
        cast, now = self._cast, trio.current_time()
        there = cast.in_run()
        if any(actor.is_apart for actor in cast.actors.values()):
            self._disturbed_at, self._was_disturbed = now, True
        for actor in there:
            if actor.peer is not None:
                cast.look_for_errors(actor, actor.peer)
        holdings = list(self._holdings())
        self._report(self._watch.sampled(holdings, now, now - self._disturbed_at))
        sent_bytes, gossip_bytes = cast.sent_bytes()
        known = [len(actor.peer.engine.members.roster.everyone()) for actor in there if actor.peer is not None]
        n_shards = there[0].peer.engine.plan.n_shards if there and there[0].peer is not None else 1
        speakers = self._speakers(there)
        if self._recorder is not None:
            self._recorder.look(now, self._n_steps, speakers)
        sample = Sample(
            at_s=round(now, 6), loss=self._loss(speakers), n_started=sum(a.peer is not None for a in cast.actors.values()),
            n_joined=len(there), n_known=int(statistics.median(known)) if known else 0, n_steps=self._n_steps,
            n_included=round(self._watch.n_tokens / n_shards, 2), n_updates=self._watch.n_updates, n_behind=n_behind(holdings),
            sent_bytes=sent_bytes, gossip_bytes=gossip_bytes,
        )  # fmt: skip
        self._record.sample(sample)
        self._on_sample(sample)

    def _speakers(self, there: list[Actor]) -> list[SimPeer]:
        """A member of each region that shows its copy; those that a fault keeps apart are not asked."""
        asked = [actor for actor in there if not actor.is_apart] or there
        peers = [actor.peer for actor in asked if actor.peer is not None]
        speakers = {peer.engine.region: peer for peer in reversed(peers) if peer.engine.shards.states.complete()}
        return list(speakers.values())

    def _loss(self, speakers: list[SimPeer]) -> float | None:
        """Of the copy of each region, on average."""
        losses = [self._task.loss(peer.engine.common_parameters()) for peer in speakers]
        told = [loss for loss in losses if loss is not None]
        return statistics.fmean(told) if told else None

    def _holdings(self) -> Iterator[Holding]:
        for actor in self._cast.in_run():
            if actor.peer is None or actor.held:
                continue
            engine = actor.peer.engine
            region = engine.region
            for shard, replica in engine.shards.replicas.items():
                chain = replica.chain
                yield Holding(actor.name, region, shard, chain.version, chain.digest)

    def _report(self, found: Iterator[Violation]) -> None:
        for violation in found:
            self._record.violation(violation.kind, violation.text, peers=list(violation.peers))

    def _outcome(self, agreed: bool | None, wall_s: float, cpu_s: float) -> SimOutcome:
        there = [(actor, actor.peer) for actor in self._cast.in_run() if actor.peer is not None]
        n_shards = there[0][1].engine.plan.n_shards if there else 0
        return SimOutcome(
            record=self._record, plan=self._plan, virtual_s=trio.current_time(), wall_s=wall_s, cpu_s=cpu_s, n_shards=n_shards,
            n_elements=self._task.start.numel(),
            joined_after_s=tuple(s for actor in self._cast.actors.values() for s in actor.joined_after_s),
            n_dead_wrongly=self._n_dead_wrongly, agreed=agreed,
            places={actor.name: position_of(peer) for actor, peer in there},
            regions={actor.name: peer.engine.region or DEFAULT_REGION for actor, peer in there},
        )  # fmt: skip
