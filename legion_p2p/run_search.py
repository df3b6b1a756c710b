"""Which run a peer enters: one of its store, one that a peer in reach has, or a new one."""

from typing import TYPE_CHECKING

import trio

from legion_p2p.config import Peer, Store
from legion_p2p.core.run import run_id
from legion_p2p.errors import (
    HOW_TO_CREATE,
    NoContactError,
    RunExistsError,
    UnknownRunError,
    UsageError,
)
from legion_p2p.observe.events import PHASE, Events
from legion_p2p.services.ports import Offload
from legion_p2p.services.run.joiner import SHORT_SEARCH_S, RunCreation
from legion_p2p.services.run.run_discovery import find_run

if TYPE_CHECKING:
    from legion_p2p.net.network import Libp2pNetwork
    from legion_p2p.store.archive import Archive


LAN_SEARCH_S = 8.0  # for a first neighbour: mDNS asks after 0, 1 and 3 s, and the neighbour is dialed


async def choose_run(
    run: str | RunCreation,
    network: "Libp2pNetwork",
    peer: Peer,
    archive: "Archive | None",
    disk: Offload,
    events: Events,
    *,
    create_or_join: bool,
) -> str | RunCreation:
    """Connect to the initial peers, and say what to enter: `run`, or the id of a run that is there instead of creating one.

    Raises: NoContactError; RunExistsError; UsageError, where nobody could be asked.
    """
    name = run if isinstance(run, str) else run.spec.name
    stored = await disk(_stored_id, archive, name) if archive is not None else ""
    if isinstance(run, RunCreation) and stored and not create_or_join:
        raise RunExistsError(
            f"the store {peer.store.path} holds a run named {name!r} already, with the id {stored}: "
            f"--run {name} goes on with it, from Python join({name!r}); or choose another name, or another store"
        )
    if network.dial_reports:
        events.emit(PHASE, text=f"connecting to {len(network.dial_reports)} initial peers")
    is_alone = not (stored or network.dial_reports or isinstance(run, RunCreation))
    if is_alone and not await _meets_a_neighbour(network, events):
        losses = await disk(archive.losses, name.partition("@")[0]) if archive is not None else ""
        raise UsageError(_nobody_to_ask(name, peer.store, losses, peer.lan))
    await _connect(network, bool(stored), events)
    if isinstance(run, RunCreation) and create_or_join:
        return stored or await _living_id(network, name, events) or run
    return run


def _stored_id(archive: "Archive", run: str) -> str:
    """The id of the run of this name or id of which the store has the newest checkpoint; empty where it has none."""
    return next((run_id(stored.signed) for stored in archive.find(run.partition("@")[0])), "")


async def _living_id(network: "Libp2pNetwork", name: str, events: Events) -> str:
    """The id of the run of this name that somebody in reach has; empty where nobody has."""
    if not network.messenger.connected():
        return ""
    try:
        found = await find_run(name, network.messenger, network.discovery, events, search_s=SHORT_SEARCH_S)
    except UnknownRunError:
        return ""
    return found.id


async def _meets_a_neighbour(network: "Libp2pNetwork", events: Events) -> bool:
    """Whether there is a peer on this LAN through which a run may be found."""
    if network.lan is None:
        return False
    events.emit(PHASE, text="looking for peers on this LAN")
    with trio.move_on_after(LAN_SEARCH_S):
        await network.lan.met.wait()
    return network.lan.met.is_set()


def _nobody_to_ask(name: str, store: Store, losses: str, lan: bool) -> str:
    problem = f"no initial peers are given to find the run {name!r} through"
    if lan:
        problem += f", and no peer on this LAN was found in {LAN_SEARCH_S:.0f} s"
    if losses:
        return f"{problem}, and {losses}"
    where = f", and the store {store.path} holds no checkpoint of it" if store.path else ""
    return f"{problem}{where}; {HOW_TO_CREATE}"


async def _connect(network: "Libp2pNetwork", is_stored: bool, events: Events) -> None:
    """Connect to the initial peers; where none answers, a stored run is enough. Raises: NoContactError."""
    try:
        await network.join()
    except NoContactError as nobody:
        if not is_stored:
            raise
        events.emit("run.nobody_answers", text=str(nobody))
