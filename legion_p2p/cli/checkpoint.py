"""legion-ctl checkpoint: look into a block store, check and compare what is in it.

All of them but `fetch` work on files alone and need no running peer. A running peer may go on meanwhile, except beside those that
write: `import` and `fetch` (checkpoint_files.py) and `pull` (checkpoint_buckets.py)."""

from typing import TYPE_CHECKING, Any

from cyclopts import App

from legion_p2p.cli import checkpoint_buckets, checkpoint_files
from legion_p2p.cli.block_store import AsJson, CidText, StoreOption, cid_of, opened_store
from legion_p2p.cli.failures import DONE, FAILED
from legion_p2p.cli.output import print_json, print_table, progress_bar, table_of
from legion_p2p.errors import DecodeError, IncompatibleModelError, StoreError

if TYPE_CHECKING:
    from legion_p2p.core.cids import Cid
    from legion_p2p.store.blocks import BlockStore

MOST_CHANGED = 10  # parameters that `diff` lists
SHOWN_PROBLEMS = 20  # that `verify` lists; --json has all

checkpoint = App(name="checkpoint", help="List, check, export, import and compare the checkpoints in a block store.")
checkpoint.command(checkpoint_files.export)
checkpoint.command(checkpoint_files.import_, name="import")
checkpoint.command(checkpoint_files.fetch)
checkpoint.command(checkpoint_buckets.push)
checkpoint.command(checkpoint_buckets.pull)


@checkpoint.command(name="list")
def list_(*, store: StoreOption = "", json: AsJson = False) -> int:
    """List the checkpoints in the store, the newest first.

    Example: legion-ctl checkpoint list
    """
    from legion_p2p.observe.human import bytes_text, clean, short_id, whole_text
    from legion_p2p.store.checkpoint_summary import summarize
    from legion_p2p.store.checkpoints import find_manifests

    found = []
    with opened_store(store) as blocks:
        manifests = find_manifests(blocks)
        with progress_bar("looking for blocks", len(manifests), json) as progress:
            for cid, manifest in manifests.items():
                found.append(summarize(blocks, cid, manifest))
                progress(1)
    if json:
        return print_json(found)
    if not found:
        print(f"there is no checkpoint in {blocks.path}")
        return DONE
    for one in found:
        name = clean(one.run_name) if one.run_name is not None else "run"
        run = f"{name} ..{short_id(one.run)}"  # two runs may have one name
        parts = [
            run, f"step {whole_text(one.step)}", f"{whole_text(one.n_shards)} shards", bytes_text(one.stored_bytes),
            f"by ..{short_id(one.publisher)}, {_date_text(one.created_s)}",
        ]  # fmt: skip
        if one.n_missing:
            parts.append(f"{whole_text(one.n_missing)} blocks missing")
        if one.label is not None:
            parts.append(f"pinned{': ' * bool(one.label)}{clean(one.label)}")
        print(f"{one.cid}\n  {', '.join(parts)}")
    return DONE


@checkpoint.command
def show(cid: CidText, /, *, store: StoreOption = "", json: AsJson = False) -> int:
    """Show what a checkpoint records about itself and its shards."""
    from legion_p2p.observe.human import bytes_text, clean, whole_text
    from legion_p2p.store.checkpoint_summary import summarize, summarize_shards
    from legion_p2p.store.checkpoints import get_manifest

    root = cid_of(cid)
    with opened_store(store) as blocks:
        manifest = get_manifest(blocks, root)
        with progress_bar("looking at shards", len(manifest.shards), json) as progress:
            one, shards = summarize(blocks, root, manifest), summarize_shards(blocks, manifest, progress)
    if json:
        return print_json({"checkpoint": one, "state": {k: _plain(v) for k, v in manifest.state.items()}, "shards": shards})
    lines = {
        "checkpoint": one.cid, "run": f"{one.run}  {clean(one.run_name or '(its specification is not here)')}",
        "step": whole_text(one.step), "published by": f"{one.publisher}, {_date_text(one.created_s)}",
        "before it": one.parent or "-", "pinned as": "not pinned" if one.label is None else clean(one.label) or "-",
        "blocks": f"{whole_text(one.n_blocks)} here, {bytes_text(one.stored_bytes)}; {whole_text(one.n_missing)} missing",
        "state": clean(", ".join(f"{k}={_plain(v)}" for k, v in manifest.state.items()), 300) or "-",
    }  # fmt: skip
    for name, text in lines.items():
        print(f"{name:<13} {text}")
    table = table_of("shard", "version", "base", "updates since", "base bytes", "log bytes", "digest")
    for shard in shards:
        table.add_row(
            str(shard.shard), whole_text(shard.version), whole_text(shard.base_version),
            whole_text(shard.version - shard.base_version), bytes_text(shard.base_bytes), bytes_text(shard.log_bytes),
            shard.digest[:16],
        )  # fmt: skip
    print_table(table)
    return DONE


