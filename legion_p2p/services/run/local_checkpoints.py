"""The checkpoints of a run that this peer keeps on its disk; none, if it has no store."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from legion_p2p.core.cids import Cid
from legion_p2p.core.manifest import block_key, checkpoint_key
from legion_p2p.core.run import SignedSpec
from legion_p2p.services.checkpoint.block_cache import BlockCache
from legion_p2p.services.checkpoint.writer import CheckpointService
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.ports import CheckpointArchive
from legion_p2p.services.run.arrivals import FetchedShard, keep
from legion_p2p.services.shards.service import ShardService

MAX_PROVIDED = 8  # checkpoints under which a peer is found in the DHT: each record is renewed again and again


RUN_TOKENS = "run_tokens"  # in the state of a checkpoint


class LocalCheckpoints:
    """Opens the archive for the run, fills it from what was fetched, and has it written while the peer trains."""

    def __init__(
        self,
        ctx: PeerContext,
        archive: CheckpointArchive | None,
        members: MemberService,
        shards: ShardService,
        step: Callable[[], int],
        tokens: Callable[[], int],
        *,
        follows: bool = True,
    ) -> None:
        """`step`, `tokens`: of the run, now. `follows`: what the shards come to is written down; not where a run is sharded."""
        self.trainer_state: Callable[[], Mapping[str, Any]] = dict
        """What the training thread needs to go on after a restart. Called in the peer's thread."""
        self.store: BlockCache | None = archive
        """Where blocks that are fetched can be kept."""
        self._tokens = tokens
        self._run = ctx.run
        self._disk = ctx.disk
        self._archive = archive
        self._writer = None
        if archive is not None and follows:
            self._writer = CheckpointService(ctx, archive, members, shards, step, self._state)

    def _state(self) -> Mapping[str, Any]:
        """What a checkpoint holds beside the shards."""
        return {**self.trainer_state(), RUN_TOKENS: self._tokens()}

    @property
    def newest(self) -> Cid | None:
        """The newest checkpoint of this run here."""
        return None if self._writer is None else self._writer.newest

    @property
    def stored_marks(self) -> bytes:
        """Of what the newest checkpoint holds, as in announcements."""
        return b"" if self._writer is None else self._writer.stored_marks

    async def open(self, signed: SignedSpec) -> None:
        """Begin to keep checkpoints of the run, or go on from those that there are. Raises: StoreError."""
        if self._archive is not None:
            await self._disk(self._archive.open, signed)

    async def adopt(self, fetched: Sequence[FetchedShard], step: int) -> None:
        """Go on from shards whose blocks were fetched into the store. Raises: StoreError."""
        if self._archive is not None:
            await self._disk(keep, self._archive, fetched, step)

    async def remembered(self) -> list[tuple[str, tuple[str, ...]]]:
        """Members of the run, and the addresses at which they last were."""
        return [] if self._archive is None else await self._disk(self._archive.remembered)

    def keys(self) -> set[str]:
        """The DHT keys under which this peer should be found because of its checkpoints, and of data that it shares."""
        if self._archive is None:
            return set()
        kept = self._archive.kept[:MAX_PROVIDED]
        of_run = {checkpoint_key(self._run)} if kept else set()
        return {*of_run, *map(block_key, kept), *map(block_key, self._archive.shared[:MAX_PROVIDED])}

    def on_published(self, observer: Callable[[], None]) -> None:
        """Call `observer` whenever `keys` may be others than before."""
        if self._writer is not None:
            self._writer.published.add(lambda _: observer())

    async def run_forever(self) -> None:
        """Write down what this peer holds, while it trains."""
        if self._writer is not None:
            await self._writer.run_forever()

    async def finish(self) -> None:
        """Write what is queued. Returns when it is on the disk."""
        if self._writer is not None:
            await self._writer.finish()
