"""The checkpoints on a peer's page: which there are, how large, who has them, and what its buttons do.

Members are asked and sizes are counted only while a browser shows the page.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence

import msgspec
import trio

from legion_p2p.core.cids import Cid
from legion_p2p.core.holders import HoldersFound
from legion_p2p.core.identity import PeerId
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import LegionError, UsageError
from legion_p2p.observe import human
from legion_p2p.services.ports import Offload
from legion_p2p.store.archive import Archive
from legion_p2p.store.checkpoint_summary import blocks_of
from legion_p2p.store.checkpoints import get_manifest
from legion_p2p.web.checkpoint_jobs import CheckpointJobs, CheckpointWish, VerifyCheckpoint, export_name
from legion_p2p.web.page_blocks import Cell, RowAction, Table, TableColumn, rows_of

log = logging.getLogger("legion_p2p.web")

LOOK_EVERY_S = 2.0
ASK_EVERY_S = 30.0  # members; a question costs each of them less than a millisecond
STALE_S = 5.0  # nobody has looked for so long: nothing is asked until somebody does
MAX_KEPT_SHOWN = 40
MAX_FOREIGN_SHOWN = 20  # checkpoints that only others have
MAX_HOLDERS_NAMED = 4
UNKNOWN = "unknown"

_wishes = msgspec.json.Decoder(CheckpointWish)


class KeptCheckpoint(msgspec.Struct, frozen=True):
    """One that this peer keeps."""

    cid: Cid
    step: int
    created_s: int
    blocks: tuple[Cid, ...]
    n_bytes: int


class CheckpointDesk:
    """For one peer that keeps checkpoints."""

    def __init__(
        self, me: PeerId, spec: RunSpec, archive: Archive,
        ask: Callable[[Sequence[Cid], Collection[Cid]], Awaitable[HoldersFound]], jobs: CheckpointJobs, offload: Offload,
    ) -> None:  # fmt: skip
        """`ask`: some members, which checkpoints they have, and which of these blocks; the second: checkpoints that are here."""
        self.jobs = jobs
        self._me = me
        self._spec = spec
        self._archive = archive
        self._ask = ask
        self._offload = offload
        self._looked_at = float("-inf")
        self._asked_at: float | None = None
        self._found = HoldersFound()
        self._kept: dict[Cid, KeptCheckpoint] = {}

    async def run_forever(self) -> None:
        """Keep what the page shows up to date, and do what its buttons ask."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.jobs.run_forever)
            while True:
                if trio.current_time() - self._looked_at < STALE_S:
                    try:
                        await self.look()
                    except Exception:  # a page that cannot be made must not end what it is about
                        log.exception("the checkpoints for the page cannot be read")
                await trio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Count what is new here, and ask members, if that was long ago."""
        kept = self._archive.kept[:MAX_KEPT_SHOWN]
        self._kept = {cid: known for cid in kept if (known := self._kept.get(cid)) is not None}
        for cid in kept:
            if cid not in self._kept:
                counted = await self._offload(_count, self._archive, cid)
                if counted is not None:
                    self._kept[cid] = counted
        now = trio.current_time()
        if self._asked_at is None or now - self._asked_at >= ASK_EVERY_S:
            self._asked_at = now
            newest = self._kept.get(kept[0]) if kept else None
            self._found = await self._ask(() if newest is None else newest.blocks, kept)

    def obey(self, data: bytes) -> bool:
        """Do what a button asks; False: this is no wish for checkpoints. Raises: UsageError, where it cannot be."""
        try:
            wish = _wishes.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        known = next((one for cid, one in self._kept.items() if str(cid) == wish.cid), None)
        if known is None:
            raise UsageError("this peer keeps no such checkpoint")
        of_model = 4 * self._spec.plan().numel
        total = of_model + (known.n_bytes if isinstance(wish, VerifyCheckpoint) else 0)
        self.jobs.begin(wish, known.cid, export_name(self._spec.name, known.step, wish.cid), total)
        return True

    def table(self) -> Table:
        """Those that this peer keeps, the newest first, then those that only others have."""
        self._looked_at = trio.current_time()
        kept = sorted(self._kept.values(), key=lambda one: (-one.step, -one.created_s))
        rows: list[tuple[Cell, ...]] = [
            (
                one.step,
                human.clock_text(one.created_s),
                one.n_bytes,
                str(one.cid),
                self._who(one.cid),
                self.jobs.result(str(one.cid)),
            )
            for one in kept
        ]
        foreign = [cid for cid in self._found.named if cid not in self._kept]
        foreign.sort(key=lambda cid: (-self._step_of(cid), cid))
        shown, n_more = rows_of([self._foreign_row(cid) for cid in foreign], MAX_FOREIGN_SHOWN)
        actions = [RowAction("Verify", "verify")]
        if self.jobs.exports is not None:
            actions.append(RowAction("Export", "export"))
        return Table(
            "checkpoints", "Checkpoints", f"Checkpoints ({len(rows)} here, {len(foreign)} that only others have)",
            (
                TableColumn("step", "int"), TableColumn("at"), TableColumn("size", "bytes"), TableColumn("CID"),
                TableColumn("who has it"), TableColumn("last result"),
            ),
            (*rows, *shown), self._note(), n_more, is_wide=True, actions=tuple(actions),
            keys=(*(str(one.cid) for one in kept), *("" for _ in shown)),
        )  # fmt: skip

    def _foreign_row(self, cid: Cid) -> tuple[Cell, ...]:
        """Of a checkpoint that only others have."""
        origin, claimed = self._found.origins.get(cid), self._found.claimed_bytes.get(cid)
        return (
            None if origin is None else origin.step, UNKNOWN if origin is None else human.clock_text(origin.created_s),
            None if claimed is None else f"says {human.bytes_text(claimed)}", str(cid),
            _named(self._found.named[cid], self._me), "",
        )  # fmt: skip

    def _step_of(self, cid: Cid) -> int:
        origin = self._found.origins.get(cid)
        return -1 if origin is None else origin.step

    def _who(self, cid: Cid) -> str:
        told = ["this peer"]
        named = self._found.named.get(cid, ())
        told += [human.short_id(peer) for peer in named[:MAX_HOLDERS_NAMED]]
        newest = max(self._kept.values(), key=lambda one: (one.step, one.created_s)).cid
        if cid == newest:
            parts = sorted(self._found.shares.items(), key=lambda part: -part[1])
            told += [
                f"{human.short_id(peer)} ({human.percent_text(share)} of its blocks)"
                for peer, share in parts[:MAX_HOLDERS_NAMED]
                if share and peer not in named
            ]
        elif not named:
            told.append(f"others: {UNKNOWN}")
        return ", ".join(told)

    def _note(self) -> str:
        if self._asked_at is None:
            return "Members are being asked what they have."
        ago = human.seconds_text(trio.current_time() - self._asked_at)
        told = f"{self._found.n_answered} of {self._found.n_asked} members that were asked {ago} ago have answered. "
        return (
            told + "Each peer makes its own; those of one run share most blocks. A peer that fetches one checks every block. "
            "Of those that only others have, step and time are from the manifest, which its maker signed; the size is a claim."
        )


def _named(peers: Sequence[PeerId], me: PeerId) -> str:
    more = f" and {len(peers) - MAX_HOLDERS_NAMED} more" if len(peers) > MAX_HOLDERS_NAMED else ""
    return ", ".join("this peer" if peer == me else human.short_id(peer) for peer in peers[:MAX_HOLDERS_NAMED]) + more


def _count(archive: Archive, cid: Cid) -> KeptCheckpoint | None:
    """None: it was pruned meanwhile, or is damaged."""
    try:
        manifest = get_manifest(archive.store, cid)
        blocks = blocks_of(archive.store, cid)
    except LegionError:
        return None
    return KeptCheckpoint(cid, manifest.step, manifest.created_s, tuple(blocks), sum(blocks.values()))
