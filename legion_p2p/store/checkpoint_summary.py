"""What a stored checkpoint is and how much of it is here, without reading its leaves."""

import shlex
from collections.abc import Callable, Sequence

import msgspec

from legion_p2p.core.cids import DAG_CBOR, Cid
from legion_p2p.core.links import needed_by
from legion_p2p.core.manifest import Manifest
from legion_p2p.errors import DecodeError, MissingBlockError
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoints import get_base, get_manifest, get_shard, get_spec


class ShardSummary(msgspec.Struct, frozen=True):
    """A shard of a checkpoint. Bytes are as stored: compressed."""

    shard: int
    version: int
    digest: str
    base_version: int
    base_bytes: int
    log_bytes: int


class Summary(msgspec.Struct, frozen=True):
    """A checkpoint."""

    cid: str
    run: str
    run_name: str | None
    """None where the run's specification is not here."""
    step: int
    created_s: int
    publisher: str
    parent: str
    label: str | None
    """Of its pin; None: it is not pinned."""
    n_shards: int
    n_blocks: int
    """That are here."""
    stored_bytes: int
    n_missing: int
    """Of those that are known: what a missing node links to is not."""


def summarize(store: BlockStore, cid: Cid, manifest: Manifest | None = None) -> Summary:
    """Raises: MissingBlockError; DecodeError; SignatureError."""
    manifest = manifest or get_manifest(store, cid)
    try:
        name = get_spec(store, manifest)[1].name
    except (MissingBlockError, DecodeError):
        name = None
    n_blocks = stored_bytes = n_missing = 0
    for found in needed_by(store.get, [cid]):
        size = store.size_of(found)
        if size is None:
            n_missing += 1
        else:
            n_blocks, stored_bytes = n_blocks + 1, stored_bytes + size
    return Summary(
        str(cid), str(manifest.run), name, manifest.step, manifest.created_s, manifest.publisher, manifest.parent,
        store.pins().get(cid), len(manifest.shards), n_blocks, stored_bytes, n_missing,
    )  # fmt: skip


MAX_LOSSES_TOLD = 3  # checkpoints in one message; legion-ctl checkpoint list has all


class Loss(msgspec.Struct, frozen=True):
    """A pinned checkpoint of which blocks are missing."""

    cid: str
    step: int | None
    """None where its manifest is missing."""
    n_missing: int
    """At least: what a missing node links to is not known."""


def losses(store: BlockStore, run: str) -> list[Loss]:
    """The pinned checkpoints of the run of this name or id that are not whole, the newest first.

    One that does not say of which run it is, because its manifest or its specification is missing, counts as well.
    """
    found = []
    for cid in store.pins():
        if cid.codec != DAG_CBOR:
            continue
        try:
            one = summarize(store, cid)
        except MissingBlockError:
            found.append(Loss(str(cid), None, 1))
        except DecodeError:  # another graph, which somebody else pinned
            continue
        else:
            is_meant = one.run_name is None or run in (one.run, one.run_name)
            if one.n_missing and is_meant:
                found.append(Loss(one.cid, one.step, one.n_missing))
    return sorted(found, key=lambda loss: (-1 if loss.step is None else -loss.step, loss.cid))


def losses_text(found: Sequence[Loss], folder: str) -> str:
    """Which checkpoints a store lacks blocks of, and what to do; empty where nothing is lost."""
    if not found:
        return ""
    told = ", ".join(
        f"{loss.cid}{f' of step {loss.step}' if loss.step is not None else ''} lacks {loss.n_missing} "
        f"block{'s' * (loss.n_missing != 1)} or more"
        for loss in found[:MAX_LOSSES_TOLD]
    )
    more = f", and {len(found) - MAX_LOSSES_TOLD} more" if len(found) > MAX_LOSSES_TOLD else ""
    return (
        f"the store {folder} holds no whole checkpoint of it: {told}{more}; fetch one from peers that have it: "
        f"legion-ctl checkpoint fetch {found[0].cid} --store {shlex.quote(folder)} --initial-peers ADDR"
    )


def summarize_shards(store: BlockStore, manifest: Manifest, progress: Callable[[int], None]) -> list[ShardSummary]:
    """Those that are here; `progress` is called for each. Raises: DecodeError."""
    found = []
    for cid in manifest.shards:
        progress(1)
        try:
            state = get_shard(store, cid)
            base = get_base(store, state.base)
        except MissingBlockError:
            continue
        base_bytes = sum(store.size_of(leaf) or 0 for leaf in base.leaves)
        log_bytes = sum(store.size_of(leaf) or 0 for leaves in state.log for leaf in leaves)
        found.append(ShardSummary(state.shard, state.version, state.digest.hex(), base.version, base_bytes, log_bytes))
    return found


def blocks_of(store: BlockStore, root: Cid) -> dict[Cid, int]:
    """Every block of a checkpoint that is here, and its bytes."""
    return {cid: size for cid in needed_by(store.get, [root]) if (size := store.size_of(cid)) is not None}


def damage_of(store: BlockStore, root: Cid, progress: Callable[[int], None]) -> list[str]:
    """Which blocks of a checkpoint are missing, or not whole. Reads all of them; `progress` is told the bytes of each."""
    problems: list[str] = []
    try:
        for _, data in store.walk(root, on_missing=lambda missing: problems.append(str(missing))):
            progress(len(data))
    except DecodeError as bad:
        problems.append(str(bad))
    return problems
