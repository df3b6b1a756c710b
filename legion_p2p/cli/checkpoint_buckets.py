"""Checkpoints in a bucket: a place that many can read, such as object storage, a hub, or a folder on a share.

`pull` writes to the store: no peer may use it meanwhile.
"""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from legion_p2p.cli.block_store import AsJson, NewStoreOption, StoreOption, cid_of, opened_store
from legion_p2p.cli.failures import DONE, FAILED
from legion_p2p.cli.output import print_json, progress_bar
from legion_p2p.errors import MissingBlockError, StoreError, UsageError
from legion_p2p.files.paths import shown

if TYPE_CHECKING:
    from legion_p2p.core.cids import Cid
    from legion_p2p.store.blocks import BlockStore

DEFAULT_MAX_GB = 20.0  # as a peer's store
SHOWN_PROBLEMS = 5

UrlText = Annotated[str, Parameter(help="Where: hf://, s3://, gs://, az://, file:// or memory://, and a folder's path there.")]
RunText = Annotated[str, Parameter(metavar="ID", help="Id of the run, where there are checkpoints of several.")]


def push(
    url: UrlText, cid: Annotated[str, Parameter(help="The checkpoint's CID. [default: the newest]")] = "", /, *,
    run: RunText = "", store: StoreOption = "", json: AsJson = False,
) -> int:  # fmt: skip
    """Copy a checkpoint into a bucket, from which anyone can pull it. Blocks that are already there are not written again.

    Example: legion-ctl checkpoint push s3://my-bucket/my-run
    """
    from legion_p2p.observe.human import bytes_text, whole_text
    from legion_p2p.store.bucket import Bucket
    from legion_p2p.store.checkpoint_summary import blocks_of

    bucket = Bucket(url)
    with opened_store(store) as blocks:
        root = cid_of(cid) if cid else _newest_here(blocks, run)
        with progress_bar("writing blocks", sum(blocks_of(blocks, root).values()), json) as progress:
            pushed = bucket.push(blocks, root, "pushed", progress)
    if json:
        return print_json({"cid": str(root), "pushed": pushed})
    print(
        f"{root} is in {bucket.name}: {whole_text(pushed.n_blocks)} blocks, {bytes_text(pushed.n_bytes)} written; "
        f"{whole_text(pushed.n_had)} were there before"
    )
    return DONE


def pull(
    url: UrlText, cid: Annotated[str, Parameter(help="The checkpoint's CID. [default: the newest there]")] = "", /, *,
    run: RunText = "", max_gb: Annotated[float, Parameter(metavar="GB")] = DEFAULT_MAX_GB,
    store: NewStoreOption = "", json: AsJson = False,
) -> int:  # fmt: skip
    """Fetch a checkpoint from a bucket. Every block is checked against its CID. Blocks that are already in the store are not
    fetched again.

    Exits with 1 if blocks are missing from the bucket or damaged there; `fetch` gets those from peers.

    Example: legion-ctl checkpoint pull s3://my-bucket/my-run

    Parameters
    ----------
    max_gb
        Give up if it is larger than this, because anyone who can write to the bucket decides its size.
    """
    from legion_p2p.observe.human import bytes_text, whole_text
    from legion_p2p.store.bucket import Bucket

    if not 0 < max_gb < 1e9:
        raise UsageError(f"--max-gb {max_gb}: must be more than 0")
    bucket = Bucket(url)
    if not bucket.check():
        raise StoreError(f"there is no block store in {bucket.name}: legion-ctl checkpoint push makes one")
    root = cid_of(cid) if cid else _newest_in(bucket.newest(run), bucket.name, run)
    with (
        opened_store(store, writing=True) as blocks,
        blocks.hold(),
        progress_bar("fetching blocks", None, json, "bytes") as progress,
    ):
        had = root in blocks.pins()
        blocks.pin(
            root, f"pulled from {bucket.name}"[:100]
        )  # before its blocks are here: what a pull that is stopped has got stays
        pulled = bucket.pull(blocks, root, round(max_gb * 1e9), progress)
        if str(root) in pulled.missing and not had:
            blocks.unpin(root)
            raise MissingBlockError(str(root), f"it is not in {bucket.name}")
    problems = [f"{one} is missing there" for one in pulled.missing] + [f"{one} is damaged there" for one in pulled.damaged]
    if json:
        print_json({"cid": str(root), "pulled": pulled})
    elif problems:
        print("\n".join(f"block {problem}" for problem in problems[:SHOWN_PROBLEMS]))
        more = len(problems) - SHOWN_PROBLEMS
        print((f"and {more} more; " if more > 0 else "") + f"legion-ctl checkpoint fetch {root} gets them from peers")
    else:
        print(
            f"{root} is here: {whole_text(pulled.n_blocks)} blocks, {bytes_text(pulled.n_bytes)} from {bucket.name}; "
            f"{whole_text(pulled.n_had)} blocks were here before"
        )
    return FAILED if problems else DONE


def _newest_here(blocks: "BlockStore", run: str) -> "Cid":
    from legion_p2p.store.checkpoints import find_manifests

    found = [(cid, manifest) for cid, manifest in find_manifests(blocks).items() if run in ("", str(manifest.run))]
    runs = sorted({str(manifest.run) for _, manifest in found})
    if len(runs) > 1:
        raise UsageError(f"the store has checkpoints of {len(runs)} runs: give a CID, or --run with one of {', '.join(runs)}")
    return _newest_in(found[0] if found else None, shown(blocks.path), run)


def _newest_in(found: "tuple[Cid, object] | None", where: str, run: str) -> "Cid":
    if found is None:
        raise StoreError(f"there is no checkpoint{f' of run {run}' * bool(run)} in {where}")
    return found[0]
