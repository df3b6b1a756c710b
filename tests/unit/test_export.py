"""Exports load without this library, bit for bit; imports give the same checkpoint back."""

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from legion_p2p.core.cids import Cid
from legion_p2p.core.identity import Identity
from legion_p2p.errors import DecodeError, IncompatibleModelError, LegionError, MissingBlockError, StoreError, UsageError
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoints import get_manifest
from legion_p2p.train.checkpoint import Checkpoint, cut
from legion_p2p.train.export import export_dcp, export_safetensors
from legion_p2p.train.foreign_names import config_of, gpt_params
from legion_p2p.train.gpt import GPT
from legion_p2p.train.gpt2_names import gpt2_layout
from legion_p2p.train.gpt_config import PRESETS, GPTConfig
from legion_p2p.train.imports import import_folder
from tests.checkpoint_of import TINY, Run, checkpointed

OTHER = Identity(b"o" * 32)
LIKE_GPT2 = [TINY, GPTConfig(2, 2, 16, 8, 31), GPTConfig(1, 2, 16, 8, 31, tied=False)]
ROTARY = GPTConfig(1, 2, 16, 8, 31, positions="rotary")
LLAMAS = [
    GPTConfig(2, 4, 16, 8, 31, positions="rotary", tied=False, norm="rms", mlp="swiglu", mlp_width=24, n_kv_head=2),
    GPTConfig(1, 2, 16, 8, 31, positions="rotary", norm="rms", norm_eps=1e-6, mlp="swiglu", rope_base=500_000.0),
]


pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # there is one process only


@pytest.fixture
def store(tmp_path: Path):
    with BlockStore(tmp_path / "store") as made:
        yield made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def params_of(run: Run) -> dict[str, torch.Tensor]:
    """The run's parameters as they are now, by name."""
    sizes = [p.numel for p in run.spec.params]
    return {p.name: flat.view(p.shape) for p, flat in zip(run.spec.params, run.flat.split(sizes), strict=True)}


