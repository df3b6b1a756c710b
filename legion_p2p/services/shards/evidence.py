"""Evidence against owners: what this peer has found goes to others, and what they show is checked. See core/evidence.py."""

import random
from typing import Any

from legion_p2p.core.evidence import reason_of
from legion_p2p.core.identity import PeerId
from legion_p2p.core.membership import Changed
from legion_p2p.core.wire import Done, Evidence, Request
from legion_p2p.errors import NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.states import ShardStates

N_TOLD = 8  # members that are told of new evidence; each tells as many
N_SHOWN = 8  # pieces of evidence that a member hears of when it comes
TELL_S = 10.0


class EvidenceService:
    """Takes evidence in, and passes it on."""

    def __init__(self, ctx: PeerContext, states: ShardStates) -> None:
        self._events = ctx.events
        self._rng: random.Random = ctx.rng
        self._states = states
        self._members = states.members
        self._members.member_changed.add(self._on_member_changed)

    async def on_evidence(self, peer: PeerId, message: Evidence) -> Done:
        """A member shows evidence. Raises: DecodeError, to be sent back: what proves nothing is its own fault."""
        self.take(message, shown_by=peer)
        return Done()

    def take(self, evidence: Evidence | None, shown_by: PeerId | None = None) -> None:
        """Check it, and tell others where it is news. None: nothing. Raises: DecodeError, where it proves nothing."""
        culprit = None if evidence is None else self._members.prove(evidence)
        if evidence is None or culprit is None:
            return
        whom = "this peer" if culprit == self._states.me else culprit
        self._events.error("owner.excluded", f"{whom} {reason_of(evidence)}: it owns nothing for a day", peer=culprit)
        others = [m.peer_id for m in self._members.table.counted() if m.peer_id not in (shown_by, culprit)]
        told = self._rng.sample(others, min(N_TOLD, len(others)))
        for peer in told if culprit == self._states.me else (culprit, *told):  # one that was unlucky has to stop owning, too
            self._show(peer, evidence)

    def _on_member_changed(self, change: Changed) -> None:
        if change.before is None and change.after is not None:
            for evidence in self._members.evidence.newest(N_SHOWN):
                self._show(change.peer_id, evidence)

    def _show(self, peer: PeerId, evidence: Evidence) -> None:
        if self._states.nursery is not None:
            self._states.nursery.start_soon(self._tell, peer, evidence)

    async def _tell(self, peer: PeerId, evidence: Request[Any]) -> None:
        try:
            await self._states.rpc.ask(peer, evidence, within_s=TELL_S)
        except NetworkError:
            return  # others tell it too
