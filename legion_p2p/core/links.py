"""Following the links between blocks: all that is below a root, and all that some roots need."""

from collections.abc import Callable, Iterable, Iterator

from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.manifest import links_of
from legion_p2p.errors import DecodeError, MissingBlockError

MAX_DAG_BLOCKS = 1 << 20  # below one root: the manifest of a model of 34 billion parameters has half a million

Get = Callable[[Cid], bytes]
OnMissing = Callable[[MissingBlockError], None]


def walk(get: Get, root: Cid, on_missing: OnMissing | None = None) -> Iterator[tuple[Cid, bytes]]:
    """`root` and all that it links to, each block once, a node before what it links to.

    Raises: MissingBlockError, unless `on_missing` takes it; DecodeError, if a node is none or there are too many blocks.
    """
    seen = {root}
    waiting = [root]
    while waiting:
        cid = waiting.pop()
        try:
            data = get(cid)
        except MissingBlockError as missing:
            if on_missing is None:
                raise
            on_missing(missing)
            continue
        yield cid, data
        if cid.codec == DAG_CBOR:
            fresh = [link for link in links_of(data) if link not in seen]
            seen.update(fresh)
            waiting.extend(reversed(fresh))
            if len(seen) > MAX_DAG_BLOCKS:
                raise DecodeError(f"more than {MAX_DAG_BLOCKS} blocks below {root}")


def needed_by(
    get: Get, roots: Iterable[Cid], on_missing: Callable[[Cid], None] | None = None, *, skips_broken: bool = False
) -> set[Cid]:
    """All that is needed for `roots`. Reads the nodes only: leaves link to nothing.

    `on_missing` gets each node that is not there, and may raise; what such a node links to is left out. `skips_broken`: so is
    what a node links to that is none. Raises: DecodeError, if one is, otherwise.
    """
    needed = set(roots)
    waiting = [cid for cid in needed if cid.codec == DAG_CBOR]
    while waiting:
        cid = waiting.pop()
        try:
            links = links_of(get(cid))
        except MissingBlockError:
            if on_missing is not None:
                on_missing(cid)
            continue
        except DecodeError:
            if not skips_broken:
                raise
            continue
        fresh = {link for link in links if link not in needed}
        needed |= fresh
        waiting.extend(link for link in fresh if link.codec == DAG_CBOR)
    return needed
