"""Training a real model along the graph of a simulation (graph.py): the same pushes into the same versions, with other values.

Nothing waits for virtual time, only for what it is made of: a peer goes on until it takes in a version that is not made yet, an
owner until a push is. So all peers that can make a step make it together (stacked_models.py). Pushes are compressed, averaged and
applied by the functions that the engine uses.

Simpler than in the run: what two regions hold goes to each other as it is, at the rate that they had; what an owner hands over is
with the next one at once; copies in a byte an element are exact.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import msgspec
import torch

from legion_p2p.core.identity import PeerId
from legion_p2p.core.plan import ShardPlan
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import UsageError
from legion_p2p.scenarios.graph import (
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
from legion_p2p.scenarios.replayed_chains import ReplayedChains
from legion_p2p.scenarios.replayed_peers import PeerLine, ReplayedPeers, states_of, steps_in
from legion_p2p.scenarios.replayed_values import ReplayedValues
from legion_p2p.scenarios.stacked_models import Stack, StackedTask


class Point(msgspec.Struct, frozen=True):
    """A point of the loss curve."""

    at_s: float
    n_steps: int
    """Of all peers, in the simulation."""
    loss: float


class Replay:
    """One graph, and one model for each of its peers."""

    def __init__(self, header: GraphHeader, lines: Sequence[Line], task: StackedTask, device: str, n_points: int) -> None:
        """`n_points`: of the loss curve. Raises: UsageError, where the graph does not fit."""
        rounds = header.scenario.round_spec()
        self._plan = _plan_of(header, task, rounds.shard_elements)
        spec = RunSpec("sim", "", task.params, msgspec.structs.replace(rounds, shard_elements=self._plan.shard_elements))
        self._task = task
        self._stack = Stack(task, len(header.peers), device)
        self._values = ReplayedValues(len(header.peers))
        self._all = ReplayedPeers(header.peers, spec, self._plan, self._stack, task, self._values)
        self._chains = ReplayedChains([PeerId(name) for name in header.ids], self._all.peers, spec, self._values)
        self._looks: deque[LookLine] = deque()
        self._n_steps = 0
        self._load(lines, n_points)
        self.total_steps = sum(steps_in(peer.lines) for peer in self._all.peers)
        """How many local steps the graph asks for."""

    @property
    def held_at(self) -> str:
        """The device on which the models lie."""
        return self._stack.held_at

    @property
    def n_steps(self) -> int:
        """Local steps of all peers that were made so far."""
        return self._n_steps

    def run(self, on_steps: Callable[[int], object] = lambda n: None) -> Iterator[Point]:
        """The loss curve, as it comes. `on_steps` is called with how many local steps were made since the last call.

        Raises: UsageError, if the graph ends in the middle of something.
        """
        while True:
            self._settle()
            yield from self._evaluated()
            if not self._all.running:
                break
            n = self._all.step()
            self._n_steps += n
            on_steps(n)
        peers, chains = self._all.peers, self._chains.chains.values()
        left = sum(bool(peer.lines) for peer in peers) + sum(bool(chain.lines) for chain in chains)
        if left or self._looks:
            raise UsageError("the graph ends in the middle: something in it is made of what nobody makes")

    # reading

    def _load(self, lines: Sequence[Line], n_points: int) -> None:
        looks = [line for line in lines if isinstance(line, LookLine) and line.copies]
        kept = {id(looks[i * (len(looks) - 1) // max(1, n_points - 1)]) for i in range(n_points)} if looks else set()
        packed = {line.push for line in lines if isinstance(line, PackLine)}
        peers, chains, values = self._all.peers, self._chains.chains, self._values
        for line in lines:
            if not 0 <= getattr(line, "peer", 0) < len(peers):
                raise UsageError(f"a line is about peer {getattr(line, 'peer', 0)}, and the graph has {len(peers)}")
            match line:
                case LookLine():
                    if id(line) in kept:
                        self._looks.append(line)
                case BeginLine() | TakeLine() | HandInLine() | PackLine() | MergeLine() | EndLine():
                    peers[line.peer].lines.append(line)
                case ReleaseLine(region, _, shard):
                    chains[region, shard].lines.append(line)
                case CloseLine(region, _, shard):
                    if not packed.issuperset(line.pushes):
                        raise UsageError(f"version {line.version} of shard {shard} contains a push that nobody made")
                    values.needs_pushes(line.pushes)
                    values.needs_states([line.base])
                    chains[region, shard].lines.append(line)
                case AloneLine(region, peer, shard, _):
                    chains[region, shard].lines.append(line)
                    peers[peer].lines.append(line)
                case SyncLine(region, other, shard, _):
                    chains[region, shard].lines.append(line)
                    chains[other, shard].lines.append(line)
                case SyncedLine(region, _, shard):
                    chains[region, shard].lines.append(line)
        for one in peers:
            _cut_tail(one.lines)
            values.needs_states(state for its in one.lines for state in states_of(its))
        values.needs_states(state for look in self._looks for copy in look.copies for state in copy)
        for line in lines:
            if isinstance(line, OriginLine):
                start, end = self._plan.bounds(line.shard)
                values.made(line.state, self._task.start[start:end].clone())
        values.ready.update(dict.fromkeys(chains))

    def _settle(self) -> None:
        """Go on as far as no step is needed."""
        values = self._values
        while values.lively or values.ready:
            while values.lively:
                self._all.advance()
            ready, values.ready = values.ready, {}
            for key in ready:
                self._chains.advance(key)

    def _evaluated(self) -> Iterator[Point]:
        while self._looks and all(self._values.have_states(copy) for copy in self._looks[0].copies):
            look = self._looks.popleft()
            thetas = [torch.cat([self._values.use(state).value for state in copy]) for copy in look.copies]
            yield Point(look.at_s, look.n_steps, sum(map(self._task.loss, thetas)) / len(thetas))


def _cut_tail(lines: deque[PeerLine]) -> None:
    """Leave out what comes to nothing: at the end of a life that is the last, steps after which nothing is handed in."""
    while lines and isinstance(lines[-1], TakeLine | EndLine | HandInLine):
        lines.pop()


def _plan_of(header: GraphHeader, task: StackedTask, shard_elements: int) -> ShardPlan:
    """The shards of this model: as many as the run had. Raises: UsageError, if it has too few parameters."""
    numel = task.start.numel()
    plan = ShardPlan(numel, shard_elements or numel)
    if plan.n_shards != header.n_shards:
        plan = ShardPlan(numel, -(-numel // header.n_shards))
    if plan.n_shards != header.n_shards:
        raise UsageError(f"a model of {numel} parameters cannot be cut into {header.n_shards} equal shards, as the run's was")
    return plan
