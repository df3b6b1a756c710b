"""Asking members which checkpoints they have: what is shown of their answers, and what of answers that are none."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from legion_p2p.core.cids import Cid
from legion_p2p.core.holders import HoldersFound
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.core.run import run_id
from legion_p2p.core.wire import (
    REQUESTS,
    Blocks,
    Busy,
    Checkpoints,
    GetBlocks,
    GetCheckpoints,
    HasBlocks,
    HeldBlocks,
    Message,
    decode_with,
    decoder_of,
    encode,
)
from legion_p2p.errors import UnreachableError
from legion_p2p.services.checkpoint.holders import MAX_ASKED, CheckpointHolders
from legion_p2p.store.blocks import BlockStore
from tests.checkpoint_of import checkpointed
from tests.context_of import context_of

ONE, OTHER = PeerId("peer-1"), PeerId("peer-2")
Answer = Callable[[Message], Message]


class Answering:
    """The messenger of a peer whose members answer like this."""

    def __init__(self, answers: dict[PeerId, Answer]) -> None:
        self.answers = answers
        self.asked: list[tuple[PeerId, Message]] = []
        self.reported: list[PeerId] = []

    async def request(self, peer: PeerId, body: Any, *_: Any) -> bytes:
        request = decode_with(decoder_of(REQUESTS), bytes(body), "request")
        self.asked.append((peer, request))
        if peer not in self.answers:
            raise UnreachableError(peer, "it is gone")
        return bytes(encode(self.answers[peer](request)))

    def report(self, peer: PeerId, reason: str) -> None:
        self.reported.append(peer)


def answering(cid: Cid, manifest: bytes, sizes: tuple[int, ...] = (), n_bytes: int = 500) -> Answer:
    """A member that has this checkpoint, and blocks of these sizes."""

    def answer(request: Message) -> Message:
        match request:
            case GetCheckpoints():
                return Checkpoints((cid.raw,), (n_bytes,))
            case HasBlocks(cids):
                return HeldBlocks(sizes or (0,) * len(cids))
            case GetBlocks():
                return Blocks((manifest,)) if manifest else Busy(1000)
        raise AssertionError(request)

    return answer


class Look:
    """A run with a checkpoint, and a peer that asks for holders of it."""

    def __init__(self, store: BlockStore) -> None:
        run, self.cid = checkpointed(store)
        self.manifest = store.get(self.cid)
        self.run = run_id(run.signed)
        self.messenger = Answering({})

    async def at(self, answers: dict[PeerId, Answer], blocks: tuple[Cid, ...] = (), known: tuple[Cid, ...] = ()) -> HoldersFound:
        self.messenger = Answering(answers)
        ctx = context_of(Identity(b"m" * 32), self.messenger, run=self.run)  # type: ignore[arg-type]
        others = [SimpleNamespace(peer_id=peer, ready=True) for peer in answers]
        members: Any = SimpleNamespace(roster=SimpleNamespace(others=lambda: others))
        return await CheckpointHolders(ctx, members).look(blocks, known)


@pytest.fixture
def look(tmp_path: Path):
    with BlockStore(tmp_path / "store") as store:
        yield Look(store)


async def test_it_is_shown_who_has_a_checkpoint_how_large_it_is_and_where_it_comes_from(look: Look) -> None:
    answers = {ONE: answering(look.cid, look.manifest, n_bytes=500), OTHER: answering(look.cid, look.manifest, n_bytes=700)}

    found = await look.at(answers)

    assert (found.n_asked, found.n_answered) == (2, 2) and found.named == {look.cid: (ONE, OTHER)}
    assert found.origins[look.cid].step == 10 and set(found.origins) == {look.cid}
    assert found.claimed_bytes == {look.cid: 700} and found.shares == {}


async def test_a_checkpoint_that_is_here_is_not_fetched_again(look: Look) -> None:
    found = await look.at({ONE: answering(look.cid, look.manifest)}, known=(look.cid,))

    assert found.origins == {} and not any(isinstance(request, GetBlocks) for _, request in look.messenger.asked)


async def test_the_share_of_the_blocks_that_a_member_has_is_told(look: Look) -> None:
    blocks = tuple(Cid.of(bytes([i])) for i in range(4))

    found = await look.at({ONE: answering(look.cid, look.manifest, sizes=(9, 0, 9, 9))}, blocks)

    assert found.shares == {ONE: 0.75}


async def test_members_that_do_not_answer_are_left_out_and_no_more_than_some_are_asked(look: Look) -> None:
    answers = {PeerId(f"peer-{n}"): answering(look.cid, look.manifest) for n in range(MAX_ASKED + 4)}
    found = await look.at(answers)
    assert found.n_asked == found.n_answered == MAX_ASKED

    look.messenger = Answering({})
    ctx = context_of(Identity(b"m" * 32), look.messenger, run=look.run)  # type: ignore[arg-type]
    gone: Any = SimpleNamespace(roster=SimpleNamespace(others=lambda: [SimpleNamespace(peer_id=ONE, ready=True)]))
    nothing = await CheckpointHolders(ctx, gone).look(())

    assert (nothing.n_asked, nothing.n_answered, nothing.named) == (1, 0, {})


@pytest.mark.parametrize("manifest", [b"other bytes than its name says", b""])
async def test_a_block_that_is_not_the_checkpoint_tells_nothing(look: Look, manifest: bytes) -> None:
    found = await look.at({ONE: answering(look.cid, manifest)})

    assert found.origins == {} and found.named == {look.cid: (ONE,)}
    assert look.messenger.reported == ([ONE] if manifest else [])  # one that is busy is not to blame


async def test_a_checkpoint_of_another_run_is_reported(look: Look) -> None:
    look.run = str(Cid.of(b"another run"))

    found = await look.at({ONE: answering(look.cid, look.manifest)})

    assert found.origins == {} and look.messenger.reported == [ONE]
