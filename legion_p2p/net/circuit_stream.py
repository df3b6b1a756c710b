"""A stream through a relay, as the connections above it see a socket; and the messages about circuits, as libp2p writes them."""

from typing import Any, TypeVar

import trio
import varint
from google.protobuf.message import Message
from libp2p.abc import INetStream
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from legion_p2p.concurrency.quick_lock import QuickLock
from legion_p2p.errors import DecodeError
from legion_p2p.net.limits import CIRCUIT_READ_S, CIRCUIT_STALL_S, MAX_CIRCUIT_MESSAGE_BYTES

READ_BYTES = 1 << 16

M = TypeVar("M", bound=Message)


class CircuitStream:
    """One circuit, seen from one of its ends. A write is done wholly, or the circuit is closed."""

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream
        self._write_lock = QuickLock()
        self._rest = memoryview(b"")
        self._closed = False
        self.received_bytes = 0

    async def write(self, data: bytes) -> None:
        async with self._write_lock:
            # shielded, as in transport.Socket: half of a frame would garble all that follows
            with trio.CancelScope(deadline=trio.current_time() + CIRCUIT_STALL_S, shield=True) as stall:
                try:
                    await self._stream.write(data)
                except Exception as broken:  # libp2p raises many kinds
                    await self.close()
                    raise ConnectionClosedError(f"circuit closed: {broken!r}", transport="circuit") from broken
            if stall.cancelled_caught:
                await self.close()
                raise ConnectionClosedError(f"circuit closed: nothing taken for {CIRCUIT_STALL_S:.0f} s", transport="circuit")

    async def read(self, n: int | None = None) -> bytes:
        if n == 0:
            return b""
        if not self._rest:
            try:
                self._rest = memoryview(await self._stream.read(READ_BYTES))
            except Exception as broken:
                raise ConnectionClosedError(f"circuit closed: {broken!r}", transport="circuit") from broken
            if not self._rest:
                raise ConnectionClosedError("circuit closed by the other side", transport="circuit")
            self.received_bytes += len(self._rest)
        data, self._rest = (self._rest, memoryview(b"")) if n is None else (self._rest[:n], self._rest[n:])
        return bytes(data)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await reset(self._stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        """Nobody at this end knows where the other end is."""
        return None


async def reset(stream: INetStream) -> None:
    """End a stream in both directions, whatever state it is in."""
    with trio.CancelScope(deadline=trio.current_time() + 1.0, shield=True):
        try:
            await stream.reset()
        except Exception:  # it has ended already
            await trio.lowlevel.checkpoint_if_cancelled()


async def write_message(stream: INetStream, message: Message) -> None:
    """Write one message about a circuit. Raises: what libp2p raises; TooSlowError."""
    packed = message.SerializeToString()
    with trio.fail_after(CIRCUIT_READ_S):
        await stream.write(varint.encode(len(packed)) + packed)


async def read_message(stream: INetStream, kind: type[M]) -> M:
    """Read one. Raises: DecodeError; TooSlowError; what libp2p raises where the stream ends."""
    with trio.fail_after(CIRCUIT_READ_S):
        data: Any = await read_varint_prefixed_bytes_limited(stream, MAX_CIRCUIT_MESSAGE_BYTES)
    message = kind()
    try:
        message.ParseFromString(data)
    except Exception as bad:  # protobuf's own kind
        raise DecodeError(f"what is no message about a circuit: {bad}") from bad
    return message
