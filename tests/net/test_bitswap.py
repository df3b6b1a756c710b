"""Blocks over bitswap: what a client of IPFS gets for what it asks, and what a stranger cannot do with it.

That a real client of IPFS understands it is shown in tests/e2e/test_ipfs.py.
"""

from contextlib import asynccontextmanager

import trio
import varint
from libp2p.bitswap.pb.bitswap_pb2 import Message
from libp2p.peer.id import ID
from libp2p.utils import read_varint_prefixed_bytes_limited

from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.errors import MissingBlockError
from legion_p2p.net.bitswap import PROTOCOL
from legion_p2p.net.limits import MAX_BITSWAP_WANTS, MAX_WANTLIST_BYTES
from tests.net.conftest import eventually, opened

HAVE, BLOCK = Message.Wantlist.Have, Message.Wantlist.Block
HERE = [bytes([i]) * 300_000 for i in range(9)]
GONE = Cid.of(b"gone")


class Shelf:
    """Blocks in memory."""

    def __init__(self, *blocks: bytes) -> None:
        self._blocks = {Cid.of(data): data for data in blocks}

    def get(self, cid: Cid) -> bytes:
        if cid not in self._blocks:
            raise MissingBlockError(str(cid), "it is not here")
        return self._blocks[cid]

    def size_of(self, cid: Cid) -> int | None:
        return len(self._blocks[cid]) if cid in self._blocks else None


class Client:
    """Speaks bitswap as go and js do: asks on a stream of its own, and is answered on one that the other side opens."""

    def __init__(self, host, peer: ID) -> None:
        self._host = host
        self._peer = peer
        self.blocks: dict[Cid, bytes] = {}
        self.presences: dict[Cid, int] = {}
        self.n_messages = 0
        host.set_stream_handler(PROTOCOL, self._receive)

    async def _receive(self, stream) -> None:
        while True:
            message = Message()
            message.ParseFromString(await read_varint_prefixed_bytes_limited(stream, 4 << 20))
            self.n_messages += 1
            for block in message.payload:
                cid = Cid.of(block.data)
                assert block.prefix == cid.raw[:-32]
                self.blocks[cid] = block.data
            for presence in message.blockPresences:
                self.presences[Cid.from_bytes(presence.cid)] = presence.type

    async def send(self, packed: bytes) -> None:
        stream = await self._host.new_stream(self._peer, [PROTOCOL])
        await stream.write(packed)
        await stream.close()

    async def want(self, *wants: tuple[Cid, int], full: bool = False, cancel: bool = False, tell: bool = True) -> None:
        message = Message()
        message.wantlist.full = full
        for cid, kind in wants:
            message.wantlist.entries.add(block=cid.raw, wantType=kind, cancel=cancel, sendDontHave=tell, priority=1)
        packed = message.SerializeToString()
        await self.send(varint.encode(len(packed)) + packed)


@asynccontextmanager
async def served(*blocks: bytes):
    """A peer with these blocks, a client of it, and what the peer reports of the client."""
    async with opened(blocks=Shelf(*blocks)) as peer, opened(of=peer) as other:
        reports: list[str] = []
        peer.bitswap._report = lambda _, misbehaviour: reports.append(misbehaviour)
        yield peer, Client(other._host, ID.from_base58(peer.peer_id)), reports


async def test_blocks_come_in_messages_that_every_client_takes() -> None:
    async with served(*HERE) as (peer, client, reports):
        await client.want(*((Cid.of(data), BLOCK) for data in HERE))

        await eventually(lambda: len(client.blocks) == 9)
        assert list(client.blocks.values()) == HERE
        assert 3 <= client.n_messages <= 4 and not client.presences and not reports
        await eventually(lambda: peer.bitswap.sent_blocks == 9)
        assert peer.bitswap.sent_bytes > sum(map(len, HERE))


async def test_who_asks_whether_is_told_whether() -> None:
    async with served(b"here") as (_, client, _):
        await client.want((Cid.of(b"here"), HAVE), (GONE, HAVE))
        await client.want((Cid.of(b"gone too"), BLOCK))

        await eventually(lambda: len(client.presences) == 3)
        assert client.presences == {
            Cid.of(b"here"): Message.Have, GONE: Message.DontHave, Cid.of(b"gone too"): Message.DontHave
        }  # fmt: skip
        assert not client.blocks