def assert_equal(loaded: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(loaded.keys() ^ expected.keys()) == []
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_a_checkpoint_is_its_base_and_its_log(store: BlockStore) -> None:
    run, root = checkpointed(store, n_updates=3)
    done: list[int] = []

    assert_equal({p.name: value for p, value in Checkpoint(store, root).parameters(done.append)}, params_of(run))
    assert sum(done) == run.plan.numel


@pytest.mark.parametrize("n_shards", [1, 3, 7])
def test_a_checkpoint_loads_into_any_number_of_shards(store: BlockStore, n_shards: int) -> None:
    run, root = checkpointed(store)
    size = -(-run.plan.numel // n_shards)
    sizes = [min(size, run.plan.numel - at) for at in range(0, run.plan.numel, size)]

    pieces = list(cut(Checkpoint(store, root).shards(), sizes))

    assert [len(piece) for piece in pieces] == sizes and torch.equal(torch.cat(pieces), run.flat)


@pytest.mark.parametrize("change", ["digest", "order", "run", "gap"])
def test_a_log_that_leads_elsewhere_is_refused(store: BlockStore, change: str) -> None:
    run, _ = checkpointed(store, n_updates=2)
    if change == "digest":
        run.reference(0)[0] += 1
    elif change == "order":
        run.logs[0].reverse()
    elif change == "run":
        other, _ = checkpointed(store, n_updates=2, shard_elements=900)
        run.logs[0] = other.logs[0]
    else:
        run.logs[0][0] = run.logs[0][1]

    with pytest.raises(DecodeError):
        list(Checkpoint(store, run.publish(store)).shards())


def test_safetensors_load_in_plain_torch_with_the_runs_names(store: BlockStore, out: Path) -> None:
    run, root = checkpointed(store)

    assert export_safetensors(Checkpoint(store, root), out, names="run") == "run"

    assert_equal(load_file(out / "model.safetensors"), params_of(run))
    model = GPT(TINY)
    model.load_state_dict(load_file(out / "model.safetensors"))


def test_the_parameters_of_the_built_in_model_are_listed_as_it_has_them() -> None:
    for config in (*LIKE_GPT2, ROTARY, *LLAMAS, PRESETS["xxs"]):
        listed = [(p.name, p.shape) for p in gpt_params(config)]
        assert listed == [(name, tuple(p.shape)) for name, p in GPT(config).named_parameters()]


@pytest.mark.parametrize("config", LIKE_GPT2, ids=["bias", "no bias", "untied"])
def test_a_gpt2_is_exported_in_its_own_names_and_imported_again(store: BlockStore, out: Path, config: GPTConfig) -> None:
    run, root = checkpointed(store, config=config)

    assert export_safetensors(Checkpoint(store, root), out) == "gpt2"
    loaded = load_file(out / "model.safetensors")
    again = import_folder(store, out, OTHER)

    ours = params_of(run)
    assert torch.equal(loaded["transformer.h.0.attn.c_attn.weight"], ours["blocks.0.attention.qkv.weight"].T)
    assert loaded["transformer.h.0.mlp.c_proj.bias"].shape == (config.width,)
    assert ("lm_head.weight" in loaded) == (not config.tied)
    assert json.loads((out / "config.json").read_text())["n_head"] == config.n_head
    assert_equal({p.name: value for p, value in Checkpoint(store, again).parameters()}, ours)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("config", LIKE_GPT2, ids=["bias", "no bias", "untied"])
def test_transformers_computes_the_same_as_our_model(store: BlockStore, out: Path, config: GPTConfig) -> None:
    from transformers import GPT2LMHeadModel

    run, root = checkpointed(store, config=config)
    export_safetensors(Checkpoint(store, root), out)
    ours = GPT(config)
    ours.load_state_dict(params_of(run))
    tokens = torch.randint(31, (2, 8), generator=torch.Generator().manual_seed(0))

    theirs, told = GPT2LMHeadModel.from_pretrained(out, output_loading_info=True)

    assert not told["unexpected_keys"] and not told["mismatched_keys"] and not set(told["missing_keys"]) - {"lm_head.weight"}
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(tokens).logits, ours.eval()(tokens)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", LLAMAS, ids=["shared heads", "tied"])
def test_a_llama_is_exported_in_its_own_names_and_imported_again(store: BlockStore, out: Path, config: GPTConfig) -> None:
    run, root = checkpointed(store, config=config)

    assert export_safetensors(Checkpoint(store, root), out) == "llama"
    loaded = load_file(out / "model.safetensors")
    again = import_folder(store, out, OTHER)

    fused = [loaded[f"model.layers.0.self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(torch.cat(fused), params_of(run)["blocks.0.attention.qkv.weight"])
    assert_equal({p.name: value for p, value in Checkpoint(store, again).parameters()}, params_of(run))


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("config", LLAMAS, ids=["shared heads", "tied"])
def test_a_llama_of_transformers_computes_the_same_as_our_model(store: BlockStore, out: Path, config: GPTConfig) -> None:
    from transformers import AutoModelForCausalLM

    run, root = checkpointed(store, config=config)
    export_safetensors(Checkpoint(store, root), out)
    ours = GPT(config)
    ours.load_state_dict(params_of(run))
    tokens = torch.randint(31, (2, 8), generator=torch.Generator().manual_seed(0))

    theirs, told = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    theirs.save_pretrained(out / "again")
    again = import_folder(store, out / "again", OTHER, "again")

    assert not any(told[kind] for kind in ("unexpected_keys", "mismatched_keys", "missing_keys"))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(tokens).logits, ours.eval()(tokens)[0], rtol=1e-5, atol=1e-5)
    assert_equal({p.name: value for p, value in Checkpoint(store, again).parameters()}, params_of(run))
    assert config_of(Checkpoint(store, again).spec) == replace(config, mlp_width=config.inner_width, n_kv_head=config.kv_heads)


def test_a_llama_that_the_built_in_gpt_is_not_is_refused_with_what_is_possible(store: BlockStore, out: Path) -> None:
    _, root = checkpointed(store, config=LLAMAS[0])
    export_safetensors(Checkpoint(store, root), out)
    (out / "legion.json").unlink()
    said = json.loads((out / "config.json").read_text())
    for field, value in (("attention_bias", True), ("rope_parameters", {"rope_type": "yarn"}), ("head_dim", 7), ("new", 1)):
        (out / "config.json").write_text(json.dumps({**said, field: value}))
        with pytest.raises(IncompatibleModelError, match=rf"{field}.*--model hf:FOLDER"):
            import_folder(store, out, OTHER, "other")


def test_another_model_keeps_its_names_and_cannot_have_gpt2s(store: BlockStore, out: Path) -> None:
    run, root = checkpointed(store, config=ROTARY)

    with pytest.raises(UsageError, match="GPT-2"):
        export_safetensors(Checkpoint(store, root), out, names="gpt2")
    assert export_safetensors(Checkpoint(store, root), out) == "run"
    assert not (out / "config.json").exists() and gpt2_layout(run.spec) is None
    assert_equal({p.name: v for p, v in Checkpoint(store, import_folder(store, out, OTHER)).parameters()}, params_of(run))


def test_a_distributed_checkpoint_loads_in_plain_torch_and_comes_back(store: BlockStore, out: Path) -> None:
    import torch.distributed.checkpoint as dcp

    run, root = checkpointed(store)
    export_dcp(Checkpoint(store, root), out)

    loaded = {name: torch.zeros_like(value) for name, value in params_of(run).items()}
    dcp.load(loaded, checkpoint_id=out, no_dist=True)
    again = import_folder(store, out, OTHER)

    assert_equal(loaded, params_of(run))
    assert_equal({p.name: value for p, value in Checkpoint(store, again).parameters()}, params_of(run))
    assert sorted(path.name for path in out.iterdir()) == [".metadata", "__0_0.distcp", "legion.json"]


@pytest.mark.parametrize("n_ranks", [3, 7])
def test_a_distributed_checkpoint_loads_into_any_number_of_ranks(store: BlockStore, out: Path, n_ranks: int) -> None:
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    run, root = checkpointed(store)
    export_dcp(Checkpoint(store, root), out)

    parts: dict[str, list[torch.Tensor]] = {name: [] for name in params_of(run)}
    for rank in range(n_ranks):  # each reads only its own part, so the ranks may come one after the other
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=n_ranks)
        mesh = init_device_mesh("cpu", (n_ranks,))
        mine = {}
        for name, value in params_of(run).items():
            per_rank = -(-len(value) // n_ranks)
            part = torch.zeros_like(value[rank * per_rank : (rank + 1) * per_rank])
            mine[name] = DTensor.from_local(part, mesh, [Shard(0)], run_check=False, shape=value.shape, stride=value.stride())
        dcp.load(mine, checkpoint_id=out, no_dist=True)
        dist.destroy_process_group()
        for name, loaded in mine.items():
            parts[name].append(loaded.to_local())

    assert_equal({name: torch.cat(part) for name, part in parts.items()}, params_of(run))


def test_an_imported_checkpoint_belongs_to_its_run_and_names_where_it_came_from(store: BlockStore, out: Path) -> None:
    run, _ = checkpointed(store, n_updates=2)
    with_state = run.publish(store, 30, state={"rng": b"\0\1", "lr": 0.5})
    export_safetensors(Checkpoint(store, with_state), out)

    imported = import_folder(store, out, OTHER)

    again = get_manifest(store, imported)
    assert (again.run, again.step, again.state) == (Cid.of(run.signed.spec), 30, {"rng": b"\0\1", "lr": 0.5})
    assert (again.parent, again.publisher) == (str(with_state), OTHER.peer_id)
    assert [state.version for state, _ in Checkpoint(store, imported).states()] == [2] * run.plan.n_shards


def test_a_gpt2_from_elsewhere_begins_a_new_run(store: BlockStore, out: Path) -> None:
    run, root = checkpointed(store)
    export_safetensors(Checkpoint(store, root), out)
    (out / "legion.json").unlink()
    loaded = load_file(out / "model.safetensors")
    buffers = {"h.0.attn.bias": torch.ones(1, 1, 8, 8)}  # the older files of the hub have them, and no prefix
    save_file({k.removeprefix("transformer."): v.contiguous() for k, v in loaded.items()} | buffers, out / "model.safetensors")

    with pytest.raises(UsageError, match="--name NAME"):
        import_folder(store, out, OTHER)
    checkpoint = Checkpoint(store, import_folder(store, out, OTHER, "new/run"))

    assert (checkpoint.spec.name, checkpoint.spec.creator, checkpoint.manifest.step) == ("new/run", OTHER.peer_id, 0)
    assert_equal({p.name: value for p, value in checkpoint.parameters()}, params_of(run))


@pytest.mark.parametrize("damage", ["shape", "missing", "nan", "bias", "garbage", "side", "nothing"])
def test_what_does_not_fit_is_not_imported(store: BlockStore, out: Path, damage: str) -> None:
    _, root = checkpointed(store, config=LIKE_GPT2[1])
    export_safetensors(Checkpoint(store, root), out)
    tensors = load_file(out / "model.safetensors")
    before = set(store.pins())
    expected: type[Exception] = IncompatibleModelError
    if damage == "shape":
        tensors["transformer.wpe.weight"] = torch.zeros(9, 16)
    elif damage == "missing":
        del tensors["transformer.wpe.weight"]
    elif damage == "bias":
        tensors["transformer.ln_f.bias"] += 1
    elif damage == "nan":
        tensors["transformer.ln_f.weight"][0], expected = math.nan, DecodeError
    save_file(tensors, out / "model.safetensors")
    if damage == "garbage":
        (out / "model.safetensors").write_bytes(b"\xff" * 100)
        expected = DecodeError
    elif damage == "side":
        (out / "legion.json").write_text("{}")
        expected = DecodeError
    elif damage == "nothing":
        for path in out.iterdir():
            path.unlink()
        expected = UsageError

    with pytest.raises(expected):
        import_folder(store, out, OTHER)
    assert set(store.pins()) == before


def test_an_incomplete_checkpoint_leaves_no_file_that_looks_whole(store: BlockStore, out: Path) -> None:
    run, root = checkpointed(store, n_updates=0)
    run.put_bases(store)
    (leaf,) = store.path.glob(f"blocks/?/{Checkpoint(store, root).states().__next__()[1].leaves[0]}")
    leaf.unlink()

    with pytest.raises(MissingBlockError):
        export_safetensors(Checkpoint(store, root), out)
    with pytest.raises(MissingBlockError):
        export_dcp(Checkpoint(store, root), out)
    assert not (out / "model.safetensors").exists() and not (out / ".metadata").exists()


def test_a_folder_that_cannot_be_written_is_named(store: BlockStore, tmp_path: Path) -> None:
    _, root = checkpointed(store)
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StoreError, match="name another folder"):
        export_safetensors(Checkpoint(store, root), tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "raw", "told"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        ("config.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        ("model.safetensors", b"", "is empty"),
        ("config.json", b"", "is not JSON"),
        ("config.json", b"[1]", "holds a JSON list"),
        ("config.json", b"{}", "model_type is missing"),
        ("config.json", b'{"model_type": "gpt2"}', "n_layer is missing"),
    ],
)
def test_a_file_that_is_something_else_is_named(store: BlockStore, out: Path, name: str, raw: bytes, told: str) -> None:
    _, root = checkpointed(store)
    export_safetensors(Checkpoint(store, root), out)
    (out / "legion.json").unlink()
    (out / name).write_bytes(raw)

    with pytest.raises(LegionError, match=f"{name}.*{told}"):
        import_folder(store, out, OTHER, "new")


def test_a_configuration_with_a_byte_order_mark_is_read(store: BlockStore, out: Path) -> None:
    _, root = checkpointed(store)
    export_safetensors(Checkpoint(store, root), out)
    (out / "legion.json").unlink()
    (out / "config.json").write_bytes(b"\xef\xbb\xbf" + (out / "config.json").read_bytes())

    import_folder(store, out, OTHER, "new")


@pytest.mark.parametrize(
    ("name", "told"), [("model.safetensors.index.json", "in several files"), ("pytorch_model.bin", "are a pickle")]
)
def test_another_way_to_store_a_model_is_told_with_the_remedy(store: BlockStore, out: Path, name: str, told: str) -> None:
    out.mkdir()
    (out / name).write_text("{}")
    (out / "config.json").write_text("{}")

    with pytest.raises(UsageError, match=told):
        import_folder(store, out, OTHER, "new")


@pytest.mark.parametrize("named", ["another", "equal head", "other head"])
def test_a_tensor_that_the_model_has_not_is_refused_by_name(store: BlockStore, out: Path, named: str) -> None:
    run, root = checkpointed(store)
    export_safetensors(Checkpoint(store, root), out)
    tensors = load_file(out / "model.safetensors")
    if named == "another":
        tensors["transformer.h.0.crossattention.c_attn.weight"] = torch.ones(2, 2)
    else:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone() + (named == "other head")
    save_file(tensors, out / "model.safetensors")

    if named == "equal head":
        again = import_folder(store, out, OTHER)
        assert_equal({p.name: value for p, value in Checkpoint(store, again).parameters()}, params_of(run))
    else:
        with pytest.raises(IncompatibleModelError, match=r"crossattention|lm_head\.weight"):
            import_folder(store, out, OTHER)
