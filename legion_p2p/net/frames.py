"""One stream between two messengers: frames out of a queue, frames in for a reader. What the stream is made of: byte_streams.py.

Reading never waits for anything but the network: yamux gives up on a reader that lets its window stay empty for 5 s. Writing
happens in one task, from a queue: a frame is never cut short because whoever asked for it gave up.

What goes first is decided in core/priority.py. Rounds are written at once. What can wait is written a piece at a time, as the
gate of this host lets it pass, and at a trickle while something more urgent waits on any stream.
"""

from collections.abc import Awaitable, Callable
from typing import cast

import trio

from legion_p2p.concurrency.notify import Notify
from legion_p2p.core.priority import PIECE_BYTES, TRICKLE_BYTES, Priority, PriorityGate, PriorityQueue
from legion_p2p.core.spliced import Bytes, Pieces, coalesced, parts_of
from legion_p2p.errors import DecodeError
from legion_p2p.net.byte_streams import ByteStream
from legion_p2p.net.counters import Counters
from legion_p2p.net.envelope import HEAD, check_head
from legion_p2p.net.limits import DOWNLOAD_STALL_S, FRAME_STALL_S

READ_BYTES = 1 << 18
BUFFER_BYTES = 1 << 14  # what is read ahead, so that a small frame is read at once: a TLS record
FIRST_BYTES = 1 << 20  # of a body, for which there is memory at once
JOIN_BYTES = 1 << 15  # a frame up to this size, or the start of a longer one, is written at once: one packet instead of two


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


class CutShort(DecodeError):
    """The stream ended within a frame. On a connection of its own that says nothing of the other side: it ends so, too, where the
    network or a process does."""


class Outgoing:
    """A frame on its way."""

    __slots__ = ("abandoned", "begun", "body", "done", "due", "head", "priority", "written")

    def __init__(self, head: bytes, body: Bytes, priority: Priority) -> None:
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
    """Frames on a stream."""

    def __init__(
        self, stream: ByteStream, lane: str, counters: Counters, gate: UploadGate, due: Callable[[int], float] | None = None
    ) -> None:
        """`gate`: of all streams of this host; `due`: says when a frame of that many bytes may be written, if not at once."""
        self._stream = stream
        self.lane = lane
        self._counters = counters
        self._gate = gate
        self._claimed: Priority | None = None
        self._due = due
        self._queue: PriorityQueue[Outgoing] = PriorityQueue()
        self._put = Notify()
        self._ended = False
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._rest = self._buffer[:0]

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, head: bytes, body: Bytes = b"", priority: Priority = Priority.CONTROL) -> Outgoing:
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
        parts = (frame.head, *parts_of(frame.body))
        if frame.priority <= Priority.ROUND:
            for part in coalesced(parts, JOIN_BYTES):
                await self._stream.write(part)
            return
        rest = Pieces(parts)
        n_bytes += len(frame.head)
        while rest:
            with trio.fail_after(DOWNLOAD_STALL_S):
                await self._stream.write(rest.take(n_bytes))
            if rest:
                n_bytes = await self._gate.wait(self._urgency)

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

        Raises: EOFError when the other side ended the stream properly; DecodeError; whatever the stream raises.
        """
        if not self._rest and not await self._fill():
            raise EOFError("the other side ended the stream")
        return check_head(await self.read_exactly(HEAD.size), self.lane)

    async def read_exactly(self, size: int) -> bytes:
        """That many bytes of a frame that has begun: an envelope, or less.

        Raises: DecodeError, if the stream ends or stalls before; whatever the stream raises.
        """
        if size <= len(self._rest):
            data, self._rest = bytes(self._rest[:size]), self._rest[size:]
            return data
        return bytes(await self.read_body(size))

    async def read_body(self, size: int, admit: Callable[[int], None] = lambda n_bytes: None) -> bytes:
        """That many bytes of a frame that has begun; `admit` is called with the size of each piece, and may raise.

        Raises: DecodeError, if the stream ends or stalls before; whatever the stream or `admit` raises.
        """
        # announcing a large body costs a stranger nothing: it has to bring a part before there is memory for the whole
        body = bytearray(min(size, FIRST_BYTES))
        n_read = 0
        with trio.move_on_after(FRAME_STALL_S) as stall:
            while n_read < size:
                if n_read == len(body):
                    first, body = body, bytearray(size)
                    body[:n_read] = first
                with memoryview(body) as whole, whole[n_read:] as room:
                    n_new = await self._read_into(room)
                if not n_new:
                    raise CutShort("a frame cut short")
                admit(n_new)
                n_read += n_new
                stall.deadline = trio.current_time() + FRAME_STALL_S
        if n_read < size:
            raise DecodeError(f"a frame that stalled for {FRAME_STALL_S:.0f} s")
        return cast(bytes, body)  # nobody else has it, and a copy would cost as much as to decrypt it

    async def skip(self, n_bytes: int) -> None:
        """Read this many bytes, and forget them."""
        while n_bytes:
            n_bytes -= len(await self.read_body(min(n_bytes, READ_BYTES)))

    async def _read_into(self, room: memoryview) -> int:
        """1 to `len(room)` bytes; 0 where the stream has ended."""
        if not self._rest and len(room) >= BUFFER_BYTES:
            n_read = await self._stream.read_into(room[:READ_BYTES])
            self._counters.received(n_read)
            return n_read
        if not self._rest and not await self._fill():
            return 0
        chunk, self._rest = self._rest[: len(room)], self._rest[len(room) :]
        room[: len(chunk)] = chunk
        return len(chunk)

    async def _fill(self) -> bool:
        """Read ahead what has arrived, if only a little is wanted. False: the stream has ended."""
        n_read = await self._stream.read_into(self._buffer)
        self._counters.received(n_read)
        self._rest = self._buffer[:n_read]
        return n_read > 0


Side = Callable[[], Awaitable[None]]


async def read_and_write(stream: FrameStream, read: Side, *others: Side) -> None:
    """Read, write and do `others` until one of them ends or fails; raises the first failure, by itself."""
    failures: list[Exception] = []
    async with trio.open_nursery() as nursery:

        async def until_end(side: Side) -> None:
            try:
                await side()
            except Exception as failed:
                failures.append(failed)
            nursery.cancel_scope.cancel()

        for side in (read, stream.write_queued, *others):
            nursery.start_soon(until_end, side)
    if failures:
        raise failures[0]
