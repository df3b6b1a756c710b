"""Measuring the bandwidth to another peer, and letting others measure it: decided in core/speed_tests.py.

    asker                                 other side
    opens a stream                   -->
                                     <--  verdict: refused and why, or not
    pieces, for TEST_S or all bytes  -->  counts them
    an empty piece                   -->
                                     <--  how many bytes have come
                                     <--  pieces, as many bytes at most, for TEST_S
                                     <--  an empty piece

A piece is its length, in four bytes, and that many random bytes. The stream runs over the connection of libp2p, so limits on
traffic hold for it."""

import logging
import secrets
import struct
from collections.abc import Callable
from typing import Annotated

import msgspec
import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID

from legion_p2p.core.identity import PeerId
from legion_p2p.core.speed_tests import MAX_TEST_BYTES, TEST_S, SpeedTests
from legion_p2p.errors import DecodeError, NetworkError
from legion_p2p.net.circuit_stream import reset
from legion_p2p.net.ends import remote_end

PROTOCOL = TProtocol("/legion/speed/1")
PIECE_BYTES = 1 << 16
WINDOW_BYTES = 1 << 20  # that travel at once: 80 Mbit/s over a round trip of 100 ms
WHOLE_S = 30.0  # of a test, both ways: at 256 kbit/s a window of 256 KiB alone takes 8 s
MAX_VERDICT_BYTES = 512
SHORTEST_S = 1e-3  # what is shorter cannot be measured
_LENGTH = struct.Struct(">I")

log = logging.getLogger("legion_p2p.net")


class SpeedVerdict(msgspec.Struct, frozen=True, array_like=True):
    """What the other side says to the wish for a test."""

    refused: Annotated[str, msgspec.Meta(max_length=200)] = ""
    """Why; empty: it is granted."""


class MeasuredSpeed(msgspec.Struct, frozen=True):
    """What one test has shown."""

    up_bps: float
    down_bps: float
    sent_bytes: int
    received_bytes: int


class SpeedService:
    """Lets others measure how fast they can send to this host, and receive from it."""

    def __init__(
        self, host: BasicHost, per_hour: int, is_busy: Callable[[], bool], report: Callable[[PeerId, str], None]
    ) -> None:
        """`is_busy`: transfers of this peer's own run. `report`: told of those that break the protocol."""
        self._tests = SpeedTests(per_hour)
        self._is_busy = is_busy
        self._report = report
        host.set_stream_handler(PROTOCOL, self._answer)

    async def _answer(self, stream: INetStream) -> None:
        peer = PeerId(str(stream.muxed_conn.peer_id))
        end = remote_end(stream.muxed_conn)
        if end is None:  # a relay would carry all of it for strangers
            refused = "only over a direct connection"
        else:
            refused = self._tests.begin(peer, end[0], self._is_busy(), trio.current_time())
        try:
            with trio.move_on_after(WHOLE_S):
                await _write_block(stream, msgspec.msgpack.encode(SpeedVerdict(refused)))
                if not refused:
                    await self._run(stream)
                await stream.read(1)  # until the asker has ended it: a reset would overtake what was written
        except DecodeError as bad:
            self._report(peer, f"in a test of bandwidth: {bad}")
        except Exception as ended:  # libp2p raises many kinds, also where the asker has ended it
            log.debug("a test of bandwidth by %s ended: %r", peer, ended)
        finally:
            if not refused:  # also where the asker is gone before it hears that its test is granted
                self._tests.end()
            await reset(stream)

    async def _run(self, stream: INetStream) -> None:
        _widen(stream)
        n_bytes, _ = await _take(stream, MAX_TEST_BYTES)
        await stream.write(_LENGTH.pack(n_bytes))
        await _give(stream, n_bytes)


