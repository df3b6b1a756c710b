"""Moving units to where they belong, when members come and go.

    this peer owns, another should  -> it becomes the standby, then the owner; nothing is lost, because no step is made meanwhile
    this peer owns, no standby      -> the one that should stand by is given all that the owner has
    this peer stands by, owner gone -> take over (core/sharding/takeover.py)
    two own it                      -> the one with the worse claim lets go

A unit that nobody holds any more is lost: its owner and its standby died together.
"""

from collections.abc import Callable
from contextlib import suppress

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.base import MAX_PAYLOAD_BYTES
from legion_p2p.core.messages.sharding import AppointUnit, AskUnit, PutUnit, UnitHeld, UnitRole
from legion_p2p.core.priority import Priority
from legion_p2p.core.sharding.step import UnitSteps
from legion_p2p.core.sharding.takeover import owner_that_prevails, takes_over
from legion_p2p.errors import DecodeError, NetworkError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.rpc import Scope
from legion_p2p.services.sharding.held import STATE_COPIES, STEPS_BYTES, HeldUnit, read_state
from legion_p2p.services.sharding.table import UnitTable
from legion_p2p.tensor.flatten import digest

LOOK_S = 2.0  # between two looks, where nothing happens
ASK_S = 2.0
PUT_S = 60.0  # one part of a unit, which has at most 32 MiB: 5 Mbit/s suffice
MAX_INCOMING = 8  # units that arrive at the same time, each of at most 96 MiB


