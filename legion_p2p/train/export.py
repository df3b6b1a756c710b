"""Checkpoints as the files that others read, and back: safetensors (with a config.json that transformers loads, where the model
is a GPT-2), and torch's distributed checkpoints, which load into any number of ranks.

Beside them lies `legion.json`: what the files themselves cannot say and an import needs. Both ways go parameter by parameter, so
that a model may be larger than memory.
"""

import json
import os
import struct
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import torch
from torch import Tensor

from legion_p2p.core import dagcbor
from legion_p2p.core.cids import Cid
from legion_p2p.core.identity import Identity
from legion_p2p.core.manifest import Manifest, ShardState
from legion_p2p.core.plan import ParamSpec, check_fit
from legion_p2p.core.run import RunSpec, SignedSpec, open_spec, sign_spec
from legion_p2p.errors import DecodeError, IncompatibleModelError, LegionError, StoreError, UsageError
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoints import publish, put_base, put_node, put_spec
from legion_p2p.tensor.body import is_finite
from legion_p2p.tensor.flatten import digest, fp32_bytes
from legion_p2p.train.checkpoint import Checkpoint, Progress, cut, no_progress
from legion_p2p.train.gpt2_names import (
    Gpt2Param,
    config_from_gpt2,
    gpt2_config,
    gpt2_layout,
    gpt_params,
    model_fields,
)

SIDE_FILE = "legion.json"
WEIGHTS = "model.safetensors"
MAX_SIDE_BYTES = 4 << 20  # a specification has at most 1 MiB


class _Side(msgspec.Struct, frozen=True):
    """legion.json. Bytes are in base64."""

    checkpoint: str
    spec: bytes
    spec_signature: bytes
    step: int
    versions: tuple[int, ...]
    state: bytes
    """DAG-CBOR of the manifest's `state`."""
    names: str
    """`run` or `gpt2`: whose names the parameters have in the file."""


# out


def export_safetensors(
    checkpoint: Checkpoint, folder: str | os.PathLike[str], names: str = "auto", progress: Progress = no_progress
) -> str:
    """Write model.safetensors, legion.json, and config.json where transformers knows the model.

    `names`: `run` keeps the run's names and shapes; `gpt2` takes those of transformers.GPT2LMHeadModel; `auto` takes these where
    the run trains a GPT-2, and the run's elsewhere. Returns which it was.

    Raises: UsageError, if the model is no GPT-2; MissingBlockError; DecodeError; StoreError.
    """
    layout = gpt2_layout(checkpoint.spec) if names in ("auto", "gpt2") else None
    if names == "gpt2" and layout is None:
        raise UsageError(f"the run {checkpoint.spec.name} does not train a GPT-2: its model cannot have such names")
    if layout is None:
        names, params = "run", tuple(Gpt2Param(p.name, p.shape, p) for p in checkpoint.spec.params)
    else:
        names, params = "gpt2", layout[1]
    folder = _folder(folder)
    with _telling(folder):
        with open(folder / f"{WEIGHTS}.part", "wb") as file:
            _write_safetensors(file, params, _values(checkpoint, params, progress))
            file.flush()
            os.fsync(file.fileno())
        if layout is not None:
            (folder / "config.json").write_text(json.dumps(gpt2_config(layout[0]), indent=2) + "\n")
        _write_side(checkpoint, folder, names)
        os.replace(folder / f"{WEIGHTS}.part", folder / WEIGHTS)
    return names


