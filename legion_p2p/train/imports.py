"""Models out of files, as checkpoints: what an export wrote, perhaps changed since, or a GPT-2 or LLaMA of transformers.

Parameter by parameter, so that a model may be larger than memory. Every field of a foreign configuration and every tensor of a
foreign file is understood or refused by name.
"""

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from legion_p2p.core import dagcbor
from legion_p2p.core.cids import Cid
from legion_p2p.core.identity import Identity
from legion_p2p.core.manifest import Manifest, StoredShard
from legion_p2p.core.plan import ParamSpec, check_fit
from legion_p2p.core.run import RunSpec, SignedSpec, open_spec, sign_spec
from legion_p2p.errors import DecodeError, IncompatibleModelError, LegionError, UsageError
from legion_p2p.files.paths import shown, user_path
from legion_p2p.files.reading import read_text
from legion_p2p.files.writing import telling
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoints import publish, put_base, put_node, put_spec
from legion_p2p.tensor.body import is_finite
from legion_p2p.tensor.flatten import digest, fp32_bytes
from legion_p2p.train.checkpoint import Progress, cut, no_progress
from legion_p2p.train.foreign_names import ForeignParam, gpt_params, model_fields
from legion_p2p.train.gpt2_config import config_from_gpt2
from legion_p2p.train.gpt2_names import is_mask
from legion_p2p.train.layouts import layout_of, own_layout
from legion_p2p.train.llama_config import config_from_llama
from legion_p2p.train.safetensors_file import SafetensorsFile, open_safetensors
from legion_p2p.train.side_file import CONFIG, SIDE_FILE, WEIGHTS, read_side

MAX_CONFIG_BYTES = 1 << 20  # those of published models have some kilobytes


def import_folder(
    store: BlockStore, folder: str | os.PathLike[str], identity: Identity, name: str = "", progress: Progress = no_progress
) -> Cid:
    """Store the parameters in a folder as a checkpoint, signed by `identity` and pinned; returns its CID.

    With a legion.json, it is a checkpoint of that run, at its step. Without, the folder has to hold a GPT-2 or LLaMA in
    safetensors with its config.json, and a new run named `name` begins with it, at step 0. A distributed checkpoint is read by
    torch, which trusts it (its index is a pickle): import only what you trust.

    Raises: UsageError, if there is nothing to import; IncompatibleModelError; DecodeError; StoreError.
    """
    folder = user_path(folder)
    with telling(folder):
        if (folder / SIDE_FILE).exists():
            side = read_side(folder)
            signed = SignedSpec(side.spec, side.spec_signature)
            spec = open_spec(signed)
            if len(side.versions) != spec.plan().n_shards:
                raise DecodeError(
                    f"{shown(folder / SIDE_FILE)} names {len(side.versions)} shards, its run has {spec.plan().n_shards}"
                )
            manifest = Manifest(
                Cid.of(signed.spec), signed.signature, side.step, (), identity.peer_id, int(time.time()), side.checkpoint,
                dagcbor.decode(side.state),
            )  # fmt: skip
            versions = side.versions
        else:
            spec = _spec_of_foreign(folder, identity, name)
            signed = sign_spec(spec, identity)
            manifest = Manifest(Cid.of(signed.spec), signed.signature, 0, (), identity.peer_id, int(time.time()))
            versions = (0,) * spec.plan().n_shards
        with store.hold():
            put_spec(store, signed)
            shards = []
            for shard, (version, flat) in enumerate(zip(versions, _flat_shards(folder, spec), strict=True)):
                if not is_finite(flat):
                    raise DecodeError(f"{shown(folder)}: there is NaN or infinity in shard {shard}")
                base = put_base(store, version, (), fp32_bytes(flat))
                shards.append(put_node(store, StoredShard(shard, version, digest(flat), base)))
                progress(len(flat))
            manifest = msgspec.structs.replace(manifest, shards=tuple(shards))
            return publish(store, manifest, identity, f"imported from {shown(folder.name)}"[:100])


def _flat_shards(folder: Path, spec: RunSpec) -> Iterator[Tensor]:
    plan = spec.plan()
    values = _from_safetensors(folder, spec) if (folder / WEIGHTS).exists() else _from_dcp(folder, spec)
    return cut(values, [plan.size(shard) for shard in range(plan.n_shards)])


