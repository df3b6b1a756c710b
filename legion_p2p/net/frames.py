"""One stream between two messengers: frames out of a queue, frames into callbacks.

Reading never waits for anything but the network: yamux gives up on a reader that lets its window stay empty for 5 s. Writing
happens in one task, from a queue: a frame is never cut short because whoever asked for it gave up.

Bulk has ranks. Rank 0 is written at once; of the others a piece at a time, while nothing of a lower rank waits on any stream of
this host, and at a trickle while something does. A frame that is held up is as urgent as the most urgent one behind it.
"""

import math
from collections import Counter, deque
from collections.abc import Callable

import trio
from libp2p.network.stream.net_stream import NetStream

from legion_p2p.errors import DecodeError
from legion_p2p.net.limits import FRAME_STALL_S, GIFT_STALL_S
from legion_p2p.net.wire import HEAD, check_head

READ_BYTES = 1 << 18
JOIN_BYTES = 1 << 15  # a body up to this size is written together with its head: one packet instead of two
RECV_WINDOW_BYTES = {"control": 1 << 18, "bulk": 8 << 20}  # 8 MiB fill 500 Mbit/s at 130 ms; grows no further than needed
PIECE_BYTES = 1 << 16  # of what can wait, between two looks at whether something else waits
TRICKLE_BYTES, TRICKLE_S = 1 << 13, 0.25  # of all of that together, while it does: 256 kbit/s, so that nothing stalls


class RightOfWay:
    """Lets what has a lower rank go before the rest, over all streams of this host."""

    def __init__(self) -> None:
        self._waiting: Counter[int] = Counter()
        self._changed = trio.Event()
        self._next_s = -math.inf

    def enter(self, rank: int) -> None:
        """Something of this rank waits, or is being written."""
        self._waiting[rank] += 1
        self._change()

    def leave(self, rank: int) -> None:
        self._waiting[rank] -= 1
        if not self._waiting[rank]:
            del self._waiting[rank]
        self._change()

    async def wait(self, rank: Callable[[], int]) -> int:
        """Until something of this rank may go on; how many bytes of it may. Its rank may change meanwhile."""
        if self._is_clear(rank()):
            return PIECE_BYTES
        self._next_s = max(self._next_s, trio.current_time()) + TRICKLE_S
        with trio.move_on_at(self._next_s):
            while not self._is_clear(rank()):
                await self._changed.wait()
            return PIECE_BYTES
        return TRICKLE_BYTES

    def _is_clear(self, rank: int) -> bool:
        return min(self._waiting, default=rank) >= rank

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Outgoing:
    """A frame on its way."""

    __slots__ = ("abandoned", "begun", "body", "done", "due", "head", "rank", "written")

    def __init__(self, head: bytes, body: bytes, rank: int = 0) -> None:
        self.head = head
        self.body = body
        self.rank = rank
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
        self._claimed: int | None = None
        self._due = due
        self._queue: deque[Outgoing] = deque()
        self._wake = trio.Event()
        self._ended = False
        self._rest = memoryview(b"")
        self.n_read = 0
        stream.muxed_stream.target_recv_window = RECV_WINDOW_BYTES[lane]

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, head: bytes, body: bytes = b"", *, rank: int = 0) -> Outgoing:
        """Queue a frame, before those of a higher rank that are not begun."""
        frame = Outgoing(head, body, rank)
        if self._ended:
            frame.done.set()
        else:
            if self._due is not None:
                frame.due = self._due(len(head) + len(body))
            at = len(self._queue)
            while at and not self._queue[at - 1].begun and self._queue[at - 1].rank > rank:
                at -= 1
            self._queue.insert(at, frame)
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
            n_bytes = await self._way.wait(self._rank) if self._queue[0].rank else 0
            if not self._queue:  # the stream ended meanwhile
                continue
            frame = self._queue[0]
            if self._due is not None:
                frame.begun = True
                await trio.sleep_until(frame.due)
            if not frame.abandoned:
                frame.begun = True
                if frame.rank:
                    await self._write_in_turn(frame, n_bytes)
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

    async def _write_in_turn(self, frame: Outgoing, n_bytes: int) -> None:
        """`n_bytes` at once, the rest as others let it. Raises: TooSlowError, if the other side does not take it."""
        body = memoryview(frame.body)
        with trio.fail_after(GIFT_STALL_S):
            await self._stream.write(frame.head + bytes(body[:n_bytes]))
        body = body[n_bytes:]
        while body:
            n_bytes = await self._way.wait(self._rank)
            with trio.fail_after(GIFT_STALL_S):
                await self._stream.write(body[:n_bytes])
            body = body[n_bytes:]

    def _rank(self) -> int:
        """The lowest of all that waits here: what is begun is finished first, and must not hold up what is more urgent."""
        return min((frame.rank for frame in self._queue), default=0)

    def _claim(self) -> None:
        """Hold up what has a higher rank on all streams."""
        rank = self._rank() if self.lane == "bulk" and self._queue else None
        if rank != self._claimed:
            if self._claimed is not None:
                self._way.leave(self._claimed)
            if rank is not None:
                self._way.enter(rank)
            self._claimed = rank

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
