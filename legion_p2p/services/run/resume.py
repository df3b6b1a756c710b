"""Going on from what is stored: reading a run back from this peer's disk, and agreeing with others on the newest state.

    the newest manifest that is whole, and the journal after it -> this peer's shards, as they were
    nobody in the run is ready     -> wait for the former members, at most `gather_s`; of each shard the newest version that
                                      anybody of them holds is taken over
    somebody is ready              -> the run goes on already: what its owners hold is taken over

Only peers whose contributions the stored state contains are believed to be ahead while nobody is ready: anybody can sign
updates, and which peer owned the shard back then cannot be known. Each update is checked to lead on from what is held here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio
from torch import Tensor, float32, frombuffer

from legion_p2p.core.announcement import Announcement, Mark, peer_of
from legion_p2p.core.chain import Chain
from legion_p2p.core.checkpoint_policy import StoredRun
from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.base import MAX_COUNT
from legion_p2p.errors import DecodeError, StoreError
from legion_p2p.observe.events import Events
from legion_p2p.services.checkpoint.replay import replay
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.ports import CheckpointArchive, Offload
from legion_p2p.services.shards.service import ShardService
from legion_p2p.services.shards.states import log_bytes

LOOK_EVERY_S = 0.5  # while waiting for former members


@dataclass(frozen=True, eq=False)
class Restored:
    """A run as it was read back."""

    stored: StoredRun
    shards: tuple[tuple[Tensor, Chain], ...]
    step: int
    state: dict[str, Any]

    @property
    def run_tokens(self) -> int:
        """Tokens that the run had trained; 0 where an older version wrote the checkpoint."""
        stored = self.state.get("run_tokens", 0)
        return stored if isinstance(stored, int) and 0 <= stored <= MAX_COUNT else 0

    def contributors(self) -> set[PeerId]:
        """All peers whose work the state contains, and the former members."""
        members = str(self.state.get("members", "")).split()
        return {PeerId(i.peer) for _, chain in self.shards for i in chain.included()} | {PeerId(m) for m in members}


async def restore(archive: CheckpointArchive, disk: Offload, run: str, events: Events) -> Restored | None:
    """The run of this name or id as it is stored; None where nothing whole is. Raises: StoreError."""
    for stored in await disk(archive.find, run):
        try:
            shards = []
            await disk(archive.open, stored.signed, stored)
            for shard in range(stored.spec.plan().n_shards):
                shards.append(await disk(_restore_shard, archive, stored, shard, events))
            step, state = await disk(archive.last_state)
        except (StoreError, DecodeError) as bad:
            events.error("checkpoint.unusable", f"{stored.cid}: {bad}; an older one is tried")
            continue
        return Restored(stored, tuple(shards), step, state)
    return None


def _restore_shard(archive: CheckpointArchive, stored: StoredRun, shard: int, events: Events) -> tuple[Tensor, Chain]:
    base, data, log, journal = archive.shard(shard)
    reference = frombuffer(bytearray(data), dtype=float32)
    chain = Chain(base.version, base.digest, log_bytes(reference.numel()), base.included, salt=base.salt)
    run = str(stored.manifest.run)
    for entry, after in replay(run, stored.spec, shard, chain.version, reference, log):
        chain.applied(entry.header, entry.update)
        reference = after
    try:
        for entry, after in replay(run, stored.spec, shard, chain.version, reference, journal):
            chain.applied(entry.header, entry.update)
            reference = after
    except (StoreError, DecodeError) as bad:  # what the checkpoint has is whole, and so are the updates before this one
        events.error("checkpoint.journal_damaged", f"shard {shard} goes on from version {chain.version}: {bad}")
    return reference, chain


async def gather(
    restored: Restored, remembered: Iterable[tuple[str, tuple[str, ...]]], members: MemberService, gather_s: float
) -> bool:
    """Wait until all former members are here again, or a member is ready, or `gather_s` are over.

    `remembered`: former members, and the addresses at which they last were. True if a member is ready: the run goes on already.
    """
    for peer, addresses in remembered:
        members.introduce(PeerId(peer), addresses)
    expected = {PeerId(m) for m in str(restored.state.get("members", "")).split()} - {members.me}
    with trio.move_on_after(gather_s):
        while not _any_ready(members) and not expected <= {m.peer_id for m in members.table.counted()}:
            missing = expected - {m.peer_id for m in members.table.counted()}
            async with trio.open_nursery() as nursery:
                for peer in sorted(missing):
                    nursery.start_soon(members.exchange_with, peer)
                await trio.sleep(LOOK_EVERY_S)
    return _any_ready(members)


def _any_ready(members: MemberService) -> bool:
    return any(m.announcement.ready for m in members.table.counted())


async def catch_up(restored: Restored, members: MemberService, shards: ShardService, events: Events) -> None:
    """Take over of each shard what the run holds; where nobody is ready, the newest that one of its contributors has."""
    believed = restored.contributors()

    async def one(shard: int) -> None:
        replica = shards.replicas[shard]
        others = {a.peer_id: marks[a.peer_id][shard] for a in asked if marks[a.peer_id]}
        for announcement in _in_order(asked, others):
            mark = others[announcement.peer_id]
            if announcement.ready or mark.version > replica.chain.version:
                await shards.sync_with(shard, peer_of(announcement))
            if replica.chain.holds(mark):
                return

    here = [m.announcement for m in members.table.counted() if m.announcement.region == shards.region]
    asked = [a for a in here if a.ready or peer_of(a) in believed]
    marks: dict[str, dict[int, Mark]] = {}

    async def ask(announcement: Announcement) -> None:
        marks[announcement.peer_id] = await shards.mark_exchange.all_of(announcement, peer_of(announcement))

    async with trio.open_nursery() as nursery:
        for announcement in asked:
            nursery.start_soon(ask, announcement)
    before = [shards.replicas[shard].chain.version for shard in range(shards.plan.n_shards)]
    async with trio.open_nursery() as nursery:
        for shard in range(shards.plan.n_shards):
            nursery.start_soon(one, shard)
    gained = sum(shards.replicas[shard].chain.version - version for shard, version in enumerate(before))
    events.emit("run.reunited", n_members=1 + members.table.n_counted, n_versions_gained=gained)


def _in_order(announcements: Iterable[Announcement], marks: Mapping[PeerId, Mark]) -> Sequence[Announcement]:
    """The members to ask for a shard: those that are ready first, then by their version of it, the newest first."""
    asked = [a for a in announcements if a.peer_id in marks]
    return sorted(asked, key=lambda a: (not a.ready, -marks[a.peer_id].version, a.peer_id))