async def measure_speed(host: BasicHost, peer: PeerId, rtt_s: float) -> MeasuredSpeed:
    """How fast this machine sends to `peer`, and receives from it. `rtt_s`: the round trip, which counts as no transfer.

    Raises: NetworkError, if the other side refuses, breaks off, or takes too long.
    """
    stream: INetStream | None = None
    try:
        with trio.fail_after(WHOLE_S):
            stream = await host.new_stream(ID.from_base58(peer), [PROTOCOL])
            _widen(stream)
            verdict = msgspec.msgpack.decode(await _read_block(stream), type=SpeedVerdict)
            if verdict.refused:
                raise NetworkError(f"it refuses: {verdict.refused}")
            began = trio.current_time()
            n_sent = await _give(stream, MAX_TEST_BYTES)
            (n_taken,) = _LENGTH.unpack(await _exactly(stream, _LENGTH.size))
            ended = trio.current_time()
            if n_taken != n_sent:
                raise DecodeError(f"{n_sent} bytes were sent, and it says that {n_taken} came")
            n_received, down_bps = await _take(stream, n_sent)
    except trio.TooSlowError as slow:
        raise NetworkError(f"the test did not end within {WHOLE_S:.0f} s") from slow
    except NetworkError:
        raise
    except (DecodeError, msgspec.DecodeError) as bad:
        raise NetworkError(f"it does not keep to the protocol: {bad}") from bad
    except Exception as failed:  # libp2p raises many kinds
        raise NetworkError(f"it takes no test: {failed!r}") from failed
    finally:
        if stream is not None:
            await reset(stream)
    took_s = ended - began
    return MeasuredSpeed(8 * n_sent / max(took_s - min(rtt_s, took_s / 2), SHORTEST_S), down_bps, n_sent, n_received)


def _widen(stream: INetStream) -> None:
    """Let the other side send more at once than libp2p does."""
    assert isinstance(stream, NetStream)  # what a swarm makes
    stream.muxed_stream.target_recv_window = WINDOW_BYTES  # type: ignore[attr-defined]  # of net/patches.py


async def _give(stream: INetStream, n_bytes: int) -> int:
    """Send pieces until `n_bytes` are sent or TEST_S is over; returns how many were sent."""
    until, n_sent = trio.current_time() + TEST_S, 0
    noise = secrets.token_bytes(PIECE_BYTES)
    while n_sent < n_bytes and trio.current_time() < until:
        piece = noise[: min(PIECE_BYTES, n_bytes - n_sent)]
        await stream.write(_LENGTH.pack(len(piece)) + piece)
        n_sent += len(piece)
    await stream.write(_LENGTH.pack(0))
    return n_sent


async def _take(stream: INetStream, most: int) -> tuple[int, float]:
    """Read pieces to the empty one: how many bytes they had, and the rate at which those after the first piece came, in bits per
    second. Raises: DecodeError, if they are more than `most`.
    """
    first, n_taken, began, ended = 0, 0, 0.0, 0.0
    while n_bytes := _LENGTH.unpack(await _exactly(stream, _LENGTH.size))[0]:
        if n_bytes > PIECE_BYTES or n_taken + n_bytes > most:
            raise DecodeError(f"a piece of {n_bytes} bytes after {n_taken}, {PIECE_BYTES} and {most} are allowed")
        await _exactly(stream, n_bytes)
        n_taken, ended = n_taken + n_bytes, trio.current_time()
        if not first:
            first, began = n_bytes, ended
    return n_taken, 8 * (n_taken - first) / max(ended - began, SHORTEST_S)


async def _write_block(stream: INetStream, data: bytes) -> None:
    await stream.write(_LENGTH.pack(len(data)) + data)


async def _read_block(stream: INetStream) -> bytes:
    (n_bytes,) = _LENGTH.unpack(await _exactly(stream, _LENGTH.size))
    if n_bytes > MAX_VERDICT_BYTES:
        raise DecodeError(f"a verdict of {n_bytes} bytes, {MAX_VERDICT_BYTES} are allowed")
    return await _exactly(stream, n_bytes)


async def _exactly(stream: INetStream, n_bytes: int) -> bytes:
    """So many bytes. Raises: EOFError, if it ends before; what libp2p raises."""
    parts, n_read = [], 0
    while n_read < n_bytes:
        part = await stream.read(n_bytes - n_read)
        if not part:
            raise EOFError("the stream has ended")
        parts.append(part)
        n_read += len(part)
    return b"".join(parts)
