"""Which checkpoints a newcomer may build on, and for which shards that is less to fetch than the shard itself.

    members, and peers that the DHT names, name checkpoints -> their manifests, and the nodes below, are fetched
    published by no member, of another run, or not whole    -> not looked at any further
    members say which of the states they come from          -> a state that more of them deny than confirm is not believed
    its blocks, its log and the updates since               -> taken if that is no more than the whole shard

A manifest proves only which peer published it. A state is believable because the members that train now come from it: they are
asked before anything large is fetched. Of a shard's bases, the one that most publishers signed prevails, then the cheapest one.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.identity import PeerId
from legion_p2p.core.manifest import (
    Base,
    Manifest,
    StoredShard,
    check_shard,
    checkpoint_key,
    decode_base,
    decode_manifest,
    decode_shard,
)
from legion_p2p.core.shard_chunks import chunk_sizes
from legion_p2p.core.wire import (
    MAX_COMPARED,
    OTHER,
    AncestryQuery,
    GetCheckpoints,
    State,
)
from legion_p2p.errors import DecodeError, MissingBlockError
from legion_p2p.observe.events import Events
from legion_p2p.services.checkpoint.block_cache import BlockCache
from legion_p2p.services.checkpoint.fetch import Fetcher
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.rpc import Rpc

ASK_DEADLINE_S = 5.0
FIND_DEADLINE_S = 2.0  # for the DHT to name more peers with checkpoints: the members that are known suffice in most runs
MAX_TELLERS = 16  # members asked for checkpoints
MAX_ROOTS = 32  # manifests that are fetched: up to 1 MiB each
MAX_WEIGHED = 8  # of those that are looked into
PER_PUBLISHER = 2  # of them: a peer that was stopped while joining may have blocks of the one before the newest
MAX_JUDGES = 8  # members that are asked which states they come from
MAX_NODE_SHARE = 1 / 16  # of the model's bytes: what a manifest's nodes may take, beside the first MiB


@dataclass(frozen=True, eq=False)
class Candidate:
    """A shard as a checkpoint has it."""

    state: StoredShard
    base: Base
    n_signers: int
    """Members that published a checkpoint with this base."""
    n_block_bytes: int
    """Of blocks that are not here."""
    n_since_bytes: int
    """Of the updates since."""
    judges: tuple[PeerId, ...]
    """Members that come from this state, the furthest first."""

    @property
    def n_bytes(self) -> int:
        return self.n_block_bytes + self.n_since_bytes

    @property
    def rank(self) -> tuple[int, int]:
        """The lower the better. Blocks come from any peer that has them, updates from members that train: these count double."""
        return -self.n_signers, self.n_block_bytes + 2 * self.n_since_bytes

    @property
    def leaves(self) -> tuple[Cid, ...]:
        return chunks_of(self.state, self.base)


def chunks_of(state: StoredShard, base: Base) -> tuple[Cid, ...]:
    return (*base.leaves, *(leaf for update in state.log for leaf in update))


def named_roots(lists: Mapping[PeerId, Sequence[bytes]], report: Callable[[PeerId, str], None]) -> dict[Cid, set[PeerId]]:
    """The checkpoints that members named, each list newest first, and who named each: the newest of every list before the second.

    At most MAX_ROOTS checkpoints. Every member that names one of these counts, so that all of them are reported if it is
    no checkpoint of this run. `report` is called with names that are no CIDs.
    """
    roots: dict[Cid, set[PeerId]] = {}
    for i in range(max(map(len, lists.values()), default=0)):
        for peer, names in lists.items():
            if i >= len(names):
                continue
            try:
                cid = Cid.from_bytes(names[i])
            except DecodeError as bad:
                report(peer, f"named a checkpoint by something that is no CID: {bad}")
                continue
            if cid.codec == DAG_CBOR and (cid in roots or len(roots) < MAX_ROOTS):
                roots.setdefault(cid, set()).add(peer)
    return roots


class CheckpointSelection:
    """Looks for checkpoints of one run, through a fetcher that gets the nodes."""

    def __init__(self, ctx: PeerContext, members: MemberService, region: str, fetcher: Fetcher, store: BlockCache) -> None:
        """`region`: that of this peer, where states are confirmed. `store`: where `fetcher` puts blocks."""
        self._run = ctx.run
        self._plan = ctx.plan
        self._region = region
        self._members = members
        self._messenger = ctx.messenger
        self._rpc = Rpc(ctx.messenger)
        self._discovery = ctx.discovery
        self._fetcher = fetcher
        self._store = store
        self._disk = ctx.disk
        self._events = ctx.events
        self._rng = ctx.rng

    async def weigh(self) -> dict[int, Candidate]:
        """For each shard that is better built on a checkpoint: on which. Raises: StoreError."""
        roots = await self._ask_for_checkpoints()
        manifests = await self._believable(roots)
        candidates = await self._look_into(manifests)
        judged = await self._judge({_state(state) for _, state, _ in candidates})
        signers: dict[Cid, set[str]] = defaultdict(set)
        for manifest, state, _ in candidates:
            signers[state.base].add(manifest.publisher)
        sizes = await self._fetcher.look_for(
            dict.fromkeys(leaf for _, state, base in candidates if _state(state) in judged for leaf in chunks_of(state, base))
        )
        best: dict[int, Candidate] = {}
        for _, state, base in candidates:
            since = judged.get(_state(state))
            missing = [sizes[leaf] for leaf in dict.fromkeys(chunks_of(state, base))] if since else []
            if not since or None in missing:
                continue
            judges = tuple(peer for _, peer in since)
            offer = Candidate(state, base, len(signers[state.base]), sum(filter(None, missing)), since[0][0], judges)
            known = best.get(state.shard)
            if known is None or offer.rank < known.rank:
                best[state.shard] = offer
        chosen = {shard: offer for shard, offer in best.items() if offer.n_bytes <= 4 * self._plan.size(shard)}
        self._events.emit(
            "join.weighed", n_checkpoints=len(manifests), n_believed=len(best), n_chosen=len(chosen),
            n_bytes=sum(offer.n_bytes for offer in chosen.values()),
        )  # fmt: skip
        return chosen

    async def _ask_for_checkpoints(self) -> dict[Cid, set[PeerId]]:
        """The checkpoints that peers name, those first that are the newest of some peer, and which peers named each."""
        ready = [m.peer_id for m in self._members.table.counted() if m.announcement.ready]
        asked = set(self._rng.sample(ready, min(MAX_TELLERS, len(ready))))
        question = GetCheckpoints(self._run)
        told = await self._rpc.ask_all(asked, question, within_s=ASK_DEADLINE_S)
        if len(ready) > len(asked) or told:
            with trio.move_on_after(FIND_DEADLINE_S):
                for contact in await self._discovery.find(checkpoint_key(self._run)):
                    self._messenger.add_addresses(contact.peer_id, contact.addresses)
                    self._fetcher.providers.add(contact.peer_id)
            told |= await self._rpc.ask_all(self._fetcher.providers - asked, question, within_s=ASK_DEADLINE_S)
        lists = {peer: reply.cids for peer, reply in sorted(told.items())}
        self._fetcher.providers.update(lists)
        return named_roots(lists, self._messenger.report)

    async def _believable(self, roots: dict[Cid, set[PeerId]]) -> list[Manifest]:
        """The manifests that are worth a look, the newest of each publisher first."""
        missing = set(await self._fetcher.fetch_blocks(roots))
        found: dict[str, list[Manifest]] = defaultdict(list)
        for root in roots.keys() - missing:
            try:
                manifest = decode_manifest(await self._disk(self._store.get, root))
                self._check(manifest)
            except DecodeError as bad:
                self._events.emit("checkpoint.not_believed", cid=str(root), reason=str(bad))
                for peer in roots[root]:
                    self._messenger.report(peer, f"told of a checkpoint that is none of this run: {bad}")
                continue
            if self._members.roster.is_known(PeerId(manifest.publisher)):
                found[manifest.publisher].append(manifest)
            else:
                self._events.emit("checkpoint.not_believed", cid=str(root), reason=f"{manifest.publisher} is no member")
        ranked = [
            (i, -manifest.step, manifest.publisher, manifest)
            for manifests in found.values()
            for i, manifest in enumerate(sorted(manifests, key=lambda m: -m.step)[:PER_PUBLISHER])
        ]
        return [manifest for *_, manifest in sorted(ranked, key=lambda one: one[:3])[:MAX_WEIGHED]]

    def _check(self, manifest: Manifest) -> None:
        if str(manifest.run) != self._run or len(manifest.shards) != self._plan.n_shards:
            raise DecodeError(
                f"run {manifest.run} in {len(manifest.shards)} shards, this is {self._run} in {self._plan.n_shards}"
            )

    async def _look_into(self, manifests: Sequence[Manifest]) -> list[tuple[Manifest, StoredShard, Base]]:
        """The shards of those manifests that are whole down to the bases."""
        shards = await self._fetch_nodes(cid for manifest in manifests for cid in manifest.shards)
        states: dict[Cid, StoredShard] = {}
        for cid, data in shards.items():
            with _noting(self._events, cid):
                states[cid] = decode_shard(data)
        nodes = await self._fetch_nodes(state.base for state in states.values())
        found = []
        for manifest in manifests:
            for i, cid in enumerate(manifest.shards):
                state = states.get(cid)
                if state is None or state.base not in nodes:
                    continue
                with _noting(self._events, cid):
                    base = decode_base(nodes[state.base])
                    check_shard(i, state, base)
                    if len(base.leaves) != len(chunk_sizes(self._plan.size(i))):
                        raise DecodeError(f"a base of {len(base.leaves)} leaves for shard {i}")
                    found.append((manifest, state, base))
        return found

    async def _fetch_nodes(self, cids: Iterable[Cid]) -> dict[Cid, bytes]:
        """As many of them as can be had, and as a model of this size may need."""
        wanted = [cid for cid in dict.fromkeys(cids) if cid.codec == DAG_CBOR]
        room = (1 << 20) + 4 * sum(self._plan.size(shard) for shard in range(self._plan.n_shards)) * MAX_NODE_SHARE
        sizes = await self._fetcher.look_for(wanted)
        some = []
        for cid in wanted:
            room -= sizes[cid] or 0
            if room >= 0:
                some.append(cid)
        missing = set(await self._fetcher.fetch_blocks(some))
        return {cid: await self._disk(self._store.get, cid) for cid in some if cid not in missing}

    async def _judge(self, states: set[State]) -> dict[State, list[tuple[int, PeerId]]]:
        """The states that are believed: the bytes of updates since, and the members that have them, most first."""
        here = [m for m in self._members.table.counted() if m.announcement.ready and m.announcement.region == self._region]
        judges = [m.peer_id for m in sorted(here, key=lambda m: (-m.announcement.weight, m.peer_id))[:MAX_JUDGES]]
        questions = sorted(states, key=lambda s: (s.shard, s.version, s.digest))
        since: dict[State, list[tuple[int, PeerId]]] = defaultdict(list)
        denials: Counter[State] = Counter()
        for at in range(0, len(questions), MAX_COMPARED):
            some = questions[at : at + MAX_COMPARED]
            answers = await self._rpc.ask_all(judges, AncestryQuery(self._run, tuple(some)), within_s=ASK_DEADLINE_S)
            for peer, reply in answers.items():
                if len(reply.since) != len(some):
                    self._messenger.report(peer, f"{len(reply.since)} answers about {len(some)} states")
                    continue
                for state, n_bytes in zip(some, reply.since, strict=True):
                    if n_bytes >= 0:
                        since[state].append((n_bytes, peer))
                    elif n_bytes == OTHER:
                        denials[state] += 1
        return {state: sorted(found, reverse=True) for state, found in since.items() if len(found) > denials[state]}


@contextmanager
def _noting(events: Events, cid: Cid) -> Iterator[None]:
    """What cannot be read is noted, and left out."""
    try:
        yield
    except (DecodeError, MissingBlockError) as bad:
        events.emit("checkpoint.not_believed", cid=str(cid), reason=str(bad))


def _state(state: StoredShard) -> State:
    return State(state.shard, state.version, state.digest)
