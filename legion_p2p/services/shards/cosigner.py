"""Signatures of other members on an owner's updates: the owner asks for them, a co-signer computes the update again.

    verify = "strict"   before the update is published; the signature travels with it
    verify = "late"     after that; a later update shows it, and WINDOW updates at most lack one (core/shard/provisional.py)

Who may sign, and what members believe, is decided in core/cosigning.py.
"""

from collections import defaultdict
from collections.abc import Callable

import msgspec
import trio

from legion_p2p.core.account import CountVerdict, header_digest
from legion_p2p.core.claims import TimedClaims
from legion_p2p.core.cosigning import N_ASKED, SignedVersions, check_cosignature, sign_cosignature
from legion_p2p.core.evidence import open_header
from legion_p2p.core.identity import PeerId
from legion_p2p.core.plan import MAX_SHARD_ELEMENTS
from legion_p2p.core.priority import Priority
from legion_p2p.core.wire import Cosign, Cosignature, Cosigned, SignedHeader, Update, UpdateHeader
from legion_p2p.errors import DecodeError, NetworkError, RemoteProtocolError
from legion_p2p.services.context import PeerContext
from legion_p2p.services.shards.replica import Replica
from legion_p2p.services.shards.states import TRANSFER_DEADLINE_S, ShardStates
from legion_p2p.services.shards.witness import StandbyWatch

GRACE_S = 5.0  # for a co-signer to answer, beside the time that fetching the inputs takes: a busy machine stalls for seconds
AGAIN_S = 0.5  # until the first is asked again, after none has answered