@checkpoint.command
def verify(cid: CidText, /, *, store: StoreOption = "", json: AsJson = False) -> int:
    """Read every block of a checkpoint, rebuild its parameters, and check signatures, updates and digests. Prints what is

    wrong and exits with 1 if anything is.
    """
    from legion_p2p.observe.human import bytes_text, clean, whole_text
    from legion_p2p.store.checkpoint_summary import blocks_of, damage_of
    from legion_p2p.store.checkpoints import get_manifest

    root = cid_of(cid)
    with opened_store(store) as blocks:
        get_manifest(blocks, root)
        here = blocks_of(blocks, root)
        n_blocks, n_bytes = len(here), sum(here.values())
        with progress_bar("reading blocks", n_bytes, json) as progress:
            problems = damage_of(blocks, root, progress)
        if not problems:
            problems = _misfits(blocks, root, json)
    if json:
        print_json({"cid": str(root), "ok": not problems, "n_blocks": n_blocks, "n_bytes": n_bytes, "problems": problems})
    elif problems:
        print(f"{root} is damaged or incomplete:")
        for problem in problems[:SHOWN_PROBLEMS]:
            print(f"  {clean(problem)}")
        if len(problems) > SHOWN_PROBLEMS:
            print(f"  and {len(problems) - SHOWN_PROBLEMS} more")
    else:
        print(f"{root} is whole: {whole_text(n_blocks)} blocks, {bytes_text(n_bytes)}")
    return FAILED if problems else DONE


@checkpoint.command
def diff(a: str, b: str, /, *, store: StoreOption = "", json: AsJson = False) -> int:
    """Compare two checkpoints of one run: shards, blocks, and how far the parameters moved from A to B.

    Parameters
    ----------
    a
        CID of the first.
    b
        CID of the second.
    """
    from legion_p2p.observe.human import bytes_text, clean, whole_text
    from legion_p2p.store.checkpoint_summary import blocks_of
    from legion_p2p.train.checkpoint import Checkpoint, changes_between

    roots = cid_of(a), cid_of(b)
    with opened_store(store) as blocks:
        first, second = (Checkpoint(blocks, root) for root in roots)
        if first.spec.params != second.spec.params:
            raise IncompatibleModelError(f"{a} and {b} have different parameters: they cannot be compared")
        pairs = list(zip(first.manifest.shards, second.manifest.shards, strict=False))
        in_a, in_b = blocks_of(blocks, first.cid), blocks_of(blocks, second.cid)
        with progress_bar("comparing", first.plan.numel, json) as progress:
            changes = changes_between(first, second, progress)
    shared_bytes = sum(in_a[cid] for cid in in_a.keys() & in_b.keys())
    only_a_bytes = sum(in_a[cid] for cid in in_a.keys() - in_b.keys())
    only_b_bytes = sum(in_b[cid] for cid in in_b.keys() - in_a.keys())
    result = {
        "same_run": first.manifest.run == second.manifest.run, "steps": second.manifest.step - first.manifest.step,
        "n_shards": len(pairs), "n_shards_changed": sum(x != y for x, y in pairs),
        "shared_bytes": shared_bytes, "only_a_bytes": only_a_bytes, "only_b_bytes": only_b_bytes, "parameters": changes,
    }  # fmt: skip
    if json:
        return print_json(result)
    print(f"{result['steps']:+,} steps; {result['n_shards_changed']} of {result['n_shards']} shards differ")
    print(
        f"blocks: {bytes_text(shared_bytes)} in both, {bytes_text(only_a_bytes)} only in A, {bytes_text(only_b_bytes)} only in B"
    )
    moved = sorted((one for one in changes if one.changed), key=lambda one: one.relative, reverse=True)
    print(f"parameters: {whole_text(len(moved))} of {whole_text(len(changes))} differ")
    if moved:
        table = table_of("parameter", "elements that differ", "|B - A| / |A|", "largest change")
        for one in moved[:MOST_CHANGED]:
            table.add_row(clean(one.name), f"{one.changed:,} of {one.numel:,}", f"{one.relative:.3g}", f"{one.largest:.3g}")
        print_table(table)
    return DONE


def _misfits(blocks: "BlockStore", root: "Cid", quiet: bool) -> list[str]:
    """What is inconsistent, where all blocks are whole."""
    from legion_p2p.store.checkpoints import get_manifest, get_spec
    from legion_p2p.train.checkpoint_tools import misfits_of

    try:
        numel = get_spec(blocks, get_manifest(blocks, root))[1].plan().numel
    except (DecodeError, StoreError) as bad:
        return [str(bad)]
    with progress_bar("applying updates", numel, quiet) as progress:
        return misfits_of(blocks, root, progress)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, int | float | str) else str(value)  # a link


def _date_text(at: int) -> str:
    import time

    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
    except (OverflowError, ValueError, OSError):  # whatever a publisher's clock said
        return "-"
