"""Training a real model along the graph of a simulation (graph.py): the same pushes into the same versions, with other values.

Nothing waits for virtual time, only for what it is made of: a peer goes on until it takes in a version that is not made yet, an
owner until a push is. So all peers that can make a step make it together (stacked_models.py). Pushes are compressed, averaged and
applied by the functions that the engine uses.

Simpler than in the run: what two regions hold goes to each other as it is, at the rate that they had; what an owner hands over is
with the next one at once; copies in a byte an element are exact.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import torch
from torch import Tensor

from legion_p2p.core.identity import PeerId
from legion_p2p.core.plan import ShardPlan
from legion_p2p.core.round import Closed, Contribution
from legion_p2p.core.run import RunSpec
from legion_p2p.core.update_norms import UpdateNorms
from legion_p2p.errors import NonFiniteError, UsageError
from legion_p2p.scenarios.graph import (
    AS_HANDED_IN,
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
from legion_p2p.scenarios.stacked_models import Stack, StackedTask
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.services.shards.replica import LocalChange, combine, pack, rebase
from legion_p2p.tensor.codec import decode_shared
from legion_p2p.tensor.compact import expanded
from legion_p2p.tensor.outer import OuterState

PeerLine = BeginLine | TakeLine | HandInLine | PackLine | AloneLine | MergeLine | EndLine
ChainLine = CloseLine | ReleaseLine | AloneLine | SyncLine | SyncedLine
ChainKey = tuple[str, int]
"""A region and a shard."""


class Point(msgspec.Struct, frozen=True):
    """A point of the loss curve."""

    at_s: float
    n_steps: int
    """Of all peers, in the simulation."""
    loss: float


@dataclass(eq=False)
class _Made:
    """A state: its values, and how often it is still needed; of the updates that led to it their lengths, and the standings of
    members after them."""

    value: Tensor
    n_uses: int
    norms: tuple[float, ...] = ()
    standings: Mapping[PeerId, int] = field(default_factory=dict)


@dataclass(eq=False)
class _Pushed:
    """A push that is to enter states: of a region that was cut in two, perhaps one of each side. `value` None: not finite."""

    line: PackLine
    value: Tensor | None
    n_uses: int


@dataclass(eq=False)
class _Peer:
    """A peer, and how far it has come."""

    name: str
    lines: deque[PeerLine] = field(default_factory=deque)
    n_steps: int = 0
    has_base: set[int] = field(default_factory=set)
    residuals: dict[int, Tensor | None] = field(default_factory=dict)
    handed: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By shard what it handed in last: where its change began, and where it ended."""


@dataclass(eq=False)
class _Kept:
    """What an owner of a shard keeps for later rounds."""

    residual: Tensor | None = None
    outer: OuterState = field(default_factory=OuterState)

    def add(self, step: Tensor) -> None:
        self.residual = step if self.residual is None else self.residual + step


@dataclass(eq=False)
class _Chain:
    """One shard of one region, as its owners have it."""

    lines: deque[ChainLine] = field(default_factory=deque)
    reference: Tensor | None = None
    owner: int = 0
    """That of the newest version."""
    kept: dict[int, _Kept] = field(default_factory=lambda: defaultdict(_Kept))
    """By owner: a region that is cut in two has several."""
    pulls: dict[str, Tensor] = field(default_factory=dict)
    """By region that asked for a sync: by what it has to move."""

    def copy(self) -> Tensor | None:
        """What counts as the region's copy: see services/inter_region."""
        residual = self.kept[self.owner].residual
        return self.reference if self.reference is None or residual is None else self.reference - residual

    def release(self, owner: int, heir: int | None) -> None:
        kept = self.kept.pop(owner, None)
        if kept is None or heir is None:
            return
        if kept.residual is not None:
            self.kept[heir].add(kept.residual)
        if self.kept[heir].outer.momentum is None and self.kept[heir].outer.recent is None:
            self.kept[heir].outer = kept.outer


