"""What the commands of `legion-ctl checkpoint` share: the block store that they open, and the CIDs that they are given."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from legion_p2p.errors import LegionError, UsageError
from legion_p2p.files.paths import user_data_folder, user_path

if TYPE_CHECKING:
    from legion_p2p.core.cids import Cid
    from legion_p2p.store.blocks import BlockStore

CidText = Annotated[str, Parameter(help="The checkpoint's CID.")]
StoreOption = Annotated[
    str, Parameter(metavar="DIR", help="Folder of the block store. [default: store in the user's data folder]")
]
NewStoreOption = Annotated[
    str, Parameter(metavar="DIR", help="Folder of the block store, made on first use. [default: store in the user's data folder]")
]
AsJson = Annotated[bool, Parameter(negative=(), help="Print the result as one line of JSON, and show no progress.")]


@contextlib.contextmanager
def opened_store(folder: str, *, writing: bool = False) -> "Iterator[BlockStore]":
    from legion_p2p.store.blocks import BlockStore

    path = user_path(folder) if folder else user_data_folder() / "store"
    with BlockStore(path, read_only=not writing) as blocks:
        yield blocks


def cid_of(text: str) -> "Cid":
    from legion_p2p.core.cids import Cid

    try:
        return Cid.parse(text.strip().removeprefix("ipfs://").removeprefix("/ipfs/"))
    except LegionError as bad:
        raise UsageError(f"{bad}; legion-ctl checkpoint list shows those of checkpoints") from bad
