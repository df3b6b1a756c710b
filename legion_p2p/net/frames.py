"""One stream between two messengers: frames out of a queue, frames in for a reader.

Reading never waits for anything but the network: yamux gives up on a reader that lets its window stay empty for 5 s. Writing
happens in one task, from a queue: a frame is never cut short because whoever asked for it gave up.

What goes first is decided in core/priority.py. Rounds are written at once. What can wait is written a piece at a time, as the
gate of this host lets it pass, and at a trickle while something more urgent waits on any stream.
"""

from collections.abc import Awaitable, Callable

import trio
from libp2p.network.stream.net_stream import NetStream

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.priority import PIECE_BYTES, TRICKLE_BYTES, Priority, PriorityGate, PriorityQueue
from legion_p2p.errors import DecodeError
from legion_p2p.net.counters import Counters
from legion_p2p.net.limits import DOWNLOAD_STALL_S, FRAME_STALL_S
from legion_p2p.net.wire import HEAD, check_head

READ_BYTES = 1 << 18
JOIN_BYTES = 1 << 15  # a body up to this size is written together with its head: one packet instead of two
RECV_WINDOW_BYTES = {"control": 1 << 18, "bulk": 8 << 20}  # 8 MiB fill 500 Mbit/s at 130 ms; grows no further than needed


class UploadGate:
    """The priority gate of one host: its streams wait here before they write what can wait."""

    def __init__(self) -> None:
        self._gate = PriorityGate()
        self._changed = Notify()

    def claim(self, before: Priority | None, after: Priority | None) -> None:
        """The most urgent that a stream has to write was `before`, and is `after`; None: nothing."""
        if before is not None:
            self._gate.leave(before)
        if after is not None:
            self._gate.enter(after)
        self._changed.notify()

    async def wait(self, urgency: Callable[[], Priority]) -> int:
        """Wait until something as urgent as this may be written; how many bytes of it. Its urgency may change meanwhile."""
        if not self._gate.is_open(urgency()):
            with trio.move_on_at(self._gate.reserve_trickle(trio.current_time())) as trickle:
                while not self._gate.is_open(urgency()):
                    await self._changed.wait()
            if trickle.cancelled_caught:
                return TRICKLE_BYTES
        self._gate.passed(urgency())
        self._changed.notify()
        return PIECE_BYTES


class Outgoing:
    """A frame on its way."""

    __slots__ = ("abandoned", "begun", "body", "done", "due", "head", "priority", "written")

    def __init__(self, head: bytes, body: bytes, priority: Priority) -> None:
        self.head = head
        self.body = body
        self.priority = priority
        self.begun = False
        self.written = False
        self.abandoned = False
        self.due = 0.0
        self.done = trio.Event()
        """Set when it is written, or never will be."""