class Replay:
    """One graph, and one model for each of its peers."""

    def __init__(self, header: GraphHeader, lines: Sequence[Line], task: StackedTask, device: str, n_points: int) -> None:
        """`n_points`: of the loss curve. Raises: UsageError, where the graph does not fit."""
        self._ids = [PeerId(name) for name in header.ids]
        self._round = header.scenario.round_spec()
        self._plan = _plan_of(header, task, self._round.shard_elements)
        rounds = msgspec.structs.replace(self._round, shard_elements=self._plan.shard_elements)
        self._spec = RunSpec("sim", "", task.params, rounds)
        self._task = task
        self._peers = [_Peer(name) for name in header.peers]
        self._stack = Stack(task, len(self._peers), device)
        self._chains: dict[ChainKey, _Chain] = defaultdict(_Chain)
        self._states: dict[int, _Made] = {}
        self._pushes: dict[int, _Pushed] = {}
        self._uses: Counter[int] = Counter()
        self._push_uses: Counter[int] = Counter()
        self._looks: deque[LookLine] = deque()
        self._lively: dict[int, None] = {}
        """Peers whose next line may be possible now."""
        self._ready: dict[ChainKey, None] = {}
        """Chains of which that is true."""
        self._waiting: dict[tuple[str, int], list[int | ChainKey]] = defaultdict(list)
        """By what they wait for: a state or a push."""
        self._running: dict[int, None] = {}
        """Peers that have steps to make before their next line."""
        self._n_steps = 0
        self._load(lines, n_points)
        self.total_steps = sum(_steps_in(peer.lines) for peer in self._peers)
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
            if not self._running:
                break
            rows = list(self._running)
            self._stack.step(rows, [self._task.draw(self._peers[row].name) for row in rows])
            for row in rows:
                peer = self._peers[row]
                peer.n_steps += 1
                if peer.n_steps == _steps_at(peer.lines[0]):
                    del self._running[row]
                    self._lively[row] = None
            self._n_steps += len(rows)
            on_steps(len(rows))
        left = sum(bool(peer.lines) for peer in self._peers) + sum(bool(chain.lines) for chain in self._chains.values())
        if left or self._looks:
            raise UsageError("the graph ends in the middle: something in it is made of what nobody makes")

    # reading

    def _load(self, lines: Sequence[Line], n_points: int) -> None:
        looks = [line for line in lines if isinstance(line, LookLine) and line.copies]
        kept = {id(looks[i * (len(looks) - 1) // max(1, n_points - 1)]) for i in range(n_points)} if looks else set()
        packed = {line.push for line in lines if isinstance(line, PackLine)}
        for line in lines:
            if not 0 <= getattr(line, "peer", 0) < len(self._peers):
                raise UsageError(f"a line is about peer {getattr(line, 'peer', 0)}, and the graph has {len(self._peers)}")
            match line:
                case OriginLine(state, shard):
                    start, end = self._plan.bounds(shard)
                    self._states[state] = _Made(self._task.start[start:end].clone(), 0)
                case LookLine():
                    if id(line) in kept:
                        self._looks.append(line)
                case BeginLine() | TakeLine() | HandInLine() | PackLine() | MergeLine() | EndLine():
                    self._peers[line.peer].lines.append(line)
                case ReleaseLine(region, _, shard):
                    self._chains[region, shard].lines.append(line)
                case CloseLine(region, _, shard):
                    if not packed.issuperset(line.pushes):
                        raise UsageError(f"version {line.version} of shard {shard} contains a push that nobody made")
                    self._push_uses.update(line.pushes)
                    self._chains[region, shard].lines.append(line)
                case AloneLine(region, peer, shard, _):
                    self._chains[region, shard].lines.append(line)
                    self._peers[peer].lines.append(line)
                case SyncLine(region, other, shard, _):
                    self._chains[region, shard].lines.append(line)
                    self._chains[other, shard].lines.append(line)
                case SyncedLine(region, _, shard):
                    self._chains[region, shard].lines.append(line)
        for one in self._peers:
            _cut_tail(one.lines)
            self._uses.update(state for its in one.lines for state in _states_of(its))
        self._uses.update(line.base for chain in self._chains.values() for line in chain.lines if isinstance(line, CloseLine))
        self._uses.update(state for look in self._looks for copy in look.copies for state in copy)
        for state, made in self._states.items():
            made.n_uses = self._uses[state]
        self._lively = dict.fromkeys(range(len(self._peers)))
        self._ready = dict.fromkeys(self._chains)

    # going on as far as no step is needed

    def _settle(self) -> None:
        while self._lively or self._ready:
            while self._lively:
                self._advance_peers()
            ready, self._ready = self._ready, {}
            for key in ready:
                self._advance_chain(key)

    def _advance_peers(self) -> None:
        """One line of each peer; what many do to the same shard is done at once."""
        takes: dict[tuple[int, int], list[int]] = defaultdict(list)
        hands: dict[int, list[int]] = defaultdict(list)
        lively, self._lively = self._lively, {}
        for row in lively:
            peer = self._peers[row]
            if not peer.lines:
                continue
            line = peer.lines[0]
            if (at := _steps_at(line)) is not None and peer.n_steps < at:
                if isinstance(line, EndLine):
                    for _ in range(at - peer.n_steps):  # steps that led nowhere; but the next life draws what comes after them
                        self._task.draw(peer.name)
                else:
                    self._running[row] = None
                    continue
            if not self._is_possible(row, line):
                continue
            peer.lines.popleft()
            self._lively[row] = None
            match line:
                case BeginLine():
                    self._begin(row)
                case TakeLine(_, _, states):
                    for shard, state in states:
                        if state != AS_HANDED_IN:
                            takes[shard, state].append(row)
                case HandInLine(_, _, shards):
                    for shard in shards:
                        hands[shard].append(row)
                case PackLine():
                    self._pack(peer, line)
                case MergeLine():
                    self._merge(peer, line)
        for (shard, state), rows in takes.items():
            self._take(rows, shard, state)
        for shard, rows in hands.items():
            self._hand_in(rows, shard)

    def _is_possible(self, row: int, line: PeerLine) -> bool:
        """Whether what it needs is there; else the peer waits for that."""
        if isinstance(line, AloneLine):  # a line of the peer and of the chain, which is taken from both
            self._go_on((line.region, line.shard))
            return False
        return self._have(_states_of(line), row)

    def _have(self, states: Sequence[int], waiter: int | ChainKey) -> bool:
        for state in states:
            if state not in self._states:
                self._waiting["state", state].append(waiter)
                return False
        return True

    def _begin(self, row: int) -> None:
        peer = self._peers[row]
        peer.n_steps = 0
        peer.has_base.clear()
        peer.residuals.clear()
        peer.handed.clear()
        self._stack.renew(row)

    @torch.no_grad()
    def _take(self, rows: Sequence[int], shard: int, state: int) -> None:
        """See `tensor.local.LocalCopy.take`."""
        start, end = self._plan.bounds(shard)
        theta_PS, base_PS = self._stack.theta_PE[:, start:end], self._stack.base_PE[:, start:end]
        reference_S = self._use(state, len(rows)).value.to(theta_PS.device)
        new = [row for row in rows if shard not in self._peers[row].has_base]
        old = [row for row in rows if shard in self._peers[row].has_base]
        if new:
            rows_P = torch.as_tensor(new, dtype=torch.int64, device=theta_PS.device)
            theta_PS[rows_P] = reference_S
            base_PS[rows_P] = reference_S
            for row in new:
                self._peers[row].has_base.add(shard)
        if old:
            rows_P = torch.as_tensor(old, dtype=torch.int64, device=theta_PS.device)
            before_PS = base_PS[rows_P]
            change_PS = theta_PS[rows_P] - before_PS
            change_PS[~torch.isfinite(change_PS).all(dim=1)] = 0.0
            after_PS = reference_S.expand_as(before_PS)
            if self._round.mixing < 1.0:
                after_PS = before_PS + self._round.mixing * (after_PS - before_PS)
            theta_PS[rows_P] = after_PS + change_PS
            base_PS[rows_P] = after_PS

    @torch.no_grad()
    def _hand_in(self, rows: Sequence[int], shard: int) -> None:
        start, end = self._plan.bounds(shard)
        theta_PS, base_PS = self._stack.theta_PE[:, start:end], self._stack.base_PE[:, start:end]
        rows_P = torch.as_tensor(rows, dtype=torch.int64, device=theta_PS.device)
        local_PS = theta_PS[rows_P]
        for row, base_S, local_S in zip(rows, base_PS[rows_P].cpu(), local_PS.cpu(), strict=True):
            self._peers[row].handed[shard] = base_S, local_S
        base_PS[rows_P] = local_PS

    def _pack(self, peer: _Peer, line: PackLine) -> None:
        base_S, local_S = _handed_in(peer, line)
        codec = shard_codec(self._spec, line.shard, line.codec)
        change = LocalChange(line.shard, line.version, base_S, local_S, line.tokens, line.steps)
        value: Tensor | None = None
        try:
            payload, kept = pack(change, peer.residuals.get(line.shard), codec, self._round.feedback_decay)
            peer.residuals[line.shard] = expanded(kept)
            value = decode_shared(codec, payload, self._plan.size(line.shard))
        except NonFiniteError:
            peer.residuals[line.shard] = None
        if self._push_uses[line.push]:
            self._pushes[line.push] = _Pushed(line, value, self._push_uses[line.push])
        self._wake("push", line.push)

    def _merge(self, peer: _Peer, line: MergeLine) -> None:
        ahead_S = self._use(line.theirs).value - self._use(line.ours).value
        kept_S = peer.residuals.get(line.shard)
        peer.residuals[line.shard] = ahead_S if kept_S is None else kept_S + ahead_S

    # owners

    def _advance_chain(self, key: ChainKey) -> None:
        chain = self._chains[key]
        while chain.lines:
            line = chain.lines[0]
            match line:
                case CloseLine():
                    if not self._can_close(key, line):
                        return
                    self._close(chain, line)
                case AloneLine():
                    peer = self._peers[line.peer]
                    if not peer.lines or peer.lines[0] is not line:
                        return
                    peer.lines.popleft()
                    self._lively[line.peer] = None
                    self._make_alone(chain, peer, line)
                case SyncLine(region, other, shard, rate):
                    sides = self._chains[region, shard], self._chains[other, shard]
                    if any(not side.lines or side.lines[0] is not line for side in sides):
                        return
                    self._sync(*sides, rate, other)
                    twin = (other, shard) if key == (region, shard) else (region, shard)
                    self._chains[twin].lines.popleft()
                    self._go_on(twin)
                case SyncedLine(_, other, shard):
                    pull = self._chains[other, shard].pulls.pop(key[0], None)
                    if pull is not None:
                        chain.kept[chain.owner].add(-pull)
                case ReleaseLine(_, owner, _, heir):
                    chain.release(owner, heir)
            chain.lines.popleft()

    def _can_close(self, key: ChainKey, line: CloseLine) -> bool:
        for push in line.pushes:
            if push not in self._pushes:
                self._waiting["push", push].append(key)
                return False
        return self._have([line.base], key)

    def _close(self, chain: _Chain, line: CloseLine) -> None:
        """See `services.shards.owner.OwnerService.close`."""
        base = self._use(line.base)
        kept, norms = chain.kept[line.owner], UpdateNorms()
        norms.replace(base.norms)
        pushed = [self._use_push(push) for push in line.pushes]
        contributions = tuple(self._contribution(one.line, base.standings) for one in pushed if one.value is not None)
        values = {self._ids[one.line.peer]: one.value for one in pushed if one.value is not None}
        reference, norm, standings = base.value, 0.0, dict(base.standings)
        if contributions:
            longest = None if self._round.rule() == "mean" else norms.owners_longest
            closed = Closed(line.version - 1, contributions, len(contributions), ())
            codec = shard_codec(self._spec, line.shard, line.codec)
            result = combine(base.value, kept.residual, kept.outer, closed, values, self._round, codec, longest)
            kept.residual, kept.outer = result.owner_residual, result.outer
            reference, norm = result.reference, result.norm
            standings.update((PeerId(peer), now) for peer, now in zip(result.used, result.standings, strict=False))
        norms.add(norm)
        chain.reference, chain.owner = reference, line.owner
        self._made(line.state, _Made(reference, self._uses[line.state], norms.known(), standings))

    def _contribution(self, push: PackLine, standings: Mapping[PeerId, int]) -> Contribution:
        peer = self._ids[push.peer]
        return Contribution(peer, push.push, push.version, push.tokens, 0.0, max(1, push.steps), standings.get(peer))

    def _make_alone(self, chain: _Chain, peer: _Peer, line: AloneLine) -> None:
        base_S, local_S = _handed_in(peer, line)
        change = LocalChange(line.shard, 0, base_S, local_S, 0, 0)
        try:
            made, _ = rebase(change, peer.residuals.pop(line.shard, None), chain.kept[line.peer].residual)
        except NonFiniteError:
            made = base_S
        chain.kept[line.peer].residual = None
        chain.reference, chain.owner = made, line.peer
        self._made(line.state, _Made(made, self._uses[line.state]))

    def _sync(self, mine: _Chain, theirs: _Chain, rate: float, other: str) -> None:
        own_S, other_S = mine.copy(), theirs.copy()
        if own_S is None or other_S is None:
            return  # a region that has made no version yet is where the run began, as the other one was then
        step_S = rate * (own_S - other_S)
        mine.kept[mine.owner].add(step_S)
        mine.pulls[other] = step_S

    # what is made, and who waits for it

    def _made(self, state: int, made: _Made) -> None:
        if made.n_uses:
            self._states[state] = made
        self._wake("state", state)

    def _use(self, state: int, times: int = 1) -> _Made:
        made = self._states[state]
        made.n_uses -= times
        if made.n_uses <= 0:
            del self._states[state]
        return made

    def _use_push(self, push: int) -> _Pushed:
        pushed = self._pushes[push]
        pushed.n_uses -= 1
        if not pushed.n_uses:
            del self._pushes[push]
        return pushed

    def _wake(self, kind: str, number: int) -> None:
        for waiter in self._waiting.pop((kind, number), ()):
            self._go_on(waiter)

    def _go_on(self, waiter: "int | ChainKey") -> None:
        if isinstance(waiter, int):
            self._lively[waiter] = None
        else:
            self._ready[waiter] = None

    def _evaluated(self) -> Iterator[Point]:
        while self._looks and all(state in self._states for copy in self._looks[0].copies for state in copy):
            look = self._looks.popleft()
            thetas = [torch.cat([self._use(state).value for state in copy]) for copy in look.copies]
            yield Point(look.at_s, look.n_steps, sum(map(self._task.loss, thetas)) / len(thetas))


def _steps_at(line: PeerLine) -> int | None:
    """How many steps come before it."""
    return line.steps if isinstance(line, TakeLine | HandInLine | EndLine) else None


def _steps_in(lines: Iterable[PeerLine]) -> int:
    """How many steps a peer makes, in all its lives."""
    total = before = 0
    for line in lines:
        if isinstance(line, BeginLine):
            before = 0
        elif not isinstance(line, EndLine) and (at := _steps_at(line)) is not None:
            total, before = total + at - before, at
    return total


def _states_of(line: PeerLine) -> tuple[int, ...]:
    """The states that it needs."""
    match line:
        case TakeLine(_, _, states):
            return tuple(state for _, state in states if state != AS_HANDED_IN)
        case MergeLine(_, _, ours, theirs):
            return ours, theirs
        case _:
            return ()


def _handed_in(peer: _Peer, line: PackLine | AloneLine) -> tuple[Tensor, Tensor]:
    """Where the change of a shard began, and where it is now. Raises: UsageError, where the peer has handed in nothing."""
    found = peer.handed.pop(line.shard, None)
    if found is None:
        raise UsageError(f"peer {line.peer} pushes shard {line.shard}, of which it has handed in nothing")
    return found


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
