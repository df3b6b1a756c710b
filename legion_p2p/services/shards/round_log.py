"""What the rounds of this peer's shards came to: how many there were, the tokens in them, how far their pushes agreed."""

from collections.abc import Iterable

from legion_p2p.core.pace import Ewma
from legion_p2p.core.wire import UpdateHeader
from legion_p2p.observe.status import FailedPush, RoundStatus
from legion_p2p.services.context import PeerContext

COUNTED_SHARD = 0  # whose updates say how many tokens the run has trained: any one would do
AGREEMENT_WEIGHT = 0.02  # of the newest round: a model has about sixteen shards, so this looks back over some three rounds of all


class RoundLog:
    """The rounds that this peer has seen."""

    def __init__(self, ctx: PeerContext) -> None:
        self._me = ctx.me
        self._events = ctx.events
        self.rounds = 0
        self.counted_tokens = 0
        """Tokens in the updates of one shard that this peer has seen: a push of any shard counts all that its member trained."""
        self.last_round: RoundStatus | None = None
        self.agreement = Ewma(AGREEMENT_WEIGHT)
        """Of the pushes of all shards' rounds lately."""

    def take_back(self, headers: Iterable[UpdateHeader]) -> None:
        """These rounds count no longer: what they contained comes again, or is lost."""
        self.counted_tokens -= sum(header.tokens for header in headers if header.shard == COUNTED_SHARD)

    def note(self, header: UpdateHeader, version: int) -> None:
        """A round has closed, here or at another peer."""
        self.rounds += 1
        if header.shard == COUNTED_SHARD:
            self.counted_tokens += header.tokens
        if header.agreement is not None:
            self.agreement.add(header.agreement)
        failed = tuple(FailedPush(f.peer, f.reason) for f in header.failed)
        self.last_round = RoundStatus(
            header.shard, version, header.averaged_fraction, failed, len(header.included), header.expected
        )
        self._events.emit(
            "round.closed",
            shard=header.shard,
            version=version,
            n_included=len(header.included),
            n_expected=header.expected,
            tokens=header.tokens,
            digest=header.digest.hex()[:16],
            averaged_fraction=round(header.averaged_fraction, 4),
            agreement=None if header.agreement is None else round(header.agreement, 4),
            failed=[{"peer_id": f.peer, "reason": f.reason} for f in header.failed],
            owner=header.owner,
            has_own=any(one.peer == self._me for one in header.included),
        )