class FrameStream:
    """Frames on a libp2p stream."""

    def __init__(
        self, stream: NetStream, lane: str, counters: Counters, gate: UploadGate, due: Callable[[int], float] | None = None
    ) -> None:
        """`gate`: of all streams of this host; `due`: tells when a frame of so many bytes may be written, where not at once."""
        self._stream = stream
        self.lane = lane
        self._counters = counters
        self._gate = gate
        self._claimed: Priority | None = None
        self._due = due
        self._queue: PriorityQueue[Outgoing] = PriorityQueue()
        self._put = Notify()
        self._ended = False
        self._rest = memoryview(b"")
        stream.muxed_stream.target_recv_window = RECV_WINDOW_BYTES[lane]  # type: ignore[attr-defined]  # of net/patches.py

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, head: bytes, body: bytes = b"", priority: Priority = Priority.CONTROL) -> Outgoing:
        """Queue a frame, before those of a lower priority that have not begun. A stream for control knows no other priority."""
        frame = Outgoing(head, body, Priority.CONTROL if self.lane == "control" else priority)
        if self._ended:
            frame.done.set()
        else:
            if self._due is not None:
                frame.due = self._due(len(head) + len(body))
            self._queue.put(frame, frame.priority)
            self._claim()
            self._put.notify()
        return frame

    def end(self) -> None:
        """Nothing more will be written; what is queued never was."""
        self._ended = True
        while self._queue:
            self._queue.pop().done.set()
        self._claim()

    async def write_queued(self) -> None:
        """Write frames for ever."""
        while True:
            while not self._queue:
                await self._put.wait()
            n_bytes = await self._gate.wait(self._urgency) if self._queue.first().priority > Priority.ROUND else 0
            if not self._queue:  # the stream ended meanwhile
                continue
            frame = self._queue.first()
            if self._due is not None:
                self._begin(frame)
                await trio.sleep_until(frame.due)
            if not frame.abandoned:
                self._begin(frame)
                await self._write(frame, n_bytes)
                frame.written = True
                self._counters.sent(len(frame.head) + len(frame.body))
            if self._queue and self._queue.first() is frame:
                self._queue.pop()
                self._claim()
            frame.done.set()

    def _begin(self, frame: Outgoing) -> None:
        frame.begun = True
        self._queue.begin()

    async def _write(self, frame: Outgoing, n_bytes: int) -> None:
        """A frame that can wait: `n_bytes` of it at once, the rest as others let it.

        Raises: TooSlowError, if the other side does not take that.
        """
        body = memoryview(frame.body)
        if frame.priority <= Priority.ROUND:
            if len(body) <= JOIN_BYTES:
                await self._stream.write(frame.head + frame.body)
            else:
                await self._stream.write(frame.head)
                # yamux cuts it into its own frames: a view spares the copies
                await self._stream.write(body)  # type: ignore[arg-type]
            return
        with trio.fail_after(DOWNLOAD_STALL_S):
            await self._stream.write(frame.head + bytes(body[:n_bytes]))
        body = body[n_bytes:]
        while body:
            n_bytes = await self._gate.wait(self._urgency)
            with trio.fail_after(DOWNLOAD_STALL_S):
                await self._stream.write(body[:n_bytes])  # type: ignore[arg-type]
            body = body[n_bytes:]

    def _urgency(self) -> Priority:
        """That of all that waits here: what is begun is finished first, and must not hold up what is more urgent."""
        return self._queue.urgency or Priority.CONTROL

    def _claim(self) -> None:
        """Hold up what is less urgent, on all streams."""
        urgency = self._queue.urgency if self.lane == "bulk" else None
        if urgency is not self._claimed:
            self._gate.claim(self._claimed, urgency)
            self._claimed = urgency

    async def read_head(self) -> tuple[int, int]:
        """The next frame's sizes: (envelope, body). May wait for ever.

        Raises: EOFError when the other side ended the stream properly; DecodeError; whatever libp2p raises.
        """
        if not self._rest:
            self._rest = memoryview(await self._read())
            if not self._rest:
                raise EOFError("the other side ended the stream")
        return check_head(await self.read_exactly(HEAD.size), self.lane)

    async def read_exactly(self, size: int) -> bytes:
        """That many bytes of a frame that has begun.

        Raises: DecodeError, if the stream ends or stalls before; whatever libp2p raises.
        """
        chunks: list[memoryview] = []
        while size:
            chunk = await self.read_some(size)
            chunks.append(chunk)
            size -= len(chunk)
        return bytes(chunks[0]) if len(chunks) == 1 else b"".join(chunks)

    async def read_some(self, most: int) -> memoryview:
        """1 to `most` bytes of a frame that has begun."""
        if not self._rest:
            with trio.move_on_after(FRAME_STALL_S) as stall:
                self._rest = memoryview(await self._read())
            if stall.cancelled_caught:
                raise DecodeError(f"a frame that stalled for {FRAME_STALL_S:.0f} s")
            if not self._rest:
                raise DecodeError("a frame cut short")
        chunk, self._rest = self._rest[:most], self._rest[most:]
        return chunk

    async def skip(self, n_bytes: int) -> None:
        """Read this many bytes, and forget them."""
        while n_bytes:
            n_bytes -= len(await self.read_some(n_bytes))

    async def _read(self) -> bytes:
        try:
            data = await self._stream.read(READ_BYTES)
        except Exception as error:
            if type(error).__name__ in ("StreamEOF", "MuxedStreamEOF"):
                return b""
            raise
        self._counters.received(len(data))
        return data


async def read_and_write(stream: FrameStream, read: Callable[[], Awaitable[None]]) -> None:
    """Read and write until either ends or fails; raises the first failure, by itself."""
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def until_end(side: Callable[[], Awaitable[None]]) -> None:
            try:
                await side()
            except Exception as failed:
                failures.append(failed)
            nursery.cancel_scope.cancel()

        nursery.start_soon(until_end, read)
        nursery.start_soon(until_end, stream.write_queued)
    if failures:
        raise failures[0]
