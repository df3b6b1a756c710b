"""Finding a run by its name or id."""

from collections.abc import Sequence
from dataclasses import dataclass

import trio

from legion_p2p.core.contact import Contact
from legion_p2p.core.identity import PeerId
from legion_p2p.core.run import RunSpec, SignedSpec, looks_like_run_id, name_key, open_spec, run_id, run_key
from legion_p2p.core.wire import GetSpec
from legion_p2p.errors import AmbiguousRunError, DecodeError, NetworkError, RefusedError, UnknownRunError
from legion_p2p.observe.events import Events
from legion_p2p.services.ports import Discovery, Messenger
from legion_p2p.services.rpc import Rpc

ASK_DEADLINE_S = 5.0
SEARCH_S = 15.0  # a run founded a moment ago takes seconds to show in the DHT; a name typed wrong should not take minutes
SEARCH_EVERY_S = 1.0
MAX_ASKED = 32  # contacts asked for a run


@dataclass(frozen=True)
class FoundRun:
    """A run, and the peers that said they are in it."""

    id: str
    signed: SignedSpec
    spec: RunSpec
    contacts: tuple[PeerId, ...]


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
    rpc = Rpc(messenger)

    async def ask(contact: Contact) -> None:
        peer = contact.peer_id
        messenger.add_addresses(peer, contact.addresses)
        try:
            reply = await rpc.ask(peer, GetSpec(wanted), within_s=ASK_DEADLINE_S)
            with rpc.checking(peer, "bad run specification"):
                signed = SignedSpec(reply.spec, reply.signature)
                spec = open_spec(signed)
                if wanted not in (spec.name, run_id(signed)):
                    raise DecodeError(f"asked for run {wanted!r}, got {spec.name!r}")
        except RefusedError:
            return  # a bootstrap node, or a member of another run: nothing to tell
        except NetworkError as failed:
            events.emit("run.not_asked", peer=peer, reason=str(failed))
            return
        found.append(FoundRun(run_id(signed), signed, spec, (peer,)))

    async with trio.open_nursery() as nursery:
        for contact in contacts:
            nursery.start_soon(ask, contact)
    return found
