"""The owners' side of a replay (graph_replay.py): of each shard of each region one chain of versions."""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from legion_p2p.core.identity import PeerId
from legion_p2p.core.round import Closed, Contribution
from legion_p2p.core.run import RunSpec
from legion_p2p.core.update_norms import UpdateNorms
from legion_p2p.errors import NonFiniteError
from legion_p2p.scenarios.graph import AloneLine, CloseLine, PackLine, ReleaseLine, SyncedLine, SyncLine
from legion_p2p.scenarios.replayed_peers import ReplayedPeer, handed_in
from legion_p2p.scenarios.replayed_values import ChainKey, ReplayedValues
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.services.shards.replica import LocalChange, combine, rebase
from legion_p2p.tensor.outer import OuterState

ChainLine = CloseLine | ReleaseLine | AloneLine | SyncLine | SyncedLine


@dataclass(eq=False)
class _Kept:
    """What an owner of a shard keeps for later rounds."""

    residual: Tensor | None = None
    outer: OuterState = field(default_factory=OuterState)

    def add(self, step: Tensor) -> None:
        self.residual = step if self.residual is None else self.residual + step


@dataclass(eq=False)
class ReplayedChain:
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


class ReplayedChains:
    """All chains of one graph."""

    def __init__(self, ids: Sequence[PeerId], peers: Sequence[ReplayedPeer], spec: RunSpec, values: ReplayedValues) -> None:
        """`ids`: of `peers`."""
        self.chains: dict[ChainKey, ReplayedChain] = defaultdict(ReplayedChain)
        self._ids = ids
        self._peers = peers
        self._spec = spec
        self._round = spec.round
        self._values = values

    def advance(self, key: ChainKey) -> None:
        chain = self.chains[key]
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
                    self._values.lively[line.peer] = None
                    self._make_alone(chain, peer, line)
                case SyncLine(region, other, shard, rate):
                    sides = self.chains[region, shard], self.chains[other, shard]
                    if any(not side.lines or side.lines[0] is not line for side in sides):
                        return
                    self._sync(*sides, rate, other)
                    twin = (other, shard) if key == (region, shard) else (region, shard)
                    self.chains[twin].lines.popleft()
                    self._values.go_on(twin)
                case SyncedLine(_, other, shard):
                    pull = self.chains[other, shard].pulls.pop(key[0], None)
                    if pull is not None:
                        chain.kept[chain.owner].add(-pull)
                case ReleaseLine(_, owner, _, heir):
                    chain.release(owner, heir)
            chain.lines.popleft()

    def _can_close(self, key: ChainKey, line: CloseLine) -> bool:
        return self._values.have_pushes(line.pushes, key) and self._values.have_states([line.base], key)

    def _close(self, chain: ReplayedChain, line: CloseLine) -> None:
        """See `services.shards.owner.OwnerService.close`."""
        base = self._values.use(line.base)
        kept, norms = chain.kept[line.owner], UpdateNorms()
        norms.replace(base.norms)
        pushed = [self._values.use_push(push) for push in line.pushes]
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
        self._values.made(line.state, reference, norms.known(), standings)

    def _contribution(self, push: PackLine, standings: Mapping[PeerId, int]) -> Contribution:
        peer = self._ids[push.peer]
        return Contribution(peer, push.push, push.version, push.tokens, 0.0, max(1, push.steps), standings.get(peer))

    def _make_alone(self, chain: ReplayedChain, peer: ReplayedPeer, line: AloneLine) -> None:
        base_S, local_S = handed_in(peer, line)
        change = LocalChange(line.shard, 0, base_S, local_S, 0, 0)
        try:
            made, _ = rebase(change, peer.residuals.pop(line.shard, None), chain.kept[line.peer].residual)
        except NonFiniteError:
            made = base_S
        chain.kept[line.peer].residual = None
        chain.reference, chain.owner = made, line.peer
        self._values.made(line.state, made)

    def _sync(self, mine: ReplayedChain, theirs: ReplayedChain, rate: float, other: str) -> None:
        own_S, other_S = mine.copy(), theirs.copy()
        if own_S is None or other_S is None:
            return  # a region that has made no version yet is where the run began, as the other one was then
        step_S = rate * (own_S - other_S)
        mine.kept[mine.owner].add(step_S)
        mine.pulls[other] = step_S
