"""Requests that are asked a second time because the bulk lane that brought them broke before the reply.

    asked on a lane         -> RUNNING    the handler runs, whatever becomes of the lane
    RUNNING                 -> ANSWERED   its reply or refusal is kept, if it has at most MAX_KEPT_REPLY_BYTES
    RUNNING                 -> forgotten  its reply is larger: such requests only read, so they may be carried out again
    asked again in RUNNING or ANSWERED    gets the same reply; the handler does not run again

Never happens: more than MAX_KEPT requests are known; a peer gets the reply to another peer's request.
"""

from collections.abc import Callable

import trio

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.contact import Handler
from legion_p2p.core.identity import PeerId
from legion_p2p.core.priority import ThrottledReply
from legion_p2p.core.spliced import Bytes
from legion_p2p.errors import LegionError

MAX_KEPT = 2048  # requests: as many handlers as may run at once
MAX_KEPT_REPLY_BYTES = 1 << 12  # the replies to what changes something are some hundred bytes; 8 MiB for all of them


def request_name(ticket: str, request_id: int) -> str:
    """How both sides name a request that was sent on a lane."""
    return f"{ticket}/{request_id}"


class AnsweredOnce:
    """What was asked on lanes, and the replies."""

    def __init__(self) -> None:
        self._asked: BoundedMap[tuple[PeerId, str], _Asked] = BoundedMap(MAX_KEPT)

    def handler_of(self, peer: PeerId, handler: Handler, name: str, again: str) -> Handler:
        """What answers a request of `peer`, in place of `handler`.

        `name`: of a request on a lane; empty on other streams. `again`: what it was named when it was asked before, or empty.
        """
        asked = self._asked.get((peer, again)) if again else None
        if asked is not None:
            return asked.answer_again
        if not name:
            return handler
        asked = self._asked[peer, name] = _Asked(handler, lambda: self._asked.pop((peer, name), None))
        return asked.answer


class _Asked:
    """A request, and what became of it."""

    def __init__(self, handler: Handler, forget: Callable[[], object]) -> None:
        self._handler = handler
        self._forget = forget
        self._done = trio.Event()
        self._reply: Bytes = b""
        self._refused: LegionError | None = None

    async def answer(self, peer: PeerId, body: bytes) -> Bytes | ThrottledReply[Bytes]:
        try:
            reply = await self._handler(peer, body)
        except LegionError as refused:
            self._refused = refused
            self._done.set()
            raise
        except BaseException:  # a cancelled handler too: a repeated request must not wait for ever
            self._refused = LegionError("the other side failed to handle it")
            self._done.set()
            raise
        self._reply = reply.reply if isinstance(reply, ThrottledReply) else reply
        self._done.set()
        if len(self._reply) > MAX_KEPT_REPLY_BYTES:
            self._forget()
        return reply

    async def answer_again(self, peer: PeerId, body: bytes) -> Bytes | ThrottledReply[Bytes]:
        await self._done.wait()
        if self._refused is not None:
            raise self._refused
        return self._reply
