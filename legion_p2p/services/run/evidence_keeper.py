"""Keeps what is proven against owners on disk, so that a peer that is started again does not follow them."""

from collections.abc import Sequence
from typing import Protocol

import trio

from legion_p2p.concurrency.nurseries import TaskStatus
from legion_p2p.core.evidence import KeptEvidence
from legion_p2p.errors import DecodeError, StoreError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService

LOOK_EVERY_S = 2.0  # evidence is rare, and what is lost in two seconds others show again


class EvidenceStore(Protocol):
    """Where it is kept: see `legion_p2p.store.evidence_file`. All of it waits for the disk."""

    def load(self) -> Sequence[KeptEvidence]:
        """Raises: StoreError."""

    def save(self, kept: Sequence[KeptEvidence]) -> None:
        """Raises: StoreError."""


async def keep_evidence(
    ctx: PeerContext, members: MemberService, store: EvidenceStore, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Take in what is kept, and keep what comes. Evidence of other runs stays where it is."""
    others: list[KeptEvidence] = []
    try:
        for kept in await ctx.disk(store.load):
            if kept.evidence.run != ctx.run:
                others.append(kept)
                continue
            try:
                members.proofs.restore(kept)
            except DecodeError as bad:
                ctx.events.error("evidence.not_kept", f"kept evidence proves nothing: {bad}")
    except StoreError as bad:
        ctx.events.error("evidence.not_kept", str(bad))
    written = members.proofs.book.revision
    task_status.started(None)
    while True:
        if members.proofs.book.revision != written:
            written = members.proofs.book.revision
            try:
                await ctx.disk(store.save, (*others, *members.proofs.kept()))
            except StoreError as bad:
                ctx.events.error("evidence.not_kept", str(bad))
        await trio.sleep(LOOK_EVERY_S)