class CosignService:
    """Asks for signatures on this peer's updates, and gives them on others'."""

    def __init__(self, ctx: PeerContext, states: ShardStates, watch: StandbyWatch) -> None:
        self._identity = ctx.identity
        self._events = ctx.events
        self._messenger = ctx.messenger
        self._verify = ctx.spec.round.verify
        self._states = states
        self._watch = watch
        self._signed = SignedVersions()
        self._silent = TimedClaims()
        self._computing: defaultdict[int, trio.Lock] = defaultdict(trio.Lock)
        """Of each shard one update at a time: what is asked again waits for the answer, and an owner cannot ask for many at
        once."""
        self._got: defaultdict[int, dict[bytes, Cosignature]] = defaultdict(dict)
        """Of each shard the signatures that no update has shown yet, by the header that they are on."""
        self._gathering: set[int] = set()
        """Shards for whose versions this peer is asking."""

    # as the owner, before an update is published

    async def signed_by_another(self, replica: Replica, update: Update, n_input_bytes: int) -> Update | None:
        """The update as it may be published: in a strict run with a co-signature, if anybody may give one. None: this peer owns
        the shard no longer. The caller holds the lock, because the round must not end twice."""
        if self._verify != "strict":
            return update
        request = Cosign(self._states.run, replica.shard, update.header, update.signature)
        version = replica.chain.version + 1
        signed = await self._until_signed(replica, version, request, n_input_bytes, lambda: self._owns(replica))
        if signed is None:
            return update if self._owns(replica) and not self._states.cosigners(replica.shard) else None
        return msgspec.structs.replace(update, cosigner=signed.cosigner, cosignature=signed.signature)

    # as the owner, after that

    def published(self, replica: Replica) -> None:
        """This peer has made a version: ask for signatures on those that lack one."""
        nursery = self._states.nursery
        if self._verify == "late" and nursery is not None and replica.shard not in self._gathering:
            self._gathering.add(replica.shard)
            nursery.start_soon(self._gather, replica)

    async def may_make_another(self, replica: Replica) -> bool:
        """Wait until the next version may be made. False: this peer owns the shard no longer."""
        if self._verify != "late":
            return True
        states = self._states
        while replica.provisional.lacks(states.me, self._valid(replica)) is not None and states.cosigners(replica.shard):
            if not self._owns(replica):
                return False
            self.published(replica)
            with trio.move_on_after(AGAIN_S):
                await replica.notify.wait()
        return True

    def to_show(self, replica: Replica) -> tuple[Cosignature, ...]:
        """What the next update shows."""
        return tuple(self._valid(replica).values())

    def shown(self, replica: Replica, header: UpdateHeader) -> None:
        """The update is about to be published."""
        for one in () if header.account is None else header.account.cosigned:
            replica.provisional.sign(one.version)

    def _valid(self, replica: Replica) -> dict[int, Cosignature]:
        """The signatures on versions that are provisional, of members that may sign now: those that have left, others may not
        know any more."""
        got, order = self._got[replica.shard], self._states.cosigners(replica.shard)[:N_ASKED]
        headers = {one.version: replica.chain.provisional_header(one.version) for one in got.values()}
        valid = {header: one for header, one in got.items() if one.cosigner in order and _is_of(headers[one.version], header)}
        self._got[replica.shard] = valid
        return {one.version: one for one in valid.values()}

    async def _gather(self, replica: Replica) -> None:
        try:
            while (version := self._next_unsigned(replica)) is not None:
                made = replica.chain.provisional_header(version)
                assert made is not None
                request = Cosign(self._states.run, replica.shard, made.header, made.signature)
                inputs = replica.inputs.get(header_digest(made.header))
                n_bytes = 4 * replica.numel + (0 if inputs is None else sum(len(push.payload) for push in inputs.pushes))

                def is_wanted(version: int = version, header: bytes = made.header) -> bool:
                    return self._owns(replica) and _is_of(replica.chain.provisional_header(version), header)

                signed = await self._until_signed(replica, version, request, n_bytes, is_wanted)
                if signed is None:
                    return
                self._got[replica.shard][made.header] = signed
                replica.notify.notify()
        finally:
            self._gathering.discard(replica.shard)

    def _next_unsigned(self, replica: Replica) -> int | None:
        """The first version of this peer's own that lacks a signature."""
        if not self._owns(replica) or replica.provisional.maker != self._states.me:
            return None
        valid = self._valid(replica)
        versions = range(replica.provisional.final + 1, replica.chain.version + 1)
        return next((version for version in versions if version not in valid), None)

    async def _until_signed(
        self, replica: Replica, version: int, request: Cosign, n_input_bytes: int, is_wanted: Callable[[], bool]
    ) -> Cosignature | None:
        """Ask those that may sign, one after the other; None: nobody may, or `is_wanted` says no."""
        states = self._states
        within_s = GRACE_S + TRANSFER_DEADLINE_S * n_input_bytes / (4 * MAX_SHARD_ELEMENTS)
        while is_wanted() and states.nursery is not None:
            order = states.cosigners(replica.shard)
            if not order:
                return None
            silent = self._silent.named(trio.current_time())
            for peer in sorted(order[:N_ASKED], key=silent.__contains__):
                if not is_wanted():
                    return None
                signature = await self._ask(replica.shard, version, peer, request, within_s)
                if signature is not None:
                    return Cosignature(version, peer, signature)
            await trio.sleep(AGAIN_S)
        return None

    async def _ask(self, shard: int, version: int, peer: PeerId, request: Cosign, within_s: float) -> bytes | None:
        try:
            reply = await self._states.rpc.ask(peer, request, Priority.ROUND, within_s=within_s)
            check_cosignature(peer, request.header, reply.signature)
        except (NetworkError, DecodeError) as failed:
            if isinstance(failed, DecodeError):
                self._messenger.report(peer, f"bad co-signature: {failed}")
            self._events.emit("update.not_cosigned", shard=shard, version=version, peer=peer, reason=str(failed))
            self._silent.found(peer, trio.current_time())
            return None
        return reply.signature

    def _owns(self, replica: Replica) -> bool:
        return self._states.ownership(replica.shard).owner == self._states.me

    # as a co-signer

    async def on_cosign(self, peer: PeerId, message: Cosign) -> Cosigned:
        """Compute an owner's update again. Raises: LegionError, to be sent back."""
        header = open_header(message.header, message.signature)
        replica = self._states.replica(message.shard)
        named = (header.run, header.shard, header.owner)
        if self._verify == "none" or named != (self._states.run, message.shard, peer):
            raise DecodeError("nothing that its owner may have signed here")
        async with self._computing[message.shard]:
            return await self._sign(peer, replica, header, message)

    async def _sign(self, peer: PeerId, replica: Replica, header: UpdateHeader, message: Cosign) -> Cosigned:
        digest = header_digest(message.header)
        known = self._signed.signature(message.shard, digest)
        if known is not None:
            return Cosigned(known)
        self._must_be_asked(replica, header)
        found = await self._watch.check(replica, header, SignedHeader(message.header, message.signature))
        if found.finding is CountVerdict.WRONG:
            raise RemoteProtocolError(peer, f"an update of shard {header.shard} that is not what it was made of: {found.reason}")
        if not self._signed.may_sign(message.shard, header.version, trio.current_time()):
            raise NetworkError("this peer has signed another update of that version")  # while it computed this one
        signature = sign_cosignature(message.header, self._identity)
        self._signed.signed(message.shard, header.version, digest, signature, trio.current_time())
        return Cosigned(signature)

    def _must_be_asked(self, replica: Replica, header: UpdateHeader) -> None:
        """Raises: NetworkError, where this peer has no part in it; DecodeError."""
        states, chain = self._states, replica.chain
        if states.ownership(replica.shard).owner != header.owner or states.me not in states.cosigners(replica.shard):
            raise NetworkError(f"shard {replica.shard}: this peer signs nothing for {header.owner}, as far as it knows")
        if header.account is None:
            raise DecodeError("an update without an account of what it was made of")
        is_held = self._verify == "late" and chain.passed(header.version, header.digest)
        is_next = header.version > chain.version and not chain.passed_otherwise(header.version - 1, header.base_digest)
        if not (is_held or is_next):
            raise NetworkError(f"shard {replica.shard}: version {header.version} follows nothing that this peer holds")
        if not self._signed.may_sign(replica.shard, header.version, trio.current_time()):
            raise NetworkError("this peer has signed another update of that version")


def _is_of(held: SignedHeader | None, header: bytes) -> bool:
    return held is not None and held.header == header
