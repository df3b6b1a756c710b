"""Which units this peer holds, and which member owns and stands by for each."""

from collections.abc import Mapping

import msgspec
import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.eligible import Eligible
from legion_p2p.core.identity import PeerId
from legion_p2p.core.learning_rate import learning_rate
from legion_p2p.core.member import Changed, Liveness
from legion_p2p.core.messages.sharding import UnitHeld, UnitPart
from legion_p2p.core.priority import Priority
from legion_p2p.core.rendezvous import Ownership
from legion_p2p.core.round import RoundConfig
from legion_p2p.core.sharding.cost import SentBits, mean_codec
from legion_p2p.core.sharding.matrices import Matrix, matrices_of
from legion_p2p.core.sharding.placement import place_units
from legion_p2p.core.sharding.plan import UnitPlan, plan_units
from legion_p2p.core.sharding.step import UnitSteps
from legion_p2p.core.target import RunTarget
from legion_p2p.core.wire import Encoded, Request
from legion_p2p.errors import DecodeError, RemoteProtocolError, UnreachableError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.membership.service import MemberService
from legion_p2p.services.rpc import R, Rpc
from legion_p2p.services.sharding.held import HeldUnit
from legion_p2p.tensor import codec
from legion_p2p.tensor.adamw import AdamWRates
from legion_p2p.tensor.codec import Codec

MAX_REGIONS = 64  # whose owners are remembered
FIRST_GRACE_S = 10.0  # a process that has just begun takes long for its first step
GRACE_PERIODS = 1.0  # of a step: what a member that is slower than the others costs them at most, and twice
MANY_SPREADS = 1e9  # so that only the periods count
NOTHING_HELD = UnitHeld("none", 0, 0)


def step_config(config: RoundConfig, quorum: float) -> RoundConfig:
    """When a step closes: members of a group are about equally fast, and what one of them computed in vain is a whole step."""
    return msgspec.structs.replace(
        config, quorum=quorum, first_grace_s=FIRST_GRACE_S, grace_spreads=MANY_SPREADS, max_grace_periods=GRACE_PERIODS
    )


