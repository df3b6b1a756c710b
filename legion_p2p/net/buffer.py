"""What a slow reader leaves behind."""

import trio

from legion_p2p.net.limits import GOSSIP_BUFFER


class Buffer:
    """What one subscriber has not read yet. Full: the oldest goes."""

    def __init__(self, size: int = GOSSIP_BUFFER) -> None:
        self._send, self.receive = trio.open_memory_channel[bytes](size)
        self._own = self.receive.clone()

    def put(self, data: bytes) -> None:
        try:
            self._send.send_nowait(data)
        except trio.WouldBlock:
            self._own.receive_nowait()
            self._send.send_nowait(data)

    def close(self) -> None:
        self._send.close()
        self._own.close()
        self.receive.close()
