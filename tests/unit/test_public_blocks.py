"""Which blocks a client of IPFS gets."""

import pytest

from legion_p2p.core.cids import Cid
from legion_p2p.errors import MissingBlockError
from legion_p2p.store.public_blocks import PublicBlocks

BLOCK = b"block"


class Shelf:
    def get(self, cid: Cid) -> bytes:
        assert cid == Cid.of(BLOCK)
        return BLOCK

    def size_of(self, cid: Cid) -> int | None:
        return len(BLOCK)


def test_nothing_is_given_before_the_run_is_known_to_be_open() -> None:
    blocks = PublicBlocks(Shelf())

    assert blocks.size_of(Cid.of(BLOCK)) is None
    with pytest.raises(MissingBlockError):
        blocks.get(Cid.of(BLOCK))


def test_in_an_open_run_everybody_gets_what_is_there() -> None:
    blocks = PublicBlocks(Shelf())
    blocks.is_open = True

    assert blocks.get(Cid.of(BLOCK)) == BLOCK and blocks.size_of(Cid.of(BLOCK)) == len(BLOCK)
