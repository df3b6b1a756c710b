"""Blocks for any IPFS client: the answering side of bitswap 1.2.0 (specs.ipfs.tech/bitswap-protocol).

A client opens a stream, writes what it wants, and closes it; the answers go on a stream that this side opens. (py-libp2p's own
bitswap answers on the client's stream, where js and go clients no longer read: they wait until they time out.)

    want-have of a block that is here      -> HAVE
    want-block of a block that is here     -> the block
    either, of one that is not             -> DONT_HAVE, if the client asked to be told; then the want is forgotten
    cancel, or a full list without it      -> the want is forgotten

Few clients are served at a time, the others wait for their turn: a peer trains first.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

import trio
import varint
from libp2p.abc import IHost, INetStream
from libp2p.bitswap.pb.bitswap_pb2 import Message
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.utils import read_varint_prefixed_bytes_limited

from legion_p2p.core.cids import CID_BYTES, Cid
from legion_p2p.core.identity import PeerId
from legion_p2p.errors import DecodeError, StoreError
from legion_p2p.net.limits import (
    FRAME_STALL_S,
    MAX_BITSWAP_BATCH_BYTES,
    MAX_BITSWAP_CLIENTS,
    MAX_BITSWAP_SERVED,
    MAX_BITSWAP_WANTS,
    MAX_WANTLIST_BYTES,
    OPEN_TIMEOUT_S,
)

PROTOCOL = TProtocol("/ipfs/bitswap/1.2.0")
CLOSE_S = 1.0  # to end a stream in order; the connection lives on either way

log = logging.getLogger("legion_p2p.net")


class BlockSource(Protocol):
    """Where blocks come from. Both may wait for the disk, and are called on other threads."""

    def get(self, cid: Cid) -> bytes:
        """Raises: StoreError, if it is not there."""

    def size_of(self, cid: Cid) -> int | None:
        """Its bytes; None, if it is not there."""


class Bitswap:
    """Answers what others want."""

    def __init__(self, host: IHost, nursery: trio.Nursery, blocks: BlockSource, report: Callable[[PeerId, str], None]) -> None:
        """`report` is called with peers that break the protocol. Make it before connections are: clients ask once, when they
        connect, which protocols are spoken here.
        """
        self._host = host
        self._nursery = nursery
        self._blocks = blocks
        self._report = report
        self._wants: dict[ID, OrderedDict[Cid, Message.Wantlist.Entry]] = {}
        self._served = trio.CapacityLimiter(MAX_BITSWAP_SERVED)
        self.sent_blocks = 0
        self.sent_bytes = 0
        host.set_stream_handler(PROTOCOL, self._receive)

    async def _receive(self, stream: INetStream) -> None:
        """Read wantlists until the client ends its stream."""
        peer = stream.muxed_conn.peer_id
        try:
            while True:
                with trio.fail_after(FRAME_STALL_S):
                    data = await read_varint_prefixed_bytes_limited(stream, MAX_WANTLIST_BYTES)
                message = Message()
                try:
                    message.ParseFromString(data)
                except Exception as bad:  # protobuf's own kind
                    self._report(PeerId(str(peer)), f"what is no bitswap message: {bad}")
                    return
                self._note(peer, message.wantlist)
        except Exception as ended:  # libp2p raises many kinds, also where a stream ends properly
            log.debug("a bitswap stream of %s ended: %r", peer, ended)
        finally:
            with trio.CancelScope(deadline=trio.current_time() + CLOSE_S, shield=True):
                await stream.close()

    def _note(self, peer: ID, wantlist: Message.Wantlist) -> None:
        wants = self._wants.get(peer)
        if wants is None:
            if len(self._wants) >= MAX_BITSWAP_CLIENTS or not wantlist.entries:
                return
            wants = self._wants[peer] = OrderedDict()
            self._nursery.start_soon(self._answer, peer, wants)
        if wantlist.full:
            wants.clear()
        for entry in wantlist.entries:
            try:
                cid = Cid.from_bytes(entry.block[:CID_BYTES])
            except DecodeError:  # of a kind that is not stored here
                continue
            if entry.cancel:
                wants.pop(cid, None)
            elif len(wants) < MAX_BITSWAP_WANTS or cid in wants:
                wants[cid] = entry
            else:
                self._report(PeerId(str(peer)), f"wants more than {MAX_BITSWAP_WANTS} blocks at once")
                return

    async def _answer(self, peer: ID, wants: OrderedDict[Cid, Message.Wantlist.Entry]) -> None:
        """Send all that `peer` wants, until it wants nothing more."""
        stream: INetStream | None = None
        try:
            async with self._served:
                with trio.fail_after(OPEN_TIMEOUT_S):
                    stream = await self._host.new_stream(peer, [PROTOCOL])
                while wants:
                    message = await trio.to_thread.run_sync(self._next_message, wants)
                    packed = message.SerializeToString()
                    await stream.write(varint.encode(len(packed)) + packed)
                    self.sent_blocks += len(message.payload)
                    self.sent_bytes += len(packed)
        except Exception as failed:
            log.debug("sending blocks to %s: %r", peer, failed)
        finally:
            del self._wants[peer]
            if stream is not None:
                with trio.CancelScope(deadline=trio.current_time() + CLOSE_S, shield=True):
                    try:
                        await stream.close()
                    except Exception as failed:
                        log.debug("closing a bitswap stream: %r", failed)

    def _next_message(self, wants: OrderedDict[Cid, Message.Wantlist.Entry]) -> Message:
        """The answer to as many wants as fit into one message. The list may grow and shrink meanwhile."""
        message, size = Message(), 0
        while wants and size < MAX_BITSWAP_BATCH_BYTES:
            try:
                cid, entry = wants.popitem(last=False)
            except KeyError:
                break
            size += self._add(message, cid, entry)
        return message

    def _add(self, message: Message, cid: Cid, entry: Message.Wantlist.Entry) -> int:
        wants_block = entry.wantType == Message.Wantlist.Block
        try:
            data = self._blocks.get(cid) if wants_block else None
            is_here = wants_block or self._blocks.size_of(cid) is not None
        except StoreError:
            data, is_here = None, False
        if data is not None:
            message.payload.add(prefix=cid.raw[:-32], data=data)
            return len(data) + CID_BYTES
        if is_here or entry.sendDontHave:
            message.blockPresences.add(cid=cid.raw, type=Message.Have if is_here else Message.DontHave)
        return CID_BYTES
