"""Finding a run by its name or id.

every SEARCH_EVERY_S, for `search_s` -> the DHT names peers that provide the key of the name or id; these, and all peers that this
                                        one is connected to, are asked for the run's specification
a specification comes that is signed and carries the name or id -> the run is found
several runs have the name                                      -> the one that this peer was in before; else an error: the
creator
                                                                   or the id has to be given, since anybody can take the name
a peer sends anything else                                      -> reported
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio

from legion_p2p.concurrency.nurseries import open_flat_nursery
from legion_p2p.core.contact import Contact
from legion_p2p.core.identity import PeerId
from legion_p2p.core.run import RunSpec, SignedSpec, looks_like_run_id, name_key, open_spec, run_id, run_key
from legion_p2p.core.wire import GetRuns, GetSpec, RunSummary
from legion_p2p.errors import AmbiguousRunError, DecodeError, NetworkError, RefusedError, UnknownRunError
from legion_p2p.observe.events import Events
from legion_p2p.services.ports import Discovery, Messenger
from legion_p2p.services.rpc import Rpc

ASK_DEADLINE_S = 5.0
SEARCH_S = 15.0  # a run created a moment ago takes seconds to show in the DHT; a name typed wrong should not take minutes
SEARCH_EVERY_S = 1.0
WRONG_NAME_S = 2.0  # after which others are asked which runs they are in
TELL_DEADLINE_S = 1.0  # for that answer, which every member has at hand
REST_S = 2.0  # for other contacts, once one has told of the run: a live one mostly needs half of that
MAX_ASKED = 32  # contacts asked for a run


@dataclass(frozen=True)
class FoundRun:
    """A run, and the peers that said they are in it."""

    id: str
    signed: SignedSpec
    spec: RunSpec
    contacts: tuple[PeerId, ...]


async def find_run(
    wanted: str, messenger: Messenger, discovery: Discovery, events: Events, *, search_s: float = SEARCH_S, preferred: str = ""
) -> FoundRun:
    """Find a run by its name, NAME@CREATOR or id. `preferred`: the id of one that this peer was in before.

    Where others tell of their runs and none of them has the name, it is a wrong name, and is not searched for long.

    Raises: UnknownRunError after `search_s`, or sooner, with the names that are known; AmbiguousRunError, if several runs have
    this name.
    """
    found: FoundRun | None = None
    known: dict[str, RunSummary] = {}
    async with open_flat_nursery() as nursery:

        async def doubt() -> None:
            await trio.sleep(WRONG_NAME_S)
            known.update(await known_runs(messenger))
            if known and not any(wanted.partition("@")[0] in (run.name, run.id) for run in known.values()):
                nursery.cancel_scope.cancel()

        if search_s <= SEARCH_S:  # a caller that waits longer waits for somebody to create it
            nursery.start_soon(doubt)
        found = await _search(wanted, messenger, discovery, events, search_s, preferred)
        nursery.cancel_scope.cancel()
    if found is None:
        known = known or await known_runs(messenger)
        names = sorted({run.name for run in known.values()})
        unreachable = {str(peer): tried for peer, tried in discovery.unreachable(search_key(wanted)).items()}
        raise UnknownRunError(wanted, len(messenger.connected()), names, unreachable=unreachable)
    return found


async def known_runs(messenger: Messenger) -> dict[str, RunSummary]:
    """The runs that the peers we are connected to are in, by id; of each the largest number of members that one tells."""
    found: dict[str, RunSummary] = {}
    rpc = Rpc(messenger)

    async def ask(peer: PeerId) -> None:
        try:
            reply = await rpc.ask(peer, GetRuns(), within_s=TELL_DEADLINE_S)
        except NetworkError:  # a bootstrap node, or a peer of an earlier version, among others
            return
        for run in reply.runs:
            if run.id not in found or found[run.id].n_members < run.n_members:
                found[run.id] = run

    async with trio.open_nursery() as nursery:
        for peer in sorted(messenger.connected())[:MAX_ASKED]:
            nursery.start_soon(ask, peer)
    return dict(_largest_first(found.values()))


def _largest_first(runs: Iterable[RunSummary]) -> list[tuple[str, RunSummary]]:
    return [(run.id, run) for run in sorted(runs, key=lambda run: (-run.n_members, run.name, run.id))]


async def _search(
    wanted: str, messenger: Messenger, discovery: Discovery, events: Events, search_s: float, preferred: str
) -> FoundRun | None:
    """The run; None where nobody knows it after `search_s`. Raises: AmbiguousRunError."""
    deadline = trio.current_time() + search_s
    name, _, creator = wanted.partition("@")
    key = search_key(wanted)
    while True:
        contacts = {contact.peer_id: contact for contact in await _look_up(discovery, key)}
        for peer in messenger.connected():
            contacts.setdefault(peer, Contact(peer))
        found = await _ask_all(name, list(contacts.values())[:MAX_ASKED], messenger, events)
        found = [run for run in found if creator in ("", run.spec.creator)]
        if found:
            return one_of(name, found, preferred)
        if trio.current_time() >= deadline:
            return None
        await trio.sleep(SEARCH_EVERY_S)


def search_key(wanted: str) -> str:
    """Under which the members of a run are found."""
    name, _, _ = wanted.partition("@")
    return run_key(name) if looks_like_run_id(name) else name_key(name)


def one_of(wanted: str, found: Sequence[FoundRun], known: str = "") -> FoundRun:
    """The run that all contacts told of, with all of them; of several the one with the id `known`.

    Raises: AmbiguousRunError, if they told of several.
    """
    creators = {run.id: run.spec.creator for run in found}
    meant = known if known in creators else next(iter(creators))
    if len(creators) > 1 and meant != known:
        raise AmbiguousRunError(wanted, dict(sorted(creators.items())))
    runs = [run for run in found if run.id == meant]
    return FoundRun(meant, runs[0].signed, runs[0].spec, tuple(peer for run in runs for peer in run.contacts))


def opened(wanted: str, signed: SignedSpec, peer: PeerId) -> FoundRun:
    """The run of a specification that `peer` sent. Raises: DecodeError, if it is not signed, or of another run."""
    spec = open_spec(signed)
    if wanted not in (spec.name, run_id(signed)):
        raise DecodeError(f"asked for run {wanted!r}, got {spec.name!r}")
    return FoundRun(run_id(signed), signed, spec, (peer,))


async def _look_up(discovery: Discovery, key: str) -> Sequence[Contact]:
    with trio.move_on_after(ASK_DEADLINE_S):
        return await discovery.find(key)
    return ()


async def _ask_all(wanted: str, contacts: Sequence[Contact], messenger: Messenger, events: Events) -> list[FoundRun]:
    found: list[FoundRun] = []
    rpc = Rpc(messenger)

    async def ask(contact: Contact) -> None:
        messenger.add_addresses(contact.peer_id, contact.addresses)
        try:
            reply = await rpc.ask(contact.peer_id, GetSpec(wanted), within_s=ASK_DEADLINE_S)
            with rpc.checking(contact.peer_id, "bad run specification"):
                found.append(opened(wanted, SignedSpec(reply.spec, reply.signature), contact.peer_id))
                nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, trio.current_time() + REST_S)
        except RefusedError:
            return  # a bootstrap node, or a member of another run: it has nothing to say
        except NetworkError as failed:
            events.emit("run.not_asked", peer=contact.peer_id, reason=str(failed))

    async with trio.open_nursery() as nursery:
        for contact in contacts:
            nursery.start_soon(ask, contact)
    return found
