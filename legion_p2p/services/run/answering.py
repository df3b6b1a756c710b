"""What a peer in a run answers, to whomever asks."""

from legion_p2p.core.identity import PeerId
from legion_p2p.core.wire import (
    Accusation,
    Checkpoints,
    Done,
    Exchange,
    GetBlocks,
    GetCheckpoints,
    GetSpec,
    HasBlocks,
    Ping,
    PingFor,
    RelayRequest,
    Reply,
    SpecFound,
    SyncRequest,
    decode_request,
    encode,
)
from legion_p2p.errors import DecodeError, IncompatibleModelError, NetworkError, UnknownRunError
from legion_p2p.services.ports import Gift
from legion_p2p.services.run.participant import Participant
from legion_p2p.services.upload_slots import ThrottledReply


class Answering(Participant):
    """Takes every request of the protocol to the service that it concerns."""

    async def handle(self, peer: PeerId, body: bytes) -> bytes | Gift:
        """Answer any request of the protocol. Raises: LegionError, to be sent back."""
        try:
            message = decode_request(body)
        except DecodeError as bad:
            self.messenger.report(peer, str(bad))
            raise
        if isinstance(message, GetSpec):
            return encode(self._tell_spec(message))
        if isinstance(message, GetBlocks | HasBlocks | GetCheckpoints):
            if self._provider is None:
                raise NetworkError("this peer keeps no checkpoints")
            if isinstance(message, GetCheckpoints):
                return encode(self._provider.checkpoints() if message.run == self.run else Checkpoints(()))
            try:
                return _outgoing(await self._provider.on_request(peer, message))
            except DecodeError as bad:
                self.messenger.report(peer, str(bad))
                raise
        if self._left:  # no IncompatibleModelError: whoever pushes to us should try again, with our heir
            raise NetworkError("this peer is leaving the run")
        if self._members is None or _run_of(message) not in ("", self.run):
            raise IncompatibleModelError("this peer is not in that run")
        try:
            reply = await self._answer(peer, message)
        except DecodeError as bad:
            self.messenger.report(peer, str(bad))
            self.events.error("request.refused", f"{peer}: {bad}", peer=peer, kind=type(bad).__name__)
            raise
        self.members.heard(peer)
        return _outgoing(reply)

    async def _answer(self, peer: PeerId, message: object) -> Reply | ThrottledReply:
        members = self.members
        if isinstance(message, Exchange):
            return members.on_exchange(peer, message)
        if isinstance(message, Ping):
            return Done()
        if isinstance(message, PingFor):
            return await members.on_ping_for(message)
        if isinstance(message, Accusation):
            return members.on_accusation(peer, message)
        if isinstance(message, SyncRequest):
            return await self.crossing.on_cross(peer, message)
        if isinstance(message, RelayRequest):
            return await self.crossing.on_carry(peer, message)
        return await self.shards.on_request(peer, message)  # type: ignore[arg-type]

    def _tell_spec(self, message: GetSpec) -> SpecFound:
        if self._signed_spec is None or self.spec is None or message.run not in (self.spec.name, self.run):
            raise UnknownRunError(message.run, 0)
        return SpecFound(self._signed_spec.spec, self._signed_spec.signature)


def _outgoing(reply: Reply | ThrottledReply) -> bytes | Gift:
    return Gift(encode(reply.reply), reply.over, reply.rank) if isinstance(reply, ThrottledReply) else encode(reply)


def _run_of(message: object) -> str:
    """The run that a request is about; empty where the message itself carries it elsewhere (an update's header)."""
    return getattr(message, "run", "")
