"""Moving checkpoints out of a block store and into it: to and from files that other programs load, and from the peers of a run.

`import` and `fetch` write: no peer may use the store meanwhile.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from legion_p2p.cli.block_store import AsJson, CidText, NewStoreOption, StoreOption, cid_of, opened_store
from legion_p2p.cli.common import addresses_of_peers
from legion_p2p.cli.failures import DONE
from legion_p2p.cli.output import is_stdout, print_json, progress_bar
from legion_p2p.cli.visitors import IdentityOption, NetworkKeyOption, TokenOption, visitor_by_options
from legion_p2p.errors import DecodeError, MissingBlockError, UsageError
from legion_p2p.files.content import COMPRESSED, PROBE_BYTES, SAFETENSORS, description_of, format_of
from legion_p2p.files.paths import FileKind, kind_of, shown, user_path
from legion_p2p.files.reading import opened
from legion_p2p.files.writing import replacing

if TYPE_CHECKING:
    from legion_p2p.core.cids import Cid
    from legion_p2p.services.checkpoint.fetch import Fetched
    from legion_p2p.store.blocks import BlockStore
    from legion_p2p.visit import Visitor

NAMES = ("auto", "run", "gpt2", "llama", "transformers")


def export(
    cid: CidText,
    /,
    *,
    safetensors: Annotated[str, Parameter(metavar="DIR")] = "",
    car: Annotated[str, Parameter(metavar="FILE")] = "",
    dcp: Annotated[str, Parameter(metavar="DIR")] = "",
    names: str = "auto",
    tokenizer: Annotated[str, Parameter(metavar="FILE")] = "",
    store: StoreOption = "",
    json: AsJson = False,
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
    tokenizer
        Of the run's data, for the folder of safetensors: a tokenizer.json, or a folder with one. [default: what the store has]
    """
    from legion_p2p.observe.human import bytes_text

    if not (safetensors or car or dcp):
        raise UsageError("say what to write: --safetensors DIR, --car FILE or --dcp DIR")
    if safetensors and dcp and user_path(safetensors).absolute() == user_path(dcp).absolute():
        raise UsageError(f"--safetensors and --dcp both name {shown(safetensors)}: a folder holds one format")
    told_on = sys.stderr if car and is_stdout(user_path(car)) else sys.stdout  # or the summary would end up in the CAR
    if names not in NAMES:
        raise UsageError(f"--names {names}: it is one of {', '.join(NAMES)}")
    root = cid_of(cid)
    written: dict[str, Any] = {}
    with opened_store(store) as blocks:
        if car:
            written["car"] = {"file": car, **_export_car(blocks, root, user_path(car), json)}
        if safetensors or dcp:
            from legion_p2p.train.checkpoint import Checkpoint
            from legion_p2p.train.companions import checked_tokenizer, stored_tokenizer
            from legion_p2p.train.export import export_dcp, export_safetensors

            opened = Checkpoint(blocks, root)
            raw = checked_tokenizer(opened.spec, tokenizer) if tokenizer else stored_tokenizer(opened.spec, blocks.get)
            if safetensors and opened.spec.tokenizer and not raw:
                print("the run's tokenizer is not in the store: --tokenizer FILE adds it to the folder", file=sys.stderr)
            if safetensors:
                with progress_bar("writing safetensors", opened.plan.numel, json) as progress:
                    written["safetensors"] = {
                        "folder": safetensors,
                        "names": export_safetensors(opened, safetensors, names, progress, tokenizer=raw),
                        "tokenizer": bool(raw),
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


def import_(
    path: str,
    /,
    *,
    name: str = "",
    identity: Annotated[str, Parameter(metavar="FILE")] = "",
    store: NewStoreOption = "",
    json: AsJson = False,
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
    with opened_store(store, writing=True) as blocks:
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


def fetch(
    cid: CidText,
    /,
    *,
    initial_peers: Annotated[
        tuple[str, ...], Parameter(consume_multiple=True, negative=(), converter=addresses_of_peers, metavar="ADDR...")
    ],
    store: NewStoreOption = "",
    run: Annotated[str, Parameter(metavar="NAME")] = "",
    identity: IdentityOption = "",
    token: TokenOption = "",
    network_key: NetworkKeyOption = "",
    json: AsJson = False,
) -> int:
    """Fetch a checkpoint from all peers that have it. Blocks that are already in the store are not fetched again.

    Example: legion-ctl checkpoint fetch CID --initial-peers /ip4/203.0.113.7/tcp/4710/p2p/12D3KooW...

    Parameters
    ----------
    initial_peers
        Addresses of peers or bootstrap nodes to enter through; @FILE reads them from a file.
    run
        Name of a run whose members have it: of a private one, which gives to peers that it admits and to no others.
    """
    import trio

    from legion_p2p.core.addresses import parse_addresses
    from legion_p2p.observe.human import bytes_text, whole_text

    root, contacts = cid_of(cid), parse_addresses(initial_peers)
    with (
        visitor_by_options(network_key, run, identity, token) as visitor,
        opened_store(store, writing=True) as blocks,
        blocks.hold(),
        progress_bar("fetching blocks", None, json, "bytes") as progress,
    ):
        blocks.pin(root, "fetched")  # before its blocks are here: what a fetch that is stopped has got stays
        fetched = trio.run(_fetch, root, contacts, run, visitor, blocks, progress)
    if json:
        return print_json({"cid": str(root), "fetched": fetched})
    for peer in fetched.dropped:
        print(f"{peer} sent wrong bytes, and was not asked again")
    print(
        f"{root} is here: {whole_text(fetched.n_blocks)} blocks, {bytes_text(fetched.n_bytes)} from "
        f"{len(fetched.from_whom)} peers; {whole_text(fetched.n_had)} blocks were here before"
    )
    return DONE


async def _fetch(
    root: "Cid", contacts: Any, run: str, visitor: "Visitor", blocks: "BlockStore", progress: "Callable[[int], None]"
) -> "Fetched":
    from legion_p2p.net.offload import ThreadOffload
    from legion_p2p.observe.events import Events
    from legion_p2p.services.checkpoint.fetch import Fetcher
    from legion_p2p.visit import members_of, visiting

    async with visiting(contacts, visitor) as network:
        fetcher = Fetcher(network.messenger, network.discovery, blocks, ThreadOffload(), Events(), progress)
        if run:
            fetcher.providers |= await members_of(network, run, visitor)
        return await fetcher.fetch(root)


def _export_car(blocks: "BlockStore", root: "Cid", path: Path, quiet: bool) -> dict[str, int]:
    from legion_p2p.store.car import write_car
    from legion_p2p.store.checkpoint_summary import blocks_of

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
            raise DecodeError(f"{where} holds only part of a checkpoint: block {missing.cid} is not in it") from missing
        except DecodeError as bad:
            raise DecodeError(f"{where}: {bad}") from bad
    if not roots:
        raise UsageError(f"{where} names no root, so nothing says where its checkpoint begins")
    return list(roots)


def _size_of(path: Path) -> int | None:
    return path.stat().st_size if kind_of(path) is FileKind.FILE else None


def _instead(head: bytes) -> str:
    """Advice on a file that is often mistaken for a CAR file."""
    kind = format_of(head)
    if kind in COMPRESSED:
        return "; unpack it first"
    return "; give the folder that it is in" if kind == SAFETENSORS else ""
