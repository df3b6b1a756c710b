"""Writing down what this peer holds, while it trains on: every update as it comes, whole shards in turn, a manifest now and then.

    an update is accepted          -> queued; one task appends what is queued to the journal
    it is the version of a base    -> the shard is stored whole as well
    bytes came without an update   -> the shard is appended whole, at most every WHOLE_EVERY_S: a swarm of one makes many such
    `every_s` are over             -> a manifest of all shards; earlier, where the journal has grown large
    the disk refuses               -> an error event; what was queued is forgotten, and RETRY_S later everything is stored again
    the disk is too slow           -> what does not fit into the queue is forgotten, and a manifest made soon

Rounds never wait for any of it. What was appended is found again after a crash.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio
from torch import Tensor

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.checkpoint_policy import is_base_version, most_journal_bytes, versions_between_bases
from legion_p2p.core.cids import Cid
from legion_p2p.core.observers import Observers
from legion_p2p.core.wire import Inclusion, Update, UpdateHeader
from legion_p2p.errors import DecodeError, LegionError, StoreError, UsageError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.ports import CheckpointArchive
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.service import ShardService
from legion_p2p.services.shards.states import AcceptedUpdate
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import fp32_bytes

MAX_QUEUED_BYTES = 256 << 20  # waiting for the disk: what is behind by more is stored whole later, instead of filling the memory
RETRY_S = 30.0  # after the disk refused: it may have room again
SOON_S = 2.0  # until a manifest, when what is stored does not lead to what is held
WHOLE_EVERY_S = 0.25  # what a swarm of one loses when it is killed
REST = 10  # after a manifest, or whole shards, this many times as long as that took: the disk and the CPU are for training
STATE_EVERY_S = 1.0  # between two records of the trainer's state: a few KiB each
MAX_MEMBERS = 256  # named in a manifest, to be waited for when resuming
HASTY_S = 1.0  # on leaving, a manifest is made if the last one did not take longer

State = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class _Head:
    """A shard as it is held now. The tensor is never changed in place, so it can be written later."""

    shard: int
    version: int
    digest: bytes
    included: tuple[Inclusion, ...]
    reference: Tensor
    salt: bytes


@dataclass(frozen=True, eq=False)
class _Queued:
    header: UpdateHeader
    update: Update
    base: _Head | None
    """The state that the update led to, where it is to be stored whole."""


class CheckpointService:
    """Keeps an archive in step with the shards."""

    def __init__(
        self,
        ctx: PeerContext,
        archive: CheckpointArchive,
        members: MemberService,
        shards: ShardService,
        step: Callable[[], int],
        state: State,
    ) -> None:
        """`step` and `state` tell where the training is: of the run, and what else the trainer needs to go on."""
        self.newest: Cid | None = None
        """The newest checkpoint of the run in the archive."""
        self._archive = archive
        self._disk = ctx.disk
        self._shards = shards
        self._members = members
        self._events = ctx.events
        self._config = ctx.config.checkpoints
        bits = codec.get(ctx.spec.round.update_codec).bits_per_element
        self._base_every = versions_between_bases(bits, self._config.base_every)
        self._most_journal_bytes = most_journal_bytes(ctx.plan.numel)
        self._step = step
        self._state = state
        self._wall_time = ctx.wall_time
        self._queue: list[_Queued | _Head] = []
        self._queued_bytes = 0
        self._changed_notify = Notify()
        self._next_at = -math.inf
        self._not_before = -math.inf
        self._whole_not_before = -math.inf
        self._state_at = -math.inf
        self._took_s = 0.0
        self._failing = False
        self._leaving = False
        self._left = trio.Event()
        self.stored_marks = b""
        """Of what the newest checkpoint holds, as in announcements."""
        self._following = False
        self.published: Observers[Cid] = Observers()
        """Told of each checkpoint that is made."""

    async def run_forever(self) -> None:
        """Follow the shards from now on. The archive is open, and the shards are held."""
        self.newest = self._archive.newest
        self._following = True
        self._shards.states.updated.add(self._on_update)
        self._shards.states.replaced.add(self._on_replaced)
        while not self._leaving:
            now = trio.current_time()
            publish_at, write_at = max(self._next_at, self._not_before), self._write_at()
            if now >= min(publish_at, write_at):
                await self._work(publish=now >= publish_at)
            else:
                with trio.move_on_at(min(publish_at, write_at)):
                    await self._changed_notify.wait()
        await self._work(publish=self._took_s <= HASTY_S)
        self._left.set()

    def _write_at(self) -> float:
        """When to write what is queued: updates at once, whole shards not all of the time."""
        if self._failing or not self._queue:
            return math.inf
        return self._whole_not_before if any(isinstance(one, _Head) for one in self._queue) else -math.inf

    async def finish(self) -> None:
        """Write what is queued, and a last manifest if that is quickly done. Returns when that is on the disk."""
        if not self._following:
            return
        self._leaving = True
        self._changed_notify.notify()
        await self._left.wait()

    def _on_update(self, accepted: AcceptedUpdate) -> None:
        """A shard has a new version, made by this update."""
        header = accepted.header
        turn = is_base_version(header.shard, self._shards.plan.n_shards, header.version, self._base_every)
        queued = _Queued(header, accepted.update, _head_of(accepted.replica) if turn else None)
        if self._failing:
            return
        if self._queued_bytes + _size_of(queued) > MAX_QUEUED_BYTES:
            self._soon()
            return
        self._queued_bytes += _size_of(queued)
        self._queue.append(queued)
        self._changed_notify.notify()

    def _on_replaced(self, replica: Replica) -> None:
        """A shard has new bytes that no update led to: what is queued of it leads nowhere any more."""
        if self._failing:
            return
        gone = [one for one in self._queue if _shard_of(one) == replica.shard]
        self._queue = [one for one in self._queue if _shard_of(one) != replica.shard]
        self._queued_bytes -= sum([_size_of(one) for one in gone if isinstance(one, _Queued)])
        self._queue.append(_head_of(replica))
        self._changed_notify.notify()

    def _soon(self) -> None:
        self._next_at = min(self._next_at, trio.current_time() + SOON_S)
        self._changed_notify.notify()

    async def _work(self, *, publish: bool) -> None:
        began = trio.current_time()
        queued, self._queue, self._queued_bytes = self._queue, [], 0
        # Taken in the same instant as the queue: once that is written, what is stored should be at these heads.
        heads = [_head_of(self._shards.replicas[shard]) for shard in range(self._shards.plan.n_shards)] if publish else []
        marks = self._shards.marks()
        publish = publish and marks != self.stored_marks
        try:
            step, state = self._step(), None
            if publish or began - self._state_at >= STATE_EVERY_S:
                state, self._state_at = self._all_state(), began
            if self._failing:
                await self._disk(self._archive.recover)
            await self._disk(_write, self._archive, queued, step, state)
            if any(isinstance(one, _Head) for one in queued):
                now = trio.current_time()
                self._whole_not_before = now + max(WHOLE_EVERY_S, REST * (now - began))
                if self._archive.journal_bytes > self._most_journal_bytes:
                    self._soon()
            if publish:
                for head in heads:  # one at a time: on leaving, nobody waits for all of them
                    await self._disk(_put_if_missing, self._archive, head)
                contacts = [(a.peer_id, a.addresses) for a in self._members.roster.everyone()[:MAX_MEMBERS]]
                created_s = int(self._wall_time())
                self.newest = await self._disk(_publish, self._archive, step, created_s, state or {}, contacts)
                self.stored_marks = marks
                self._took_s = trio.current_time() - began
                self._events.emit("checkpoint.stored", step=step, cid=str(self.newest), wall_s=round(self._took_s, 3))
                self.published.tell(self.newest)
        except (StoreError, UsageError, DecodeError) as failed:
            self._on_failure(failed)
            return
        if self._failing and publish:
            self._failing = False
            self._events.emit("checkpoint.resumed")
        now = trio.current_time()
        if heads:
            self._next_at = now + self._config.every_s
            self._not_before = now + REST * self._took_s

    def _on_failure(self, failed: LegionError) -> None:
        if not self._failing:
            self._events.error("checkpoint.failed", f"nothing is stored for now, training goes on: {failed}")
        self._failing = True
        self._queue, self._queued_bytes = [], 0
        self._next_at = self._not_before = trio.current_time() + RETRY_S

    def _all_state(self) -> dict[str, Any]:
        members = [a.peer_id for a in self._members.roster.everyone() if a.ready][:MAX_MEMBERS]
        return {**self._state(), "members": " ".join(members)}


def _head_of(replica: Replica) -> _Head:
    chain = replica.chain
    return _Head(replica.shard, chain.version, chain.digest, chain.included(), replica.reference, chain.salt)


def _shard_of(one: _Queued | _Head) -> int:
    return one.shard if isinstance(one, _Head) else one.header.shard


def _size_of(queued: _Queued) -> int:
    base_bytes = 0 if queued.base is None else 4 * queued.base.reference.numel()
    return len(queued.update.payload) + len(queued.update.header) + base_bytes


def _write(archive: CheckpointArchive, queued: Sequence[_Queued | _Head], step: int, state: Mapping[str, Any] | None) -> None:
    waiting: list[tuple[UpdateHeader, Update]] = []
    for one in queued:
        if isinstance(one, _Queued):
            waiting.append((one.header, one.update))
            if one.base is None:
                continue
        if waiting:
            archive.append(waiting, step)
            waiting = []
        if isinstance(one, _Head):
            archive.append_whole(one.shard, one.version, one.digest, one.included, fp32_bytes(one.reference), salt=one.salt)
        elif one.base is not None:
            _put_base(archive, one.base)
    if waiting or state is not None:
        archive.append(waiting, step, state)


def _put_if_missing(archive: CheckpointArchive, head: _Head) -> None:
    if not archive.holds(head.shard, head.version, head.digest):
        _put_base(archive, head)


def _publish(archive: CheckpointArchive, step: int, created_s: int, state: Mapping[str, Any], contacts: Sequence[Any]) -> Cid:
    archive.remember(contacts)
    return archive.publish(step, created_s, state)


def _put_base(archive: CheckpointArchive, head: _Head) -> None:
    archive.put_base(head.shard, head.version, head.digest, head.included, fp32_bytes(head.reference), salt=head.salt)