class UnitTable:
    """The units of a run at one peer. Each region of the run holds all of them, and makes its own steps."""

    def __init__(self, ctx: PeerContext, members: MemberService) -> None:
        self.run = ctx.run
        self.me = ctx.me
        self.region = ctx.config.region
        self.members = members
        self.plan: UnitPlan = plan_units(ctx.spec.params)
        self.units = self.plan.units
        self.held: dict[int, HeldUnit] = {}
        self._weights_codec = codec.get(ctx.spec.round.update_codec)
        self.gradients_codec = codec.get(ctx.spec.round.push_codec)
        self.means_codec = codec.get(mean_codec(ctx.spec.round.push_codec))
        self.round = step_config(ctx.config.rounds, ctx.spec.round.waits_for())
        self.contested: set[int] = set()
        """Units that this peer owns, and another one may as well."""
        self.woken = Notify()
        """Wakes the task that looks whether units should move."""
        self._inner = ctx.spec.inner
        self._target = RunTarget(ctx.spec.target_steps)
        is_muon = ctx.spec.inner.optimizer == "muon"
        self._matrices = [matrices_of(unit, ctx.spec.params) if is_muon else () for unit in self.units]
        self._rpc = Rpc(ctx.messenger, members)
        self._sizes = [unit.numel for unit in self.units]
        self._placed: BoundedMap[str, tuple[Eligible, tuple[Ownership, ...]]] = BoundedMap(MAX_REGIONS)
        self._asked: dict[PeerId, set[trio.CancelScope]] = {}
        members.member_changed.add(self._on_member_changed)

    # what is held

    def unit_held(self, unit: int) -> HeldUnit | None:
        """Raises: DecodeError, if there is no such unit."""
        if unit >= len(self.units):
            raise DecodeError(f"unit {unit}, there are {len(self.units)}")
        return self.held.get(unit)

    def said_of(self, unit: int) -> UnitHeld:
        """What this peer says of a unit. Raises: DecodeError, if there is no such unit."""
        held = self.unit_held(unit)
        return NOTHING_HELD if held is None else held.as_said()

    def waits(self, unit: int, n_steps: int) -> bool:
        """This peer owns the unit, and it has made this many steps: the next one waits for gradients, and is not lost."""
        held = self.held.get(unit)
        return held is not None and held.is_owned and held.version >= n_steps

    def contest(self, unit: int) -> None:
        """Another peer may own it as well; the mover finds out soon which of the two keeps it."""
        self.contested.add(unit)
        self.woken.notify()

    def drop(self, held: HeldUnit) -> None:
        """Hold it no longer. Those that wait for it are told who owns it."""
        held.role = "none"
        held.arrived.clear()
        self.held.pop(held.index, None)
        held.notify.notify()

    def begin_at(self, step: int) -> None:
        """All units that are held here have made this many steps. Before the first of this peer."""
        for held in self.held.values():
            held.steps = UnitSteps(self.round, step)

    def n_owned(self) -> int:
        return sum(held.role == "owner" for held in self.held.values())

    def rates(self, version: int) -> AdamWRates:
        """Those of the step after `version` others. They follow from it alone, so that a standby computes the same."""
        inner, done = self._inner, self._target.done(version, 0)
        return AdamWRates(learning_rate(inner, version, version, done), inner.beta1, inner.beta2, inner.weight_decay)

    def matrices(self, unit: int) -> tuple[Matrix, ...]:
        """What Muon turns of a unit; nothing, where AdamW makes all steps."""
        return self._matrices[unit]

    @property
    def has_feedback(self) -> bool:
        """Members keep what compression leaves out of their gradients."""
        return self.gradients_codec is not self.means_codec

    @property
    def sent_bits(self) -> SentBits:
        """For each parameter that travels."""
        codecs = self._weights_codec, self.gradients_codec, self.means_codec
        return SentBits(*(one.bits_per_element for one in codecs))

    def codec_of(self, part: UnitPart, *, exact: bool) -> Codec:
        """What a part of a unit travels as. Moments span many orders of magnitude: no blockwise codec has them all."""
        if exact:
            return codec.get("fp32")
        return self._weights_codec if part == "weights" else codec.get("bf16")

    # who owns it

    def ownership(self, unit: int) -> Ownership:
        """In this region, by the members that are known now."""
        return self.ownership_among(self.region, unit, self.members.roster.eligible(self.region))

    def ownership_among(self, region: str, unit: int, members: Eligible) -> Ownership:
        """In a region that has these members."""
        placed = self._placed.get(region)
        if placed is None or placed[0] is not members:
            owners = place_units(self.run, region, self._sizes, {**members.reserve, **members.weights})
            placed = self._placed[region] = members, owners
        self._placed.touch(region)
        return placed[1][unit]

    def is_in_place(self) -> bool:
        """Every unit that this peer holds is where it belongs."""
        for held in self.held.values():
            should = self.ownership(held.index)
            if held.role == "owner" and (should.owner not in (None, self.me) or should.standby not in (None, held.standby)):
                return False
            if held.role == "standby" and self.me not in (should.owner, should.standby):
                return False
        return True

    def owner_hint(self, unit: int) -> PeerId | None:
        """Which member owns it, as far as this peer knows."""
        held = self.held.get(unit)
        if held is not None and held.role == "owner":
            return self.me
        return held.owner if held is not None and held.owner is not None else self.ownership(unit).owner

    def lives(self, peer: PeerId) -> bool:
        if peer == self.me:
            return True
        member = self.members.table.get(peer)
        return member is not None and member.liveness is not Liveness.DEAD

    def living_others(self) -> list[PeerId]:
        """The others of this region."""
        return [member.peer_id for member in self.members.roster.in_region()]

    def training_since(self) -> Mapping[PeerId, int]:
        """The members of this region that train, and from which step on."""
        everyone = self.members.roster.everyone()
        return {PeerId(a.peer_id): a.run_step for a in everyone if a.training and a.region == self.region}

    def announced_step(self) -> int:
        """The step that this region has come to, by what its members announce and this peer holds: others make their own."""
        announced = [member.announcement.run_step for member in self.members.roster.in_region()]
        return max([*announced, *(held.version for held in self.held.values())], default=0)

    def is_here(self, peer: PeerId) -> bool:
        """It is a member of this region."""
        member = self.members.table.get(peer)
        return peer == self.me or (member is not None and member.announcement.region == self.region)

    def must_be_here(self, peer: PeerId) -> None:
        """Only members of this region have a part in its steps. Raises: RemoteProtocolError."""
        if not self.is_here(peer):
            known = f"not a known member of region {self.region!r} of this run"
            raise RemoteProtocolError(peer, f"{known}: send an announcement first")

    # asking

    async def ask(
        self, peer: PeerId, request: Request[R] | Encoded[R], priority: Priority = Priority.CONTROL, within_s: float = 60.0
    ) -> R:
        """The reply of a member; an error as soon as it counts as dead, because it may keep its connections and never answer.

        Raises: NetworkError.
        """
        if not self.lives(peer):
            raise UnreachableError(peer, "it is gone")
        scopes = self._asked.setdefault(peer, set())
        scope = trio.CancelScope()
        scopes.add(scope)
        try:
            with scope:
                return await self._rpc.ask(peer, request, priority, within_s=within_s)
        finally:
            scopes.discard(scope)
            if not scopes:
                self._asked.pop(peer, None)
        raise UnreachableError(peer, "it is gone")

    async def ask_all(self, request: Request[R], within_s: float) -> dict[PeerId, R]:
        """The replies of all living members that answer."""
        return await self._rpc.ask_all(self.living_others(), request, within_s=within_s)

    def _on_member_changed(self, change: Changed) -> None:
        if change.after in (None, Liveness.DEAD):
            for scope in tuple(self._asked.get(change.peer_id, ())):
                scope.cancel()
        self.woken.notify()