async def test_who_does_not_ask_to_be_told_what_is_missing_is_not() -> None:
    async with served(b"here") as (_, client, _):
        await client.want((GONE, BLOCK), tell=False)
        await client.want((Cid.of(b"here"), BLOCK))

        await eventually(lambda: client.blocks)
        assert not client.presences


async def test_a_want_that_is_cancelled_or_no_longer_listed_is_forgotten() -> None:
    async with served(*HERE) as (peer, client, _):
        async with peer.bitswap._served:
            for _ in range(peer.bitswap._served.total_tokens - 1):
                peer.bitswap._served.acquire_on_behalf_of_nowait(object())
            await client.want((Cid.of(HERE[0]), BLOCK), (Cid.of(HERE[1]), BLOCK))
            (wants,) = await _wants_of(peer, 2)
            await client.want((Cid.of(HERE[0]), BLOCK), cancel=True)
            await eventually(lambda: list(wants) == [Cid.of(HERE[1])])
            await client.want((Cid.of(HERE[2]), BLOCK), full=True)
            await eventually(lambda: list(wants) == [Cid.of(HERE[2])])

        await eventually(lambda: client.blocks)
        assert list(client.blocks) == [Cid.of(HERE[2])]


async def test_blocks_of_kinds_that_are_not_kept_here_are_passed_over() -> None:
    async with served(b"here") as (_, client, reports):
        message = Message()
        message.wantlist.entries.add(block=b"\x12\x20" + bytes(32), sendDontHave=True)  # a CIDv0
        message.wantlist.entries.add(block=b"")
        message.wantlist.entries.add(block=Cid.of(b"here").raw)
        packed = message.SerializeToString()
        await client.send(varint.encode(len(packed)) + packed)

        await eventually(lambda: client.blocks)
        assert not reports


async def test_who_wants_without_end_is_reported_and_served_within_bounds() -> None:
    async with served(b"here") as (peer, client, reports):
        async with peer.bitswap._served:
            for _ in range(peer.bitswap._served.total_tokens - 1):
                peer.bitswap._served.acquire_on_behalf_of_nowait(object())
            wants = [(Cid.of(str(i).encode(), DAG_CBOR), BLOCK) for i in range(MAX_BITSWAP_WANTS + 1)]
            for at in range(0, len(wants), 2000):
                await client.want(*wants[at : at + 2000])
            await eventually(lambda: reports)
            (queued,) = peer.bitswap._wants.values()
            assert len(queued) <= MAX_BITSWAP_WANTS
        assert "wants more than" in reports[0]


async def test_garbage_ends_its_stream_and_nothing_else() -> None:
    async with served(b"here") as (_, client, reports):
        await client.send(varint.encode(5) + b"\xff" * 5)
        await client.send(varint.encode(MAX_WANTLIST_BYTES + 1) + bytes(1000))
        await client.send(b"\xff" * 100)
        await client.send(b"")
        await client.want((Cid.of(b"here"), BLOCK))

        await eventually(lambda: client.blocks)
        await eventually(lambda: reports)
        assert "no bitswap message" in reports[0]


async def test_a_client_that_takes_nothing_does_not_keep_others_waiting() -> None:
    async with opened(blocks=Shelf(*HERE)) as peer, opened(of=peer) as deaf, opened(of=peer) as other:
        silent = Client(deaf._host, ID.from_base58(peer.peer_id))
        deaf._host.set_stream_handler(PROTOCOL, _never_reads)
        client = Client(other._host, ID.from_base58(peer.peer_id))

        await silent.want(*((Cid.of(data), BLOCK) for data in HERE))
        await client.want((Cid.of(HERE[0]), BLOCK))

        await eventually(lambda: client.blocks)


async def _never_reads(_stream) -> None:
    await trio.sleep_forever()


async def _wants_of(peer, n: int) -> list:
    await eventually(lambda: [len(wants) for wants in peer.bitswap._wants.values()] == [n])
    return list(peer.bitswap._wants.values())
