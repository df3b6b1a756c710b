"""Signatures of other members on an update before it is published: the owner asks for one, a co-signer computes the update again.

Who may sign, and what members believe, is decided in core/cosigning.py. Only in a run with `verify = "strict"`.
"""

from collections import defaultdict

import msgspec
import trio

from legion_p2p.core.account import CountVerdict, header_digest
from legion_p2p.core.claims import TimedClaims
from legion_p2p.core.cosigning import N_ASKED, SignedVersions, check_cosignature, sign_cosignature
from legion_p2p.core.evidence import open_header
from legion_p2p.core.identity import PeerId
from legion_p2p.core.plan import MAX_SHARD_ELEMENTS
from legion_p2p.core.priority import Priority
from legion_p2p.core.wire import Cosign, Cosigned, SignedHeader, Update, UpdateHeader
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
        self._is_strict = ctx.spec.round.verify == "strict"
        self._states = states
        self._watch = watch
        self._signed = SignedVersions()
        self._silent = TimedClaims()
        self._computing: defaultdict[int, trio.Lock] = defaultdict(trio.Lock)
        """Of each shard one update at a time: what is asked again waits for the answer, and an owner cannot ask for many at
        once."""

    # as the owner

    async def signed_by_another(self, replica: Replica, update: Update, n_input_bytes: int) -> Update | None:
        """The update as it may be published: with a co-signature, if anybody may give one. None: this peer owns the shard no
        longer. The caller holds the lock, because the round must not end twice."""
        states = self._states
        if not self._is_strict:
            return update
        within_s = GRACE_S + TRANSFER_DEADLINE_S * n_input_bytes / (4 * MAX_SHARD_ELEMENTS)
        request = Cosign(states.run, replica.shard, update.header, update.signature)
        while states.ownership(replica.shard).owner == states.me and states.nursery is not None:
            order = states.cosigners(replica.shard)
            if not order:
                return update
            silent = self._silent.named(trio.current_time())
            for peer in sorted(order[:N_ASKED], key=silent.__contains__):
                if states.ownership(replica.shard).owner != states.me:
                    return None
                signature = await self._ask(replica, peer, request, within_s)
                if signature is not None:
                    return msgspec.structs.replace(update, cosigner=peer, cosignature=signature)
            await trio.sleep(AGAIN_S)
        return None

    async def _ask(self, replica: Replica, peer: PeerId, request: Cosign, within_s: float) -> bytes | None:
        try:
            reply = await self._states.rpc.ask(peer, request, Priority.ROUND, within_s=within_s)
            check_cosignature(peer, request.header, reply.signature)
        except (NetworkError, DecodeError) as failed:
            if isinstance(failed, DecodeError):
                self._messenger.report(peer, f"bad co-signature: {failed}")
            version = replica.chain.version + 1
            self._events.emit("update.not_cosigned", shard=replica.shard, version=version, peer=peer, reason=str(failed))
            self._silent.found(peer, trio.current_time())
            return None
        return reply.signature

    # as a co-signer

    async def on_cosign(self, peer: PeerId, message: Cosign) -> Cosigned:
        """Compute an owner's update again. Raises: LegionError, to be sent back."""
        header = open_header(message.header, message.signature)
        replica = self._states.replica(message.shard)
        if not self._is_strict or (header.run, header.shard, header.owner) != (self._states.run, message.shard, peer):
            raise DecodeError("nothing that its owner may have signed here")
        async with self._computing[message.shard]:
            return await self._sign(peer, replica, header, message)

    async def _sign(self, peer: PeerId, replica: Replica, header: UpdateHeader, message: Cosign) -> Cosigned:
        digest = header_digest(message.header)
        known = self._signed.signature(message.shard, digest)
        if known is not None:
            return Cosigned(known)
        self._must_be_asked(replica, header)
        found = await self._watch.check_early(replica, header, SignedHeader(message.header, message.signature))
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
        if header.version <= chain.version or chain.passed_otherwise(header.version - 1, header.base_digest):
            raise NetworkError(f"shard {replica.shard}: version {header.version} follows nothing that this peer holds")
        if not self._signed.may_sign(replica.shard, header.version, trio.current_time()):
            raise NetworkError("this peer has signed another update of that version")
