"""Receipts for this peer's pushes: kept until the next version shows whether the owner kept its word. See core/receipts.py."""

from legion_p2p.core.identity import PeerId
from legion_p2p.core.receipts import omission, receipt_in
from legion_p2p.core.wire import Pushed, Receipt
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.evidence import EvidenceService
from legion_p2p.services.shards.states import AcceptedUpdate, ShardStates


class Receipts:
    """The newest receipt of each shard."""

    def __init__(self, ctx: PeerContext, states: ShardStates, evidence: EvidenceService) -> None:
        self._states = states
        self._evidence = evidence
        self._asks_for_them = ctx.spec.round.verify != "none"
        self._kept: dict[int, tuple[Receipt, bytes]] = {}
        states.updated.add(self._on_update)

    def take(self, owner: PeerId, shard: int, seq: int, reply: Pushed) -> None:
        """The answer of an owner to this peer's push. Raises: DecodeError, where it lacks the receipt that it should be."""
        if not self._asks_for_them or reply.included:
            return
        asked = Receipt(self._states.run, shard, owner, self._states.me, seq, 0, b"")
        self._kept[shard] = receipt_in(reply, asked), reply.signature

    def _on_update(self, accepted: AcceptedUpdate) -> None:
        kept = self._kept.get(accepted.header.shard)
        if kept is None or accepted.header.version <= kept[0].version:
            return
        del self._kept[accepted.header.shard]
        self._evidence.take(omission(*kept, accepted.update, accepted.header))