def _from_safetensors(folder: Path, spec: RunSpec) -> Iterator[Tensor]:
    where = shown(folder / WEIGHTS)
    with open_safetensors(folder / WEIGHTS) as file:
        layout = own_layout(spec) if all(param.name in file.names for param in spec.params) else layout_of(spec)
        prefix = "transformer." if layout.names == "gpt2" and "transformer.wte.weight" not in file.names else ""
        names = {param.name.removeprefix(prefix): param for param in layout.params}
        _check_names(file, names, where, layout.names)
        parts: list[Tensor] = []
        for name, param in sorted(names.items(), key=lambda item: item[1].source is not None):  # zeros before anything else
            value = file.read(name)
            if tuple(value.shape) != param.shape or not value.is_floating_point():
                raise IncompatibleModelError(f"{name} in {where} is {value.dtype} {list(value.shape)}, not {list(param.shape)}")
            if param.source is None:
                if value.any():
                    raise IncompatibleModelError(f"{name} in {where} is not zero, and the run's model has no such parameter")
                continue
            parts.append((value.T if param.transposed else value).to(torch.float32))
            if param.rows is None or param.rows[1] == param.source.shape[0]:
                yield torch.cat(parts).contiguous() if len(parts) > 1 else parts[0].contiguous()
                parts.clear()


def _check_names(file: SafetensorsFile, wanted: Mapping[str, ForeignParam], where: str, form: str) -> None:
    """Every parameter of the run is there, and of whatever else is there it is known that it changes nothing."""
    missing = [name for name in wanted if name not in file.names]
    if missing:
        raise IncompatibleModelError(f"{where} has no parameter {missing[0]}, which the run has ({len(missing)} are missing)")
    more = sorted(name for name in file.names - set(wanted) if not (form == "gpt2" and is_mask(name)))
    if form != "run" and more == ["lm_head.weight"]:
        (embedding,) = (name for name in wanted if name.endswith(("wte.weight", "embed_tokens.weight")))
        if torch.equal(file.read("lm_head.weight"), file.read(embedding)):
            return
        raise IncompatibleModelError(f"lm_head.weight in {where} differs from {embedding}, and the run's model has one for both")
    if more:
        raise IncompatibleModelError(f"{where} has {more[0]}, which the run's model has not ({len(more)} such tensors)")


def _from_dcp(folder: Path, spec: RunSpec) -> Iterator[Tensor]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        listed = FileSystemReader(folder).read_metadata().state_dict_metadata
    except Exception as bad:  # it unpickles: anything can come out
        raise DecodeError(f"{shown(folder)} is no torch distributed checkpoint: {bad!r}") from bad
    there = {name: tuple(meta.size) for name, meta in listed.items() if hasattr(meta, "size")}
    check_fit([ParamSpec(p.name, there[p.name]) for p in spec.params if p.name in there], spec.params)
    for param in spec.params:
        value = torch.empty(param.shape, dtype=torch.float32, device="cpu")
        with warnings.catch_warnings(action="ignore"):  # that there is one process only
            load({param.name: value}, checkpoint_id=folder, no_dist=True)
        yield value


def _spec_of_foreign(folder: Path, identity: Identity, name: str) -> RunSpec:
    if not (folder / WEIGHTS).exists() or not (folder / CONFIG).exists():
        can = f"{SIDE_FILE} beside an exported checkpoint, or {WEIGHTS} and {CONFIG} of a GPT-2 or LLaMA"
        raise UsageError(f"there is nothing in {shown(folder)} that can be imported; it needs {can}{_instead(folder)}")
    if not name:
        raise UsageError(f"{shown(folder)} belongs to no run yet: name the one that is to begin with it, --name NAME")
    said = _read_config(folder / CONFIG)
    with open_safetensors(folder / WEIGHTS) as file:
        has_head = "lm_head.weight" in file.names
    try:
        config = config_from_llama(said) if said.get("model_type") == "llama" else config_from_gpt2(said, has_head=has_head)
    except LegionError as bad:
        instead = f"; legion-peer --new-run {name} --model hf:FOLDER begins a run with every model of transformers"
        raise IncompatibleModelError(f"{shown(folder / CONFIG)}: {bad}{instead}") from bad
    return RunSpec(name, identity.peer_id, tuple(gpt_params(config)), model=model_fields(config), nonce=os.urandom(8).hex())


def _read_config(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(read_text(path, MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as bad:
        raise DecodeError(f"{shown(path)} is not JSON: {bad}") from bad
    if not isinstance(said, dict):
        raise DecodeError(f"{shown(path)} holds a JSON {type(said).__name__}, where the fields of a model are expected")
    return said


def _instead(folder: Path) -> str:
    """What there is, where it is something that people take for it."""
    if any(folder.glob("*.safetensors.index.json")):
        return "; its parameters are in several files: save them in one, save_pretrained(..., max_shard_size='1000GB')"
    if any(folder.glob("pytorch_model*.bin")) or any(folder.glob("*.pt")):
        return "; its parameters are a pickle: load the model in transformers, and save it again, as safetensors"
    return ""
