"""One stream between two messengers: frames out of a queue, frames into callbacks.

Reading never waits for anything but the network: yamux gives up on a reader that lets its window stay empty for 5 s. Writing
happens in one task, from a queue: a frame is never cut short because whoever asked for it gave up.
"""

import math
from collections import deque
from collections.abc import Callable

import trio
from libp2p.network.stream.net_stream import NetStream

from legion_p2p.errors import DecodeError
from legion_p2p.net.limits import FRAME_STALL_S, GIFT_STALL_S
from legion_p2p.net.wire import HEAD, check_head

READ_BYTES = 1 << 18
JOIN_BYTES = 1 << 15  # a body up to this size is written together with its head: one packet instead of two
RECV_WINDOW_BYTES = {"control": 1 << 18, "bulk": 8 << 20}  # 8 MiB fill 500 Mbit/s at 130 ms; grows no further than needed
PIECE_BYTES = 1 << 16  # of a download, between two looks at whether something else waits
TRICKLE_BYTES, TRICKLE_S = 1 << 13, 0.25  # of all downloads together, while it does: 256 kbit/s, so that none stalls


class RightOfWay:
    """Lets what training sends go before what is downloaded from this peer, over all of its streams."""

    def __init__(self) -> None:
        self._n_first = 0
        self._clear = trio.Event()
        self._next_s = -math.inf

    def enter(self) -> None:
        """Something that goes first waits, or is being written."""
        self._n_first += 1

    def leave(self) -> None:
        self._n_first -= 1
        if not self._n_first:
            self._clear.set()
            self._clear = trio.Event()

    async def wait(self) -> int:
        """Until a download may go on; how many bytes of it may."""
        if not self._n_first:
            return PIECE_BYTES
        self._next_s = max(self._next_s, trio.current_time()) + TRICKLE_S
        with trio.move_on_at(self._next_s):
            while self._n_first:
                await self._clear.wait()
            return PIECE_BYTES
        return TRICKLE_BYTES


class Outgoing:
    """A frame on its way."""

    __slots__ = ("abandoned", "begun", "body", "done", "due", "head", "is_gift", "written")

    def __init__(self, head: bytes, body: bytes, is_gift: bool = False) -> None:
        self.head = head
        self.body = body
        self.is_gift = is_gift
        self.begun = False
        self.written = False
        self.abandoned = False
        self.due = 0.0
        self.done = trio.Event()
        """Set when it is written, or never will be."""


class FrameStream:
    """Frames on a libp2p stream."""

    def __init__(
        self, stream: NetStream, lane: str, count_sent: Callable[[int], None], count_read: Callable[[int], None],
        way: RightOfWay, due: Callable[[int], float] | None = None,
    ) -> None:  # fmt: skip
        """`way`: of all streams of this host; `due`: tells when a frame of so many bytes may be written, where not at once."""
        self._stream = stream
        self.lane = lane
        self._count_sent = count_sent
        self._count_read = count_read
        self._way = way
        self._claims = False
        self._due = due
        self._queue: deque[Outgoing] = deque()
        self._wake = trio.Event()
        self._ended = False
        self._rest = memoryview(b"")
        self.n_read = 0
        stream.muxed_stream.target_recv_window = RECV_WINDOW_BYTES[lane]

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, head: bytes, body: bytes = b"", *, is_gift: bool = False) -> Outgoing:
        """Queue a frame; a gift lets all other bulk go first."""
        frame = Outgoing(head, body, is_gift)
        if self._ended:
            frame.done.set()
        else:
            if self._due is not None:
                frame.due = self._due(len(head) + len(body))
            self._queue.append(frame)
            self._claim()
            self._wake.set()
        return frame

    def end(self) -> None:
        """Nothing more will be written; what is queued never was."""
        self._ended = True
        while self._queue:
            self._queue.popleft().done.set()
        self._claim()

    async def write_queued(self) -> None:
        """Write frames for ever."""
        while True:
            while not self._queue:
                self._wake = trio.Event()
                await self._wake.wait()
            frame = self._queue[0]
            if self._due is not None:
                await trio.sleep_until(frame.due)
            if not frame.abandoned:
                frame.begun = True
                if frame.is_gift:
                    await self._write_gift(frame)
                elif len(frame.body) <= JOIN_BYTES:
                    await self._stream.write(frame.head + frame.body)
                else:
                    await self._stream.write(frame.head)
                    # yamux cuts it into its own frames: a view spares the copies
                    await self._stream.write(memoryview(frame.body))
                frame.written = True
                self._count_sent(len(frame.head) + len(frame.body))
            if self._queue and self._queue[0] is frame:
                self._queue.popleft()
                self._claim()
            frame.done.set()

    async def _write_gift(self, frame: Outgoing) -> None:
        """Raises: TooSlowError, if the other side does not take it."""
        body = memoryview(frame.body)
        with trio.fail_after(GIFT_STALL_S):
            await self._stream.write(frame.head)
        while body:
            n_bytes = await self._way.wait()
            with trio.fail_after(GIFT_STALL_S):
                await self._stream.write(body[:n_bytes])
            body = body[n_bytes:]

    def _claim(self) -> None:
        """Hold up the downloads of all streams, while what this one writes next is none."""
        claims = self.lane == "bulk" and bool(self._queue) and not self._queue[0].is_gift
        if claims and not self._claims:
            self._way.enter()
        elif self._claims and not claims:
            self._way.leave()
        self._claims = claims

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
        chunks = []
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

    async def _read(self) -> bytes:
        try:
            data = await self._stream.read(READ_BYTES)
        except Exception as error:
            if type(error).__name__ in ("StreamEOF", "MuxedStreamEOF"):
                return b""
            raise
        self._count_read(len(data))
        return data
