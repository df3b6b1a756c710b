"""The peers of a replay (graph_replay.py): each goes along its lines as far as what they need is there."""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from legion_p2p.core.plan import ShardPlan
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import NonFiniteError, UsageError
from legion_p2p.scenarios.graph import (
    AS_HANDED_IN,
    AloneLine,
    BeginLine,
    EndLine,
    HandInLine,
    MergeLine,
    PackLine,
    TakeLine,
)
from legion_p2p.scenarios.replayed_values import ReplayedValues
from legion_p2p.scenarios.stacked_models import Stack, StackedTask
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.services.shards.replica import LocalChange, pack
from legion_p2p.tensor.codec import decode_shared
from legion_p2p.tensor.compact import expanded

PeerLine = BeginLine | TakeLine | HandInLine | PackLine | AloneLine | MergeLine | EndLine


@dataclass(eq=False)
class ReplayedPeer:
    """A peer, and how far it has come."""

    name: str
    lines: deque[PeerLine] = field(default_factory=deque)
    n_steps: int = 0
    has_base: set[int] = field(default_factory=set)
    residuals: dict[int, Tensor | None] = field(default_factory=dict)
    handed: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By shard what it handed in last: where its change began, and where it ended."""


class ReplayedPeers:
    """All peers of one graph, and a model for each of them."""

    def __init__(
        self, names: Sequence[str], spec: RunSpec, plan: ShardPlan, stack: Stack, task: StackedTask, values: ReplayedValues
    ) -> None:
        self.peers = [ReplayedPeer(name) for name in names]
        self.running: dict[int, None] = {}
        """Peers that have steps to make before their next line."""
        self._spec = spec
        self._round = spec.round
        self._plan = plan
        self._stack = stack
        self._task = task
        self._values = values

    def step(self) -> int:
        """One local step of each peer that has steps to make: of how many."""
        rows = list(self.running)
        self._stack.step(rows, [self._task.draw(self.peers[row].name) for row in rows])
        for row in rows:
            peer = self.peers[row]
            peer.n_steps += 1
            if peer.n_steps == steps_at(peer.lines[0]):
                del self.running[row]
                self._values.lively[row] = None
        return len(rows)

    def advance(self) -> None:
        """One line of each peer; what many do to the same shard is done at once."""
        takes: dict[tuple[int, int], list[int]] = defaultdict(list)
        hands: dict[int, list[int]] = defaultdict(list)
        lively, self._values.lively = self._values.lively, {}
        for row in lively:
            peer = self.peers[row]
            if not peer.lines:
                continue
            line = peer.lines[0]
            if (at := steps_at(line)) is not None and peer.n_steps < at:
                if isinstance(line, EndLine):
                    for _ in range(at - peer.n_steps):  # steps that led nowhere; but the next life draws what comes after them
                        self._task.draw(peer.name)
                else:
                    self.running[row] = None
                    continue
            if not self._is_possible(row, line):
                continue
            peer.lines.popleft()
            self._values.lively[row] = None
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
            self._values.go_on((line.region, line.shard))
            return False
        return self._values.have_states(states_of(line), row)

    def _begin(self, row: int) -> None:
        peer = self.peers[row]
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
        reference_S = self._values.use(state, len(rows)).value.to(theta_PS.device)
        new = [row for row in rows if shard not in self.peers[row].has_base]
        old = [row for row in rows if shard in self.peers[row].has_base]
        if new:
            rows_P = torch.as_tensor(new, dtype=torch.int64, device=theta_PS.device)
            theta_PS[rows_P] = reference_S
            base_PS[rows_P] = reference_S
            for row in new:
                self.peers[row].has_base.add(shard)
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
            self.peers[row].handed[shard] = base_S, local_S
        base_PS[rows_P] = local_PS

    def _pack(self, peer: ReplayedPeer, line: PackLine) -> None:
        base_S, local_S = handed_in(peer, line)
        codec = shard_codec(self._spec, line.shard, line.codec)
        change = LocalChange(line.shard, line.version, base_S, local_S, line.tokens, line.steps)
        value: Tensor | None = None
        try:
            payload, kept = pack(change, peer.residuals.get(line.shard), codec, self._round.feedback_decay)
            peer.residuals[line.shard] = expanded(kept)
            value = decode_shared(codec, payload, self._plan.size(line.shard))
        except NonFiniteError:
            peer.residuals[line.shard] = None
        self._values.pushed(line, value)

    def _merge(self, peer: ReplayedPeer, line: MergeLine) -> None:
        ahead_S = self._values.use(line.theirs).value - self._values.use(line.ours).value
        kept_S = peer.residuals.get(line.shard)
        peer.residuals[line.shard] = ahead_S if kept_S is None else kept_S + ahead_S


def steps_at(line: PeerLine) -> int | None:
    """How many steps come before it."""
    return line.steps if isinstance(line, TakeLine | HandInLine | EndLine) else None


def steps_in(lines: Iterable[PeerLine]) -> int:
    """How many steps a peer makes, in all its lives."""
    total = before = 0
    for line in lines:
        if isinstance(line, BeginLine):
            before = 0
        elif not isinstance(line, EndLine) and (at := steps_at(line)) is not None:
            total, before = total + at - before, at
    return total


def states_of(line: PeerLine) -> tuple[int, ...]:
    """The states that it needs."""
    match line:
        case TakeLine(_, _, states):
            return tuple(state for _, state in states if state != AS_HANDED_IN)
        case MergeLine(_, _, ours, theirs):
            return ours, theirs
        case _:
            return ()


def handed_in(peer: ReplayedPeer, line: PackLine | AloneLine) -> tuple[Tensor, Tensor]:
    """Where the change of a shard began, and where it is now. Raises: UsageError, where the peer has handed in nothing."""
    found = peer.handed.pop(line.shard, None)
    if found is None:
        raise UsageError(f"peer {line.peer} pushes shard {line.shard}, of which it has handed in nothing")
    return found
