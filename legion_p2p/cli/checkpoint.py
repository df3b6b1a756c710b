"""legion-ctl checkpoint: look into a block store, take checkpoints out of it, and put them in.

Works on the files alone, except for `fetch`; no peer has to run, and one that does may go on meanwhile, except for `import` and
`fetch`, which write.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from legion_p2p.cli.common import addresses_of_peers
from legion_p2p.cli.failures import DONE, FAILED
from legion_p2p.cli.output import is_stdout, print_json, print_table, progress_bar, table_of
from legion_p2p.errors import DecodeError, IncompatibleModelError, LegionError, MissingBlockError, StoreError, UsageError
from legion_p2p.files.content import COMPRESSED, PROBE_BYTES, SAFETENSORS, description_of, format_of
from legion_p2p.files.paths import FileKind, kind_of, shown, user_data_folder, user_path
from legion_p2p.files.reading import opened
from legion_p2p.files.writing import replacing

if TYPE_CHECKING:
    from legion_p2p.core.cids import Cid
    from legion_p2p.services.checkpoint.fetch import Fetched
    from legion_p2p.store.blocks import BlockStore

MOST_CHANGED = 10  # parameters that `diff` lists
NAMES = ("auto", "run", "gpt2", "llama", "transformers")
SHOWN_PROBLEMS = 20  # that `verify` lists; --json has all

checkpoint = App(name="checkpoint", help="List, check, export, import and compare the checkpoints in a block store.")

_Cid = Annotated[str, Parameter(help="The checkpoint's CID.")]
_Store = Annotated[str, Parameter(metavar="DIR", help="Folder of the block store. [default: store in the user's data folder]")]
_NewStore = Annotated[
    str, Parameter(metavar="DIR", help="Folder of the block store, made on first use. [default: store in the user's data folder]")
]
_Json = Annotated[bool, Parameter(negative=(), help="Print the result as one line of JSON, and show no progress.")]


@checkpoint.command(name="list")
def list_(*, store: _Store = "", json: _Json = False) -> int:
    """List the checkpoints in the store, the newest first.

    Example: legion-ctl checkpoint list
    """
    from legion_p2p.observe.human import bytes_text, clean, short_id, whole_text
    from legion_p2p.store.checkpoints import find_manifests
    from legion_p2p.store.summary import summarize

    found = []
    with _opened(store) as blocks:
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
def show(cid: _Cid, /, *, store: _Store = "", json: _Json = False) -> int:
    """Show what a checkpoint says of itself and of its shards."""
    from legion_p2p.observe.human import bytes_text, clean, whole_text
    from legion_p2p.store.checkpoints import get_manifest
    from legion_p2p.store.summary import summarize, summarize_shards

    root = _cid(cid)
    with _opened(store) as blocks:
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
def verify(cid: _Cid, /, *, store: _Store = "", json: _Json = False) -> int:
    """Read every block of a checkpoint, and make its parameters again: signatures, updates and digests have to fit.

    Exits with 1 if something is wrong, and says what.
    """
    from legion_p2p.observe.human import bytes_text, clean, whole_text
    from legion_p2p.store.checkpoints import get_manifest
    from legion_p2p.store.summary import blocks_of, damage_of

    root = _cid(cid)
    with _opened(store) as blocks:
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
def export(
    cid: _Cid,
    /,
    *,
    safetensors: Annotated[str, Parameter(metavar="DIR")] = "",
    car: Annotated[str, Parameter(metavar="FILE")] = "",
    dcp: Annotated[str, Parameter(metavar="DIR")] = "",
    names: str = "auto",
    store: _Store = "",
    json: _Json = False,
) -> int:
    """Write a checkpoint as files that load without this library.

    Example: legion-ctl checkpoint export CID --safetensors model

    Parameters
    ----------
    safetensors
        Folder for model.safetensors, with a config.json where the model is one that transformers loads.
    car
        CAR file of all its blocks, which every tool of IPFS reads.
    dcp
        Folder for a torch distributed checkpoint, which loads into any number of ranks.
    names
        Of the parameters in safetensors: run keeps the run's; gpt2, llama and transformers are those of transformers, for models
        of that kind; auto takes these where the model has them.
    """
    from legion_p2p.observe.human import bytes_text

    if not (safetensors or car or dcp):
        raise UsageError("say what to write: --safetensors DIR, --car FILE or --dcp DIR")
    if safetensors and dcp and user_path(safetensors).absolute() == user_path(dcp).absolute():
        raise UsageError(f"--safetensors and --dcp both name {shown(safetensors)}: a folder holds one format")
    told_on = sys.stderr if car and is_stdout(user_path(car)) else sys.stdout  # or the summary would end up in the CAR
    if names not in NAMES:
        raise UsageError(f"--names {names}: it is one of {', '.join(NAMES)}")
    root = _cid(cid)
    written: dict[str, Any] = {}
    with _opened(store) as blocks:
        if car:
            written["car"] = {"file": car, **_export_car(blocks, root, user_path(car), json)}
        if safetensors or dcp:
            from legion_p2p.train.checkpoint import Checkpoint
            from legion_p2p.train.export import export_dcp, export_safetensors

            opened = Checkpoint(blocks, root)
            if safetensors:
                with progress_bar("writing safetensors", opened.plan.numel, json) as progress:
                    written["safetensors"] = {
                        "folder": safetensors,
                        "names": export_safetensors(opened, safetensors, names, progress),
                    }
            if dcp:
                with progress_bar("writing a distributed checkpoint", opened.plan.numel, json) as progress:
                    export_dcp(opened, dcp, progress)
                written["dcp"] = {"folder": dcp}
    if json:
        return print_json({"cid": str(root), **written}, told_on)
    told = {
        "car": "{file}: a CAR of {n_blocks:,} blocks, {size}",
        "safetensors": "{folder}: safetensors, the parameters named as in {names}",
        "dcp": "{folder}: a torch distributed checkpoint",
    }
    whose = dict.fromkeys(NAMES, "transformers") | {"run": "the run"}
    for what, about in written.items():
        more = {"size": bytes_text(about.get("n_bytes", 0)), "names": whose.get(about.get("names", ""), "")}
        print(told[what].format(**{**about, **more}), file=told_on)
    return DONE


@checkpoint.command(name="import")
def import_(
    path: str,
    /,
    *,
    name: str = "",
    identity: Annotated[str, Parameter(metavar="FILE")] = "",
    store: _NewStore = "",
    json: _Json = False,
) -> int:
    """Put a checkpoint into the store: a CAR file, or a folder that `export` wrote, or one with a GPT-2 or LLaMA of transformers.

    From a folder, the parameters become a new checkpoint, signed by this peer. A distributed checkpoint is read by torch, which
    trusts it: import only what you trust.

    Parameters
    ----------
    path
        CAR file, or folder.
    name
        Of the run that begins with a model from elsewhere.
    identity
        Key file of this peer, made on first use, to sign with. [default: a new key that is forgotten afterwards]
    """
    source = user_path(path)
    if kind_of(source) is FileKind.MISSING:
        raise UsageError(f"there is no file or folder {shown(path)}")
    with _opened(store, writing=True) as blocks:
        if kind_of(source) is FileKind.FOLDER:
            from legion_p2p.core.identity import Identity
            from legion_p2p.store.identity import load_or_create_identity
            from legion_p2p.train.imports import import_folder

            stored = load_or_create_identity(identity) if identity else None  # its file stays locked meanwhile
            signer = stored.identity if stored else Identity.generate()
            with progress_bar("storing parameters", None, json, "parameters") as progress:
                roots = [import_folder(blocks, source, signer, name, progress)]
        else:
            roots = _import_car(blocks, source, json)
    if json:
        return print_json({"cids": [str(root) for root in roots]})
    for root in roots:
        print(root)
    return DONE


@checkpoint.command
def fetch(
    cid: _Cid,
    /,
    *,
    initial_peers: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, negative=(), converter=addresses_of_peers, metavar="ADDR...")
    ],
    store: _NewStore = "",
    json: _Json = False,
) -> int:
    """Fetch a checkpoint from all peers that have it. What is in the store already is not fetched again.

    Example: legion-ctl checkpoint fetch CID --initial-peers /ip4/203.0.113.7/tcp/4710/p2p/12D3KooW...

    Parameters
    ----------
    initial_peers
        Addresses of peers or bootstrap nodes to enter through; @FILE reads them from a file.
    """
    import trio

    from legion_p2p.core.addresses import parse_addresses
    from legion_p2p.observe.human import bytes_text, whole_text

    root, contacts = _cid(cid), parse_addresses(initial_peers)
    with _opened(store, writing=True) as blocks, blocks.hold(), progress_bar("fetching blocks", None, json, "bytes") as progress:
        blocks.pin(root, "fetched")  # before its blocks are here: what a fetch that is stopped has got stays
        fetched = trio.run(_fetch, root, contacts, blocks, progress)
    if json:
        return print_json({"cid": str(root), "fetched": fetched})
    for peer in fetched.dropped:
        print(f"{peer} sent other bytes than it was asked for, and was not asked again")
    print(
        f"{root} is here: {whole_text(fetched.n_blocks)} blocks, {bytes_text(fetched.n_bytes)} from "
        f"{len(fetched.from_whom)} peers; {whole_text(fetched.n_had)} blocks were here before"
    )
    return DONE


async def _fetch(root: "Cid", contacts: Any, blocks: "BlockStore", progress: "Callable[[int], None]") -> "Fetched":
    from legion_p2p.core.identity import Identity
    from legion_p2p.net.host import open_network
    from legion_p2p.net.offload import ThreadOffload
    from legion_p2p.observe.events import Events
    from legion_p2p.services.checkpoint.fetch import Fetcher

    async with open_network(Identity.generate(), listen=(), initial_peers=contacts) as network:
        await network.join()
        return await Fetcher(network.messenger, network.discovery, blocks, ThreadOffload(), Events(), progress).fetch(root)


@checkpoint.command
def diff(a: str, b: str, /, *, store: _Store = "", json: _Json = False) -> int:
    """Compare two checkpoints of one run: shards, blocks, and how far the parameters moved from A to B.

    Parameters
    ----------
    a
        CID of the first.
    b
        CID of the second.
    """
    from legion_p2p.observe.human import bytes_text, clean, whole_text
    from legion_p2p.store.summary import blocks_of
    from legion_p2p.train.checkpoint import Checkpoint, changes_between

    roots = _cid(a), _cid(b)
    with _opened(store) as blocks:
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
    """What does not fit together, where all blocks are whole."""
    from legion_p2p.train.checkpoint import Checkpoint

    try:
        opened = Checkpoint(blocks, root)
        with progress_bar("applying updates", opened.plan.numel, quiet) as progress:
            for _ in opened.shards(progress):
                pass
    except (DecodeError, StoreError) as bad:
        return [str(bad)]
    return []


def _export_car(blocks: "BlockStore", root: "Cid", path: Path, quiet: bool) -> dict[str, int]:
    from legion_p2p.store.car import write_car
    from legion_p2p.store.summary import blocks_of

    n_bytes = 0
    with replacing(path) as file, progress_bar("writing CAR", sum(blocks_of(blocks, root).values()), quiet) as progress:

        def written(n: int) -> None:
            nonlocal n_bytes
            n_bytes += n
            progress(n)

        n_blocks = write_car(blocks, root, file, written)
    return {"n_blocks": n_blocks, "n_bytes": n_bytes}


def _import_car(blocks: "BlockStore", path: Path, quiet: bool) -> "list[Cid]":
    from legion_p2p.store.car import looks_like_car, read_car
    from legion_p2p.store.checkpoints import get_manifest

    where = shown(path)
    with opened(path, streams=True) as file, progress_bar("reading CAR", _size_of(path), quiet) as progress, blocks.hold():
        head = file.peek(PROBE_BYTES)[:PROBE_BYTES]
        if not looks_like_car(head):
            raise DecodeError(f"{where} is {description_of(head)}, where a CAR file is expected{_instead(head)}")
        try:
            roots = read_car(blocks, file, progress)
            for root in roots:
                get_manifest(blocks, root)
                for _ in blocks.walk(root):  # all of it has to be there
                    pass
                blocks.pin(root, f"imported from {shown(path.name)}"[:100])
        except MissingBlockError as missing:
            raise DecodeError(f"{where} holds a part of a checkpoint only: block {missing.cid} is not in it") from missing
        except DecodeError as bad:
            raise DecodeError(f"{where}: {bad}") from bad
    if not roots:
        raise UsageError(f"{where} names no root: nothing in it is known to be a checkpoint")
    return list(roots)


def _size_of(path: Path) -> int | None:
    return path.stat().st_size if kind_of(path) is FileKind.FILE else None


def _instead(head: bytes) -> str:
    """What to do with something that people take for a CAR file."""
    kind = format_of(head)
    if kind in COMPRESSED:
        return "; unpack it first"
    return "; give the folder that it is in" if kind == SAFETENSORS else ""


@contextlib.contextmanager
def _opened(folder: str, *, writing: bool = False) -> "Iterator[BlockStore]":
    from legion_p2p.store.blocks import BlockStore

    path = user_path(folder) if folder else user_data_folder() / "store"
    with BlockStore(path, read_only=not writing) as blocks:
        yield blocks


def _cid(text: str) -> "Cid":
    from legion_p2p.core.cids import Cid

    try:
        return Cid.parse(text.strip().removeprefix("ipfs://").removeprefix("/ipfs/"))
    except LegionError as bad:
        raise UsageError(f"{bad}; legion-ctl checkpoint list shows those of checkpoints") from bad


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _date_text(at: int) -> str:
    import time

    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
    except (OverflowError, ValueError, OSError):  # whatever a publisher's clock said
        return "-"
