"""Typed requests between peers.

Asking: `reply = await rpc.ask(peer, GetShard(...))` encodes the request, decodes the reply and checks that it answers the
request. The type of `reply` is what the message names, here `ShardState | Busy`. Answering: `dispatcher.on(GetShard, handler)`.

Whatever goes wrong raises a NetworkError, and nothing else:

    UnreachableError     the peer cannot be reached; its liveness is told
    NoAnswerError        it did not answer within `within_s`
    RefusedError         it understood the request, and refused it
    RemoteProtocolError  it sent what is no answer to this request; it has been reported
"""

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import trio

from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import Priority, ThrottledReply
from legion_p2p.core.spliced import Bytes
from legion_p2p.core.wire import REQUESTS, Encoded, Message, Request, decode_with, decoder_of, encode_to_send
from legion_p2p.errors import DecodeError, NetworkError, NoAnswerError, RemoteProtocolError, UnreachableError
from legion_p2p.observe.events import Events
from legion_p2p.services.ports import Messenger

Q = TypeVar("Q", bound=Request[Any])
Q_contra = TypeVar("Q_contra", contravariant=True)
R = TypeVar("R", bound=Message)
R_contra = TypeVar("R_contra", contravariant=True)

Handler = Callable[[PeerId, Q], Awaitable[R | ThrottledReply[R]]]
"""Answers a request of a peer. A LegionError that it raises is sent back as a refusal."""


class LivenessSink(Protocol):
    """What decides which peers live."""

    def heard(self, peer: PeerId) -> None: ...

    def lost(self, peer: PeerId) -> None: ...


class Kind(Protocol[Q_contra, R_contra]):
    """The class of a request, as the type checker sees it: what it is, and what answers it."""

    def answered_by(self, request: Q_contra, reply: R_contra) -> bool: ...


class Rpc:
    """Asks peers."""

    def __init__(self, messenger: Messenger, liveness: LivenessSink | None = None) -> None:
        """`liveness` is told which peers answered, and which could not be reached."""
        self._messenger = messenger
        self._liveness = liveness

    async def ask(
        self, peer: PeerId, request: Request[R] | Encoded[R], priority: Priority = Priority.CONTROL, *, within_s: float = math.inf
    ) -> R:
        """The reply of `peer`. A request that goes to many peers is best encoded once: `Encoded(request)`.

        The deadline is an argument, because a peer that does not answer in time is one more way to get no reply: callers have
        one error to catch.

        Raises: NetworkError; UsageError, if the request is larger than a frame may be.
        """
        encoded = request if isinstance(request, Encoded) else Encoded(request)
        try:
            data = await self._request(peer, encoded.body, priority, within_s)
        except UnreachableError:
            if self._liveness is not None:
                self._liveness.lost(peer)
            raise
        try:
            reply = encoded.decode_reply(data)
        except DecodeError as bad:
            raise self._reported(peer, "bad reply", bad) from bad
        if self._liveness is not None:
            self._liveness.heard(peer)
        return reply

    async def _request(self, peer: PeerId, body: Bytes, priority: Priority, within_s: float) -> bytes:
        if within_s == math.inf:
            return await self._messenger.request(peer, body, priority)
        with trio.move_on_after(within_s):
            return await self._messenger.request(peer, body, priority)
        raise NoAnswerError(peer, within_s)

    async def ask_all(
        self, peers: Iterable[PeerId], request: Request[R], priority: Priority = Priority.CONTROL, *, within_s: float = math.inf
    ) -> dict[PeerId, R]:
        """The replies of all that answer, in the order of their ids; those that fail to are left out."""
        replies: dict[PeerId, R] = {}
        encoded = Encoded(request)

        async def ask(peer: PeerId) -> None:
            try:
                replies[peer] = await self.ask(peer, encoded, priority, within_s=within_s)
            except NetworkError:
                return

        asked = sorted(set(peers))
        async with trio.open_nursery() as nursery:
            for peer in asked:
                nursery.start_soon(ask, peer)
        return {peer: replies[peer] for peer in asked if peer in replies}

    @contextmanager
    def checking(self, peer: PeerId, what: str) -> Iterator[None]:
        """Look at what `peer` sent: a DecodeError raised within is reported, and leaves as RemoteProtocolError."""
        try:
            yield
        except DecodeError as bad:
            raise self._reported(peer, what, bad) from bad

    def _reported(self, peer: PeerId, what: str, bad: DecodeError) -> RemoteProtocolError:
        self._messenger.report(peer, f"{what}: {bad}")
        return RemoteProtocolError(peer, f"{what}: {bad}")


class Dispatcher:
    """Takes each request of a peer to the handler of its kind."""

    def __init__(self, messenger: Messenger, events: Events) -> None:
        """Pass `handle` to `messenger.serve` when this peer is ready to answer."""
        self._messenger = messenger
        self._events = events
        self._handlers: dict[type[Request[Any]], Handler[Any, Any]] = {}
        self._decoder = decoder_of(REQUESTS)

    def on(self, kind: Kind[Q, R], handler: Handler[Q, R]) -> None:
        """Answer requests of this kind with `handler` from now on."""
        assert isinstance(kind, type) and issubclass(kind, Request)  # what `Kind` means, in words of the interpreter
        self._handlers[kind] = handler
        self._decoder = decoder_of(dict.fromkeys((*REQUESTS, *self._handlers)))

    def scope(
        self, check: Callable[[PeerId, Request[Any]], None], answered: Callable[[PeerId], None] = lambda peer: None
    ) -> "Scope":
        """For handlers that share a condition: see `Scope`."""
        return Scope(self, check, answered)

    async def handle(self, peer: PeerId, body: bytes) -> Bytes | ThrottledReply[Bytes]:
        """Answer a request.

        Raises: LegionError, to be sent back as a refusal. The asker is reported if its request cannot be decoded, or if the
        handler raises a DecodeError.
        """
        try:
            message: Request[Any] = decode_with(self._decoder, body, "request")
            handler = self._handlers.get(type(message))
            if handler is None:
                raise NetworkError(f"this peer does not answer {type(message).__name__}")
            reply = await handler(peer, message)
        except DecodeError as bad:
            self._messenger.report(peer, str(bad))
            self._events.error("request.refused", f"{peer}: {bad}", peer=peer, kind=type(bad).__name__)
            raise
        if not isinstance(reply, ThrottledReply):
            return self._encoded(message, reply)
        try:
            return ThrottledReply(self._encoded(message, reply.reply), reply.sent, reply.priority)
        except BaseException:  # the slot must come free
            reply.sent()
            raise

    @staticmethod
    def _encoded(request: Request[Any], reply: Message) -> Bytes:
        if not request.answered_by(request, reply):
            raise TypeError(f"{type(reply).__name__} does not answer {type(request).__name__}")
        return encode_to_send(reply)


class Scope:
    """Handlers that answer only while a condition holds, for example while this peer is in a run."""

    def __init__(
        self, dispatcher: Dispatcher, check: Callable[[PeerId, Request[Any]], None], answered: Callable[[PeerId], None]
    ) -> None:
        """`check` raises the LegionError that refuses a request; `answered` is called with each peer that was answered."""
        self._dispatcher = dispatcher
        self._check = check
        self._answered = answered

    def on(self, kind: Kind[Q, R], handler: Handler[Q, R]) -> None:
        """`Dispatcher.on`, within this scope."""

        async def checked(peer: PeerId, request: Q) -> R | ThrottledReply[R]:
            self._check(peer, request)
            reply = await handler(peer, request)
            self._answered(peer)
            return reply

        self._dispatcher.on(kind, checked)