class UnitMover:
    """One task that looks after where the units of this peer should be, and what other peers' such tasks ask of it."""

    def __init__(self, ctx: PeerContext, table: UnitTable) -> None:
        self._events = ctx.events
        self._offload = ctx.offload
        self._table = table
        self._incoming: dict[int, tuple[tuple[PeerId, int, int], list[memoryview | bytes]]] = {}
        self.start_owning: Callable[[HeldUnit], None] = lambda held: None
        """Begin to make the steps of a unit: set by the service."""

    def answer(self, scope: Scope) -> None:
        scope.on(PutUnit, self.on_put)
        scope.on(AppointUnit, self.on_appoint)

    async def run_forever(self) -> None:
        while True:
            await self.look()
            with trio.move_on_after(LOOK_S):
                await self._table.woken.wait()

    async def look(self) -> None:
        """Look at every unit that this peer holds, and move those that should move now."""
        for held in list(self._table.held.values()):
            if held.role == "owner" and held.index in self._table.contested:
                self._table.contested.discard(held.index)
                await self._settle(held)
            if held.role == "owner":
                await self._look_at_owned(held)
            elif held.role == "standby":
                await self._look_at_standby(held)

    def contest_all(self) -> None:
        """This peer was away: others may have taken over what it owned."""
        for held in self._table.held.values():
            if held.role == "owner":
                self._table.contest(held.index)

    # as the owner

    async def _look_at_owned(self, held: HeldUnit) -> None:
        should = self._table.ownership(held.index)
        if held.standby is not None and not self._table.lives(held.standby):
            held.standby = None
        if should.owner not in (None, self._table.me):
            assert should.owner is not None
            if await self._have_stand_by(held, should.owner):
                await self._appoint(held, should.owner, should.standby)
        elif should.standby is not None:
            await self._have_stand_by(held, should.standby)

    async def _have_stand_by(self, held: HeldUnit, peer: PeerId) -> bool:
        """`peer` holds all that this owner does, and makes the same steps from now on. False, where it could not be reached."""
        if held.standby == peer:
            return True
        before = held.standby
        with trio.move_on_after(LOOK_S):
            while held.role == "owner" and held.closed is not None:
                await held.notify.wait()
        async with held.lock:  # no step is made meanwhile
            if held.role != "owner" or held.closed is not None:
                return False
            try:
                theirs = await self._table.ask(peer, AskUnit(self._table.run, held.index), within_s=ASK_S)
                if theirs.role == "owner":
                    self._table.contested.add(held.index)
                    return False
                if (theirs.version, theirs.digest) == (held.version, held.digest) and theirs.role == "standby":
                    theirs = await self._say(held, peer, "standby", held.term)
                else:
                    theirs = await self._put(held, peer)
            except NetworkError as failed:
                self._events.emit("unit.not_moved", unit=held.index, peer=peer, reason=str(failed))
                return False
            if theirs.role != "standby" or theirs.version != held.version:
                return False
            held.standby = peer
        if before is not None:
            with suppress(NetworkError):  # it lets go once it sees that it is behind
                await self._say(held, before, "none", held.term)
        return True

    async def _put(self, held: HeldUnit, peer: PeerId) -> UnitHeld:
        """Raises: NetworkError."""
        state = memoryview(await self._offload(held.state))
        parts = [state[at : at + MAX_PAYLOAD_BYTES] for at in range(0, len(state), MAX_PAYLOAD_BYTES)]
        included = tuple(sorted(held.steps.included))
        theirs = held.as_said()
        for i, part in enumerate(parts):
            message = PutUnit(self._table.run, held.index, held.term, held.version, included, i, len(parts), part)
            theirs = await self._table.ask(peer, message, Priority.ROUND, PUT_S)
        return theirs

    async def _say(self, held: HeldUnit, peer: PeerId, role: UnitRole, term: int) -> UnitHeld:
        """Raises: NetworkError."""
        message = AppointUnit(self._table.run, held.index, term, held.version, role)
        return await self._table.ask(peer, message, within_s=ASK_S)

    async def _appoint(self, held: HeldUnit, peer: PeerId, standby: PeerId | None) -> None:
        """The standby `peer` owns the unit from now on."""
        async with held.lock:
            if held.role != "owner" or held.standby != peer or held.closed is not None:
                return
            if held.is_move_due and self._table.training_since():  # the next step takes it to the standby
                return
            try:
                theirs = await self._say(held, peer, "owner", held.term + 1)
            except NetworkError as failed:  # it may own it now: who is right is settled at the next look
                self._table.contested.add(held.index)
                self._events.emit("unit.not_moved", unit=held.index, peer=peer, reason=str(failed))
                return
            if theirs.role != "owner":
                held.standby = None
                return
            self._events.emit("unit.handed_over", unit=held.index, version=held.version, peer=peer)
            self._give_up(held, peer, theirs.term, stands_by=standby == self._table.me)

    def _give_up(self, held: HeldUnit, owner: PeerId, term: int, *, stands_by: bool) -> None:
        """`owner` owns it now: members that wait here are sent there."""
        held.owner, held.term, held.standby = owner, term, None
        held.to_subtract, held.is_move_due, held.closed = None, False, None
        held.arrived.clear()
        if stands_by:
            held.role = "standby"
            held.steps = UnitSteps(self._table.round, held.version, held.steps.included)
            held.notify.notify()
        else:
            self._table.drop(held)

    async def _settle(self, held: HeldUnit) -> None:
        """Another peer may own the unit as well: the worse claim lets go."""
        others = await self._table.ask_all(AskUnit(self._table.run, held.index), ASK_S)
        async with held.lock:
            right = owner_that_prevails(self._table.me, held.as_said(), others)
            if held.role == "owner" and right != self._table.me:
                self._events.emit("unit.let_go", unit=held.index, version=held.version, peer=right)
                self._give_up(held, right, others[right].term, stands_by=False)

    # as the standby

    async def _look_at_standby(self, held: HeldUnit) -> None:
        should = self._table.ownership(held.index)
        if held.owner is not None and self._table.lives(held.owner):
            if self._table.me not in (should.owner, should.standby):
                await self._drop_if_replaced(held, held.owner)
            return
        others = await self._table.ask_all(AskUnit(self._table.run, held.index), ASK_S)
        async with held.lock:
            if held.role != "standby" or (held.owner is not None and self._table.lives(held.owner)):
                return
            owners = [peer for peer, theirs in others.items() if theirs.role == "owner"]
            if owners:
                held.owner = owners[0]
            elif takes_over(self._table.me, held.as_said(), others):
                term = 1 + max([held.term, *(theirs.term for theirs in others.values())])
                self._events.emit("unit.taken_over", unit=held.index, version=held.version, peer=held.owner or "")
                self._become_owner(held, term)

    async def _drop_if_replaced(self, held: HeldUnit, owner: PeerId) -> None:
        """Hold it no longer, if another peer stands by for the owner."""
        try:
            theirs = await self._table.ask(owner, AskUnit(self._table.run, held.index), within_s=ASK_S)
        except NetworkError:
            return
        if held.role != "standby":
            return
        if theirs.role == "owner" and theirs.standby not in ("", self._table.me):
            self._table.drop(held)
        elif theirs.role != "owner":  # it has handed the unit over: to whom, others know
            others = await self._table.ask_all(AskUnit(self._table.run, held.index), ASK_S)
            owners = [peer for peer, of_peer in others.items() if of_peer.role == "owner"]
            held.owner = owners[0] if owners else held.owner

    def _become_owner(self, held: HeldUnit, term: int) -> None:
        held.role, held.term, held.owner, held.standby = "owner", term, None, None
        held.steps.is_closed = held.is_closed_for(held.version)
        held.notify.notify()
        self.start_owning(held)
        self._table.woken.notify()

    # what owners ask

    async def on_put(self, peer: PeerId, message: PutUnit) -> UnitHeld:
        """A part of a unit that this peer is to stand by for. Raises: DecodeError."""
        self._table.must_be_here(peer)
        held = self._table.unit_held(message.unit)
        if held is not None and (held.role == "owner" or held.term > message.term):
            return held.as_said()
        state = self._assembled(peer, message)
        if state is None:
            return self._table.said_of(message.unit)
        unit = self._table.units[message.unit]
        weights, moments = await self._offload(read_state, state, unit.numel)
        made = await self._offload(digest, weights)
        held = self._table.unit_held(message.unit)  # it may have changed meanwhile
        if held is None or (held.role != "owner" and held.term <= message.term):
            if held is not None:
                self._table.drop(held)
            steps = UnitSteps(self._table.round, message.version, map(PeerId, message.included))
            fresh = HeldUnit(unit, weights, "standby", message.term, steps, moments, made, owner=peer)
            self._table.held[message.unit] = fresh
        return self._table.said_of(message.unit)

    def _assembled(self, peer: PeerId, message: PutUnit) -> bytes | None:
        """All parts of a unit, once they are here. Raises: DecodeError, if they are too long; NetworkError, if one is missing."""
        key = (peer, message.term, message.version)
        if message.part == 0:
            self._incoming.pop(message.unit, None)
            if len(self._incoming) >= MAX_INCOMING:
                self._incoming.pop(next(iter(self._incoming)))
            self._incoming[message.unit] = key, []
        known, parts = self._incoming.get(message.unit, ((peer, -1, -1), []))
        if known != key or len(parts) != message.part:
            raise NetworkError(f"part {message.part} of unit {message.unit} does not follow the one before: begin again")
        parts.append(message.payload)
        most = STEPS_BYTES + STATE_COPIES * 4 * self._table.units[message.unit].numel
        if sum(map(len, parts)) > most:
            self._incoming.pop(message.unit)
            raise DecodeError(f"unit {message.unit} of more than {most} bytes")
        if len(parts) < message.n_parts:
            return None
        self._incoming.pop(message.unit)
        return b"".join(parts)

    async def on_appoint(self, peer: PeerId, message: AppointUnit) -> UnitHeld:
        self._table.must_be_here(peer)
        held = self._table.unit_held(message.unit)
        if held is None:
            return self._table.said_of(message.unit)
        async with held.lock:
            if held.role != "standby" or message.term < held.term:
                return held.as_said()
            match message.role:
                case "owner":
                    if message.term > held.term and message.version == held.version:
                        self._become_owner(held, message.term)
                case "standby":
                    held.owner, held.term = peer, message.term
                case "none":
                    self._table.drop(held)
        return held.as_said()
