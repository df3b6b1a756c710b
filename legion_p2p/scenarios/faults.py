"""Faults of a plan, carried out: which peers one hits is drawn when it comes, because owners move."""

import random
from collections.abc import Callable

import trio

from legion_p2p.errors import DiskFullError
from legion_p2p.scenarios.actors import Actor, Cast, slower
from legion_p2p.scenarios.scenario import OWNERSHIP, Fault, is_meant
from legion_p2p.sim.swarm_peer import SimPeer

WRITES = ("append", "append_whole", "put_all", "put_base", "publish")
"""What an archive does that takes up disk space."""

Undo = Callable[[], None]


async def carry_out(cast: Cast, faults: tuple[Fault, ...], nursery: trio.Nursery) -> None:
    """Each fault at its moment, for as long as it lasts."""
    for fault in faults:
        await trio.sleep_until(fault.at_s or 0.0)
        victims = victims_of(cast, fault)
        if not victims:
            continue
        cast.record.fault(fault.kind, [actor.name for actor in victims], fault.for_s)
        if fault.kind == "partition":
            nursery.start_soon(_cut_off, cast, fault, victims)
            continue
        for actor in victims:
            nursery.start_soon(_strike, cast, fault, actor)


def victims_of(cast: Cast, fault: Fault) -> list[Actor]:
    """The peers that it hits, of those that are in the run now."""
    rng = random.Random(fault.draw)
    there = cast.in_run()
    if fault.who in OWNERSHIP:
        return _by_ownership(cast, there, fault.who, rng)
    if fault.who != "random":
        there = [actor for actor in there if is_meant(fault.who, actor.name)]
    if fault.kind == "disk-full":
        there = [actor for actor in there if actor.plan.group.stores]
    wanted = max(1, round(fault.share * len(there))) if fault.share else fault.count
    rng.shuffle(there)
    return there[:wanted]


def _by_ownership(cast: Cast, there: list[Actor], who: str, rng: random.Random) -> list[Actor]:
    witness = next((actor for actor in there if not actor.is_apart), None)
    if witness is None or witness.peer is None:
        return []
    engine = witness.peer.engine
    owners = engine.shards.ownership(rng.randrange(engine.plan.n_shards))
    named = {"owner": (owners.owner,), "standby": (owners.standby,), "both": (owners.owner, owners.standby)}[who]
    return [actor for peer in named if peer is not None and (actor := cast.by_id.get(peer)) is not None and actor.is_in_run]


async def _cut_off(cast: Cast, fault: Fault, victims: list[Actor]) -> None:
    """They reach each other, and nobody else."""
    world = cast.swarm.world
    for actor in victims:
        actor.held["partition"] += 1
    wall = world.partition([actor.peer.id for actor in victims if actor.peer is not None])
    await trio.sleep(fault.for_s)
    world.heal(wall)
    for actor in victims:
        actor.held["partition"] -= 1


async def _strike(cast: Cast, fault: Fault, actor: Actor) -> None:
    peer = actor.peer
    if peer is None:
        return
    if fault.kind == "kill":
        session = actor.session
        await cast.end(actor, leaves=False)
        if fault.for_s:
            await trio.sleep(fault.for_s)
            if session is not None and actor.session is session:
                await cast.begin(actor)
        return
    undo = _inflict(cast, fault, actor, peer)
    await trio.sleep(fault.for_s)
    if actor.peer is peer:
        undo()


def _inflict(cast: Cast, fault: Fault, actor: Actor, peer: SimPeer) -> Undo:
    world, kind = cast.swarm.world, fault.kind
    actor.held[kind] += 1
    if kind == "suspend":
        world.freeze(peer.id)
        peer.hung = True
    elif kind == "slow":
        peer.step_s *= fault.factor
    elif kind == "hang":
        peer.hung = True
    elif kind == "clock":
        peer.clock_off_s += fault.offset_s
    elif kind == "disk-full":
        fill_disk(peer)
    elif kind == "link":
        world.rates.relink(peer.id, slower(cast.link_of(actor), fault.factor))

    def undo() -> None:
        actor.held[kind] -= 1
        if kind == "slow":
            peer.step_s /= fault.factor
        elif kind == "clock":
            peer.clock_off_s -= fault.offset_s
        elif not actor.held[kind]:
            if kind == "suspend":
                world.thaw(peer.id)
            elif kind == "disk-full":
                free_disk(peer)
            elif kind == "link":
                world.rates.relink(peer.id, cast.link_of(actor))
            if not (actor.held["suspend"] or actor.held["hang"]):
                peer.hung = False

    return undo


def fill_disk(peer: SimPeer) -> None:
    """From now on nothing more can be written to its checkpoints."""
    archive = peer.archive
    if archive is None:
        return

    def full(*_: object, **__: object) -> None:
        raise DiskFullError(f"no space left on the disk of {archive.store.path}")

    for name in WRITES:
        setattr(archive, name, full)


def free_disk(peer: SimPeer) -> None:
    """There is room again."""
    for name in WRITES:
        peer.archive.__dict__.pop(name, None)
