"""A peer that is started again knows what it knew of owners."""

from collections.abc import Sequence

import msgspec
import trio

from legion_p2p.core.evidence import KeptEvidence
from legion_p2p.errors import StoreError
from legion_p2p.services.run.evidence_keeper import LOOK_EVERY_S, keep_evidence
from tests.unit.shard.test_services import peers_of
from tests.unit.test_receipts import OWNER, RECEIPT, WITHOUT, found


class Kept:
    """A store in memory."""

    def __init__(self, *kept: KeptEvidence) -> None:
        self.saved: Sequence[KeptEvidence] = kept
        self.fails = False

    def load(self) -> Sequence[KeptEvidence]:
        return self.saved

    def save(self, kept: Sequence[KeptEvidence]) -> None:
        if self.fails:
            raise StoreError("the disk is full")
        self.saved = kept


async def test_evidence_is_kept_and_taken_in_again(autojump_clock: object) -> None:
    async with peers_of(1) as (peer,):
        of_run = msgspec.structs.replace(WITHOUT, run=peer.run.id)
        evidence = found(of_run, msgspec.structs.replace(RECEIPT, run=peer.run.id))
        elsewhere = found(WITHOUT)
        assert evidence is not None and elsewhere is not None
        until_s = peer.run.ctx.wall_time() + 1000
        store = Kept(KeptEvidence(elsewhere, until_s))
        async with trio.open_nursery() as nursery:
            await nursery.start(keep_evidence, peer.run.ctx, peer.run.members, store)
            assert not peer.run.members.proofs.book.excluded()
            peer.run.members.proofs.prove(evidence)
            await trio.sleep(2 * LOOK_EVERY_S)
            nursery.cancel_scope.cancel()

        assert [kept.evidence for kept in store.saved] == [elsewhere, evidence], "what concerns other runs stays"

    async with peers_of(1) as (peer,):
        forged = msgspec.structs.replace(evidence, signature=b"s" * 64)
        store.saved = [KeptEvidence(each, until_s) for each in (forged, evidence)]
        store.fails = True
        async with trio.open_nursery() as nursery:
            await nursery.start(keep_evidence, peer.run.ctx, peer.run.members, store)
            assert peer.run.members.proofs.book.excluded() == {OWNER.peer_id}
            peer.run.members.proofs.book.revision += 1
            await trio.sleep(2 * LOOK_EVERY_S)
            nursery.cancel_scope.cancel()

        texts = [event.fields["text"] for event in peer.log if event.name == "evidence.not_kept"]
        assert len(texts) == 2 and "not signed" in texts[0] and "full" in texts[1]