def export_dcp(checkpoint: Checkpoint, folder: str | os.PathLike[str], progress: Progress = no_progress) -> None:
    """Write a torch distributed checkpoint of {parameter name: tensor}, and legion.json.

    Raises: MissingBlockError; DecodeError; StoreError.
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    folder = _folder(folder)
    whole = folder / "whole.part"
    with _telling(folder):
        try:
            # backed by a file: torch writes one tensor at a time, and the system decides what of it is in memory
            flat = torch.from_file(str(whole), shared=True, size=checkpoint.plan.numel, dtype=torch.float32, device="cpu")
            at = 0
            for shard in checkpoint.shards(progress):
                flat[at : at + len(shard)] = shard
                at += len(shard)
            views = zip(checkpoint.spec.params, torch.split(flat, [p.numel for p in checkpoint.spec.params]), strict=True)
            with warnings.catch_warnings(action="ignore"):  # that there is one process only
                save({p.name: view.view(p.shape) for p, view in views}, checkpoint_id=folder, no_dist=True)
        finally:
            whole.unlink(missing_ok=True)
        _write_side(checkpoint, folder, "run")


def _values(checkpoint: Checkpoint, params: Iterable[Gpt2Param], progress: Progress) -> Iterator[Tensor]:
    from_run = checkpoint.parameters(progress)
    for param in params:
        if param.source is None:
            yield torch.zeros(param.shape, dtype=torch.float32, device="cpu")
        else:
            value = next(from_run)[1]
            yield value.T.contiguous() if param.transposed else value


def _write_safetensors(file: BinaryIO, params: Iterable[Gpt2Param], values: Iterable[Tensor]) -> None:
    """The format of safetensors, written tensor by tensor: length of the header, header, data. Its library wants all at once."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for param in params:
        size = 4 * ParamSpec(param.name, param.shape).numel
        header[param.name] = {"dtype": "F32", "shape": param.shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)  # so that the data is aligned
    file.write(struct.pack("<Q", len(raw)) + raw)
    for value in values:
        file.write(fp32_bytes(value))


def _write_side(checkpoint: Checkpoint, folder: Path, names: str) -> None:
    signed, manifest = checkpoint.signed, checkpoint.manifest
    versions = tuple(state.version for state, _ in checkpoint.states())
    state = dagcbor.encode(manifest.state)
    side = _Side(str(checkpoint.cid), signed.spec, signed.signature, manifest.step, versions, state, names)
    (folder / SIDE_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(side)) + b"\n")


# in


def import_folder(
    store: BlockStore, folder: str | os.PathLike[str], identity: Identity, name: str = "", progress: Progress = no_progress
) -> Cid:
    """Store the parameters in a folder as a checkpoint, signed by `identity` and pinned; returns its CID.

    With a legion.json, it is a checkpoint of that run, at its step. Without, the folder has to hold a GPT-2 in safetensors with
    its config.json, and a new run named `name` begins with it, at step 0. A distributed checkpoint is read by torch, which trusts
    it (its index is a pickle): import only what you trust.

    Raises: UsageError, if there is nothing to import; IncompatibleModelError; DecodeError; StoreError.
    """
    folder = Path(folder)
    with _telling(folder):
        if (folder / SIDE_FILE).exists():
            side = _read_side(folder)
            signed = SignedSpec(side.spec, side.spec_signature)
            spec = open_spec(signed)
            if len(side.versions) != spec.plan().n_shards:
                raise DecodeError(f"{folder / SIDE_FILE} names {len(side.versions)} shards, its run has {spec.plan().n_shards}")
            manifest = Manifest(
                Cid.of(signed.spec), signed.signature, side.step, (), identity.peer_id, int(time.time()), side.checkpoint,
                dagcbor.decode(side.state),
            )  # fmt: skip
            versions = side.versions
        else:
            spec = _spec_of_gpt2(folder, identity, name)
            signed = sign_spec(spec, identity)
            manifest = Manifest(Cid.of(signed.spec), signed.signature, 0, (), identity.peer_id, int(time.time()))
            versions = (0,) * spec.plan().n_shards
        with store.hold():
            put_spec(store, signed)
            shards = []
            for shard, (version, flat) in enumerate(zip(versions, _flat_shards(folder, spec), strict=True)):
                if not is_finite(flat):
                    raise DecodeError(f"{folder}: there is NaN or infinity in shard {shard}")
                base = put_base(store, version, (), fp32_bytes(flat))
                shards.append(put_node(store, ShardState(shard, version, digest(flat), base)))
                progress(len(flat))
            manifest = msgspec.structs.replace(manifest, shards=tuple(shards))
            return publish(store, manifest, identity, f"imported from {folder.name}"[:100])


def _flat_shards(folder: Path, spec: RunSpec) -> Iterator[Tensor]:
    plan = spec.plan()
    values = _from_safetensors(folder, spec) if (folder / WEIGHTS).exists() else _from_dcp(folder, spec)
    return cut(values, [plan.size(shard) for shard in range(plan.n_shards)])


