"""Finding a run by its name or id, and fetching its model from those who own it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import trio
from torch import Tensor

from legion_p2p.core.identity import PeerId
from legion_p2p.core.rendezvous import ownership
from legion_p2p.core.run import RunSpec, SignedSpec, looks_like_run_id, name_key, open_spec, run_id, run_key
from legion_p2p.core.wire import GetShard, GetSpec, GetUpdates, Inclusion, ShardState, SpecFound, Updates, decode_reply, encode
from legion_p2p.errors import AmbiguousRunError, DecodeError, JoinError, NetworkError, RefusedError, UnknownRunError
from legion_p2p.observe.events import Events
from legion_p2p.services.groups import open_flat_nursery
from legion_p2p.services.members import MemberService
from legion_p2p.services.ports import Contact, Discovery, Lane, Messenger, Offload
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest

ASK_DEADLINE_S = 5.0
SEARCH_S = 15.0  # a run founded a moment ago takes seconds to show in the DHT; a name typed wrong should not take minutes
SEARCH_EVERY_S = 1.0
FETCH_S = 120.0  # to find somebody who has a shard; while bytes come in it may take longer
FETCH_DEADLINE_S = 120.0
MAX_CONCURRENT_FETCHES = 8
MAX_ASKED = 32  # contacts asked for a run


@dataclass(frozen=True)
class FoundRun:
    """A run, and the peers that said they are in it."""

    id: str
    signed: SignedSpec
    spec: RunSpec
    contacts: tuple[PeerId, ...]


@dataclass(frozen=True, eq=False)
class FetchedShard:
    shard: int
    version: int
    digest: bytes
    included: tuple[Inclusion, ...]
    reference: Tensor
    peer: PeerId


async def find_run(
    wanted: str, messenger: Messenger, discovery: Discovery, events: Events, *, search_s: float = SEARCH_S
) -> FoundRun:
    """Find a run by its name or id: through the DHT, and by asking whoever we are connected to.

    Raises: UnknownRunError after `search_s`; AmbiguousRunError, if several runs have the name.
    """
    asked: set[PeerId] = set()
    deadline = trio.current_time() + search_s
    key = run_key(wanted) if looks_like_run_id(wanted) else name_key(wanted)
    while True:
        contacts = {contact.peer_id: contact for contact in await _look_up(discovery, key)}
        for peer in messenger.connected():
            contacts.setdefault(peer, Contact(peer))
        found = await _ask_all(wanted, list(contacts.values())[:MAX_ASKED], messenger, events)
        asked |= contacts.keys()
        if found:
            by_id = {run.id: run for run in found}
            if len(by_id) > 1:
                raise AmbiguousRunError(wanted, tuple(sorted(by_id)))
            only = next(iter(by_id.values()))
            return FoundRun(only.id, only.signed, only.spec, tuple(peer for run in found for peer in run.contacts))
        if trio.current_time() >= deadline:
            raise UnknownRunError(wanted, len(asked))
        await trio.sleep(SEARCH_EVERY_S)


async def _look_up(discovery: Discovery, key: str) -> Sequence[Contact]:
    with trio.move_on_after(ASK_DEADLINE_S):
        return await discovery.find(key)
    return ()


async def _ask_all(wanted: str, contacts: Sequence[Contact], messenger: Messenger, events: Events) -> list[FoundRun]:
    found: list[FoundRun] = []

    async def ask(contact: Contact) -> None:
        messenger.add_addresses(contact.peer_id, contact.addresses)
        try:
            with trio.fail_after(ASK_DEADLINE_S):
                reply = decode_reply(await messenger.request(contact.peer_id, encode(GetSpec(wanted))))
            if not isinstance(reply, SpecFound):
                return
            signed = SignedSpec(reply.spec, reply.signature)
            spec = open_spec(signed)
            if wanted not in (spec.name, run_id(signed)):
                raise DecodeError(f"asked for run {wanted!r}, got {spec.name!r}")
            found.append(FoundRun(run_id(signed), signed, spec, (contact.peer_id,)))
        except RefusedError:
            return  # a bootstrap node, or a member of another run: nothing to tell
        except NetworkError as failed:
            events.emit("run.not_asked", peer=contact.peer_id, reason=str(failed))
        except trio.TooSlowError:
            events.emit("run.not_asked", peer=contact.peer_id, reason="no answer in time")
        except DecodeError as bad:
            messenger.report(contact.peer_id, f"bad run specification: {bad}")

    async with trio.open_nursery() as nursery:
        for contact in contacts:
            nursery.start_soon(ask, contact)
    return found


async def fetch_shards(
    run: str,
    spec: RunSpec,
    region: str,
    members: MemberService,
    messenger: Messenger,
    offload: Offload,
    events: Events,
    start: Tensor | None = None,
) -> list[FetchedShard]:
    """Fetch every shard, several at once, each from the member that has least to send us: of equal ones its owner first.

    `start`, 1-D fp32, are parameters that the run may have started from: a shard that is still at them need not travel.

    Raises: JoinError, if nobody has a shard for FETCH_S.
    """
    plan = spec.plan()
    fetched: dict[int, FetchedShard] = {}
    limiter = trio.CapacityLimiter(MAX_CONCURRENT_FETCHES)
    under_way: Counter[PeerId] = Counter()

    async def fetch(shard: int) -> None:
        size = plan.size(shard)
        deadline = trio.current_time() + FETCH_S
        guess = None
        if start is not None:
            first, end = plan.bounds(shard)
            guess = start[first:end].clone()
        while shard not in fetched:
            holders = untried = _holders(run, region, shard, members)
            while untried:
                async with limiter:
                    peer = min(untried, key=under_way.__getitem__)
                    under_way[peer] += 1
                    try:
                        got = None if guess is None else await _at_start(run, shard, guess, peer, messenger, offload)
                        got = got or await _fetch_one(run, shard, size, peer, messenger, offload, events)
                    finally:
                        under_way[peer] -= 1
                if got is not None:
                    fetched[shard] = got
                    return
                untried = [other for other in untried if other != peer]
            if trio.current_time() >= deadline:
                raise JoinError(f"shard {shard} of run {spec.name!r}: none of {len(holders)} members could send it")
            with trio.move_on_after(1.0):
                await members.changed.wait()

    async with open_flat_nursery() as nursery:
        for shard in range(plan.n_shards):
            nursery.start_soon(fetch, shard)
    return [fetched[shard] for shard in range(plan.n_shards)]


def _holders(run: str, region: str, shard: int, members: MemberService) -> list[PeerId]:
    """Who holds a shard: its owner first, its standby, then the rest."""
    ready = [m.announcement for m in members.table.counted() if m.announcement.ready]
    weights = {PeerId(a.peer_id): a.weight for a in ready if a.region == region and a.weight > 0}
    owners = ownership(run, region, shard, weights)
    first = [peer for peer in (owners.owner, owners.standby) if peer is not None]
    return [*first, *(PeerId(a.peer_id) for a in ready if a.peer_id not in first)]


async def _at_start(
    run: str, shard: int, guess: Tensor, peer: PeerId, messenger: Messenger, offload: Offload
) -> FetchedShard | None:
    """The shard, if `peer` has it at version 0 and that is what we guess."""
    start_digest = await offload(digest, guess)
    question = GetUpdates(run, shard, 0, start_digest, log_only=True)
    try:
        with trio.fail_after(ASK_DEADLINE_S):
            reply = decode_reply(await messenger.request(peer, encode(question)))
    except (NetworkError, DecodeError, trio.TooSlowError):
        return None
    if isinstance(reply, Updates) and reply.at_version == 0 and not reply.updates:
        return FetchedShard(shard, 0, start_digest, (), guess, peer)
    return None


async def _fetch_one(
    run: str, shard: int, size: int, peer: PeerId, messenger: Messenger, offload: Offload, events: Events
) -> FetchedShard | None:
    try:
        with trio.fail_after(FETCH_DEADLINE_S):
            reply = decode_reply(await messenger.request(peer, encode(GetShard(run, shard)), lane=Lane.BULK))
        if not isinstance(reply, ShardState) or reply.shard != shard:
            raise DecodeError(f"asked for shard {shard}, got something else")
        reference = await offload(codec.get("fp32").decode, reply.payload, size)
        if await offload(digest, reference) != reply.digest:
            raise DecodeError(f"shard {shard} version {reply.version} does not have its digest")
    except (NetworkError, trio.TooSlowError) as failed:
        events.emit("shard.fetch_failed", shard=shard, peer=peer, reason=str(failed) or "no answer in time")
        return None
    except DecodeError as bad:
        messenger.report(peer, f"bad shard: {bad}")
        events.error("shard.fetch_refused", f"shard {shard}: {bad}", peer=peer)
        return None
    events.emit("shard.fetched", shard=shard, version=reply.version, peer=peer)
    return FetchedShard(shard, reply.version, reply.digest, reply.included, reference, peer)
