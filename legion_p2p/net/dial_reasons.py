"""Why a dial failed, in words for people."""

import re
import socket
from collections.abc import Iterable

import trio


def reason_of(error: BaseException) -> str:
    """The innermost cause of a failed dial, in words for people."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, socket.gaierror):
            return f"the name cannot be resolved ({cause.strerror})"
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno is not None and cause.strerror:
            return cause.strerror.lower()
    for cause in chain:
        text = str(cause)
        for mark in ("Peer ID mismatch", "peer id does not correspond"):
            if mark in text:
                return f"the peer there has another id: {re.split('got |pubkey=', text)[-1]}"
    for cause in chain:
        if isinstance(cause, trio.TooSlowError):
            return "no answer in time"
    text = str(chain[-1]) or str(chain[0])
    return text.splitlines()[0][:200] if text else type(chain[-1]).__name__


def _causes(error: BaseException) -> Iterable[BaseException]:
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        cause = waiting.pop(0)
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            waiting.extend(cause.exceptions)
        waiting.extend(getattr(cause, "errors", ()) if not isinstance(cause, OSError) else ())
        waiting.extend(c for c in (cause.__cause__, cause.__context__) if c is not None)