def _from_safetensors(folder: Path, spec: RunSpec) -> Iterator[Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            there = set(file.keys())
            as_run = all(param.name in there for param in spec.params)
            layout = None if as_run else gpt2_layout(spec)
            if layout is None:
                params: tuple[Gpt2Param, ...] = tuple(Gpt2Param(p.name, p.shape, p) for p in spec.params)
            else:
                params = layout[1]
            prefix = "" if layout is None or "transformer.wte.weight" in there else "transformer."
            for param in sorted(params, key=lambda param: param.source is not None):  # those that must be zero, before anything
                name = param.name.removeprefix(prefix)
                if name not in there:
                    raise IncompatibleModelError(f"{folder / WEIGHTS} has no parameter {name}, which the run has")
                value = file.get_tensor(name)
                if tuple(value.shape) != param.shape or not value.is_floating_point():
                    raise IncompatibleModelError(
                        f"{name} in {folder / WEIGHTS} is {value.dtype} {list(value.shape)}, not {list(param.shape)}"
                    )
                if param.source is not None:
                    yield (value.T if param.transposed else value).to(torch.float32).contiguous()
                elif value.any():
                    raise IncompatibleModelError(
                        f"{name} in {folder / WEIGHTS} is not zero, and the run's model has no such parameter"
                    )
    except SafetensorError as bad:
        raise DecodeError(f"{folder / WEIGHTS}: {bad}") from bad


def _from_dcp(folder: Path, spec: RunSpec) -> Iterator[Tensor]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        listed = FileSystemReader(folder).read_metadata().state_dict_metadata
    except Exception as bad:  # it unpickles: anything can come out
        raise DecodeError(f"{folder} is no torch distributed checkpoint: {bad!r}") from bad
    there = {name: tuple(meta.size) for name, meta in listed.items() if hasattr(meta, "size")}
    check_fit([ParamSpec(p.name, there[p.name]) for p in spec.params if p.name in there], spec.params)
    for param in spec.params:
        value = torch.empty(param.shape, dtype=torch.float32, device="cpu")
        with warnings.catch_warnings(action="ignore"):  # that there is one process only
            load({param.name: value}, checkpoint_id=folder, no_dist=True)
        yield value


def _read_side(folder: Path) -> _Side:
    file = folder / SIDE_FILE
    if file.stat().st_size > MAX_SIDE_BYTES:
        raise DecodeError(f"{file} has more than {MAX_SIDE_BYTES} bytes")
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Side)
    except (msgspec.DecodeError, UnicodeDecodeError) as bad:
        raise DecodeError(f"{file}: {bad}") from bad


def _spec_of_gpt2(folder: Path, identity: Identity, name: str) -> RunSpec:
    from safetensors import SafetensorError, safe_open

    if not (folder / WEIGHTS).exists() or not (folder / "config.json").exists():
        can = f"{SIDE_FILE} beside an exported checkpoint, or {WEIGHTS} and config.json of a GPT-2"
        raise UsageError(f"there is nothing in {folder} that can be imported; it needs {can}")
    if not name:
        raise UsageError(f"{folder} belongs to no run yet: name the one that is to begin with it, --name NAME")
    try:
        said = json.loads((folder / "config.json").read_bytes())
        if said["model_type"] != "gpt2":
            raise IncompatibleModelError(
                f"{folder / 'config.json'} says {str(said['model_type'])[:40]!r}, only gpt2 is known here"
            )
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            untied = "lm_head.weight" in file.keys() and not said.get("tie_word_embeddings", True)  # noqa: SIM118 (no mapping)
        config = config_from_gpt2(said, tied=not untied)
    except (KeyError, TypeError, ValueError, SafetensorError) as bad:
        raise DecodeError(f"{folder} does not hold a GPT-2 that is known here: {bad!r}") from bad
    return RunSpec(name, identity.peer_id, tuple(gpt_params(config)), model=model_fields(config), nonce=os.urandom(8).hex())


def _folder(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder).expanduser()
    with _telling(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


class _telling:
    """Turns what the disk refuses into an error that says what to do."""

    def __init__(self, where: Path) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, bad: BaseException | None, trace: object) -> None:
        if isinstance(bad, OSError) and not isinstance(bad, LegionError):
            raise StoreError(
                f"cannot use {self._where}: {bad.strerror or bad}; free space there, or name another folder"
            ) from bad
