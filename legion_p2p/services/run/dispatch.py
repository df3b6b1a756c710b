"""What a peer answers: each request goes to the service that it concerns.

    of anybody, at any time    -> the specification of the run that this peer is in, and blocks of its checkpoints
    of a peer that the run does not admit -> refused, but for the specification
    about a run that it is not in, or before it is in one -> refused
    while it has left          -> refused as a failure of the network, so that the sender tries the next owner
    anything else              -> answered by the members, the shards, or the sync between regions

A request that cannot be read, or that carries what is not allowed, is reported: it costs the sender its good name.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import ThrottledReply
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
    Request,
    SpecFound,
    SyncRequest,
    decode_request,
    encode,
)
from legion_p2p.errors import DecodeError, IncompatibleModelError, NetworkError, UnknownRunError
from legion_p2p.services.ports import Messenger
from legion_p2p.services.run.lobby import Lobby
from legion_p2p.services.run.run import Run


async def answer_before(lobby: Lobby, peer: PeerId, body: bytes) -> bytes | ThrottledReply[bytes]:
    """Answer as a peer that is in no run yet. Raises: LegionError, to be sent back."""
    with _reporting(lobby.parts.network.messenger, peer):
        message = decode_request(body)
        if isinstance(message, GetSpec):
            raise UnknownRunError(message.run, 0)
        if isinstance(message, GetBlocks | HasBlocks):
            return _outgoing(await lobby.provider.on_request(peer, message))
    raise IncompatibleModelError("this peer is not in that run")


async def answer(run: Run, peer: PeerId, body: bytes) -> bytes | ThrottledReply[bytes]:
    """Answer as a member of a run. Raises: LegionError, to be sent back."""
    with _reporting(run.messenger, peer):
        message = decode_request(body)
        if isinstance(message, GetSpec):
            if message.run not in (run.spec.name, run.id):
                raise UnknownRunError(message.run, 0)
            return encode(SpecFound(run.signed.spec, run.signed.signature))
        if not isinstance(message, Exchange):  # which brings what it is admitted by
            run.members.must_be_admitted(peer)
        if isinstance(message, GetBlocks | HasBlocks):
            return _outgoing(await run.lobby.provider.on_request(peer, message))
        if isinstance(message, GetCheckpoints):
            return encode(run.lobby.provider.checkpoints() if message.run == run.id else Checkpoints(()))
        if run.presence.left:  # no IncompatibleModelError: a peer that pushes here should try again, with the next owner
            raise NetworkError("this peer is leaving the run")
        if _run_of(message) not in ("", run.id):
            raise IncompatibleModelError("this peer is not in that run")
        try:
            reply = await _answer(run, peer, message)
        except DecodeError as bad:
            run.events.error("request.refused", f"{peer}: {bad}", peer=peer, kind=type(bad).__name__)
            raise
    run.members.heard(peer)
    return _outgoing(reply)


async def _answer(run: Run, peer: PeerId, message: Request[Any]) -> Reply | ThrottledReply[Reply]:
    if isinstance(message, Exchange):
        return run.members.on_exchange(peer, message)
    if isinstance(message, Ping):
        return Done()
    if isinstance(message, PingFor):
        return await run.members.on_ping_for(message)
    if isinstance(message, Accusation):
        return run.members.on_accusation(peer, message)
    if isinstance(message, SyncRequest):
        return await run.region_sync.on_request(peer, message)
    if isinstance(message, RelayRequest):
        return await run.region_sync.relay.on_request(peer, message)
    return await run.shards.on_request(peer, message)


@contextmanager
def _reporting(messenger: Messenger, peer: PeerId) -> Iterator[None]:
    try:
        yield
    except DecodeError as bad:
        messenger.report(peer, str(bad))
        raise


def _outgoing(reply: Reply | ThrottledReply[Reply]) -> bytes | ThrottledReply[bytes]:
    return ThrottledReply(encode(reply.reply), reply.sent, reply.priority) if isinstance(reply, ThrottledReply) else encode(reply)


def _run_of(message: Request[Any]) -> str:
    """The run that a request is about; empty where the message itself carries it elsewhere (an update's header)."""
    run: str = getattr(message, "run", "")
    return run
