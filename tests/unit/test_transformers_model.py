"""Models of the library transformers in runs: built from data, by seed, within bounds."""

import json
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from legion_p2p.config import Inner, NewRun
from legion_p2p.core.cids import Cid
from legion_p2p.core.identity import Identity
from legion_p2p.core.manifest import Manifest, StoredShard
from legion_p2p.core.model_config import model_config
from legion_p2p.core.run import RunSpec, open_spec, sign_spec
from legion_p2p.errors import ConfigError, IncompatibleModelError, LegionError, UsageError
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoints import publish, put_base, put_node, put_spec
from legion_p2p.tensor.flatten import FlatView, digest, fp32_bytes
from legion_p2p.train import transformers_model as module
from legion_p2p.train.checkpoint import Checkpoint
from legion_p2p.train.described import check_choices, described, model_of, shape_of, spec_of
from legion_p2p.train.export import export_safetensors
from legion_p2p.train.families import FAMILIES
from legion_p2p.train.imports import import_folder
from legion_p2p.train.job_plan import plan_of
from legion_p2p.train.parameters import trainable
from tests.checkpoint_of import FOUNDER

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "max_position_embeddings": 32, "vocab_size": 97}  # fmt: skip
CONFIGS = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "vocab_size": 97},
    "gpt_neo": {"model_type": "gpt_neo", "num_layers": 2, "num_heads": 2, "hidden_size": 32, "max_position_embeddings": 32,
                "attention_types": [[["global", "local"], 1]], "window_size": 8, "vocab_size": 97},
    "llama": {"model_type": "llama", **SMALL},
    "qwen2": {"model_type": "qwen2", **SMALL, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **SMALL, "head_dim": 8},
}  # fmt: skip


def written(folder: Path, fields: object) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(fields))
    return f"hf:{path}"


def new_run(folder: Path, fields: object, **more: object) -> NewRun:
    return NewRun("foreign", architecture=written(folder, fields), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_what_a_specification_builds_is_what_plain_transformers_builds(tmp_path: Path, fields: dict[str, object]) -> None:
    spec, model = spec_of(new_run(tmp_path, fields, seed=5))
    torch.manual_seed(5)
    plain = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**fields))
    tokens = torch.randint(97, (2, 17), generator=torch.Generator().manual_seed(1))

    ours = dict(trainable(model.module))
    assert list(ours) == [p.name for p in spec.params]
    assert all(torch.equal(ours[name], value) for name, value in plain.named_parameters())
    model.module.eval()
    loss = model.loss(tokens[:, :-1], tokens[:, 1:])
    torch.testing.assert_close(loss, plain.eval()(tokens, labels=tokens).loss, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_a_peer_that_joins_builds_the_same_from_the_signed_specification(tmp_path: Path, fields: dict[str, object]) -> None:
    founder = Identity.generate()
    spec, first = spec_of(new_run(tmp_path, fields))
    signed = sign_spec(msgspec.structs.replace(spec, creator=founder.peer_id), founder)

    joined = model_of(open_spec(signed))

    assert [(n, p.tolist()) for n, p in trainable(joined.module)] == [(n, p.tolist()) for n, p in trainable(first.module)]
    assert (joined.context, joined.vocab_size) == (32, 97)


def test_training_steps_give_the_losses_of_plain_torch(tmp_path: Path) -> None:
    _, model = spec_of(new_run(tmp_path, CONFIGS["llama"]))
    torch.manual_seed(0)
    plain = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**CONFIGS["llama"]))
    tokens = torch.randint(97, (10, 4, 17), generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (model.module, plain))

    for batch in tokens:
        mine = model.loss(batch[:, :-1], batch[:, 1:])
        torch.autograd.backward(mine)
        other = plain(batch, labels=batch).loss
        other.backward()
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
        for opt in (ours, theirs):
            opt.step()
            opt.zero_grad()


def test_the_random_state_of_the_process_is_not_touched(tmp_path: Path) -> None:
    run = new_run(tmp_path, CONFIGS["gpt2"])
    before = torch.random.get_rng_state()

    spec_of(run)

    assert torch.equal(torch.random.get_rng_state(), before)


SIZES = {"gpt2": 124e6, "gpt2-medium": 355e6, "gpt2-large": 774e6, "gpt2-xl": 1558e6, "gpt-neo-125m": 125e6,
         "gpt-neo-1.3b": 1316e6, "llama-1b": 1100e6, "llama-7b": 6738e6}  # fmt: skip


@pytest.mark.parametrize(("name", "n_params"), SIZES.items())
def test_the_families_have_the_sizes_that_were_published(name: str, n_params: float) -> None:
    plan = plan_of(described(NewRun("foreign", architecture=f"hf:{name}")), (2,), None)

    assert plan.n_params == pytest.approx(n_params, rel=5e-3)


def test_every_family_is_tested_for_its_size() -> None:
    assert set(FAMILIES) == {
        "gpt2",
        "gpt2-medium",
        "gpt2-large",
        "gpt2-xl",
        "gpt-neo-125m",
        "gpt-neo-1.3b",
        "llama-1b",
        "llama-7b",
    }


def test_fields_of_the_specification_win_over_those_of_the_architecture() -> None:
    spec = described(NewRun("foreign", architecture="hf:gpt2", model={"n_layer": 2, "vocab_size": 300}))

    assert shape_of(spec).n_layer == 2 and shape_of(spec).vocab_size == 300


def test_windows_are_as_long_as_was_chosen_and_the_model_can_read(tmp_path: Path) -> None:
    long = {**CONFIGS["llama"], "max_position_embeddings": 131072}

    assert shape_of(described(new_run(tmp_path, long))).context == 1024
    assert shape_of(described(new_run(tmp_path, long, inner=Inner(context=4096)))).context == 4096
    with pytest.raises(IncompatibleModelError, match="windows of 33 tokens, and its model reads 32"):
        described(new_run(tmp_path, CONFIGS["llama"], inner=Inner(context=33)))


def test_a_folder_of_weights_is_gone_on_from(tmp_path: Path) -> None:
    trained = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**CONFIGS["qwen2"]))
    trained.save_pretrained(tmp_path / "model", max_shard_size="30KB")

    _, model = spec_of(NewRun("foreign", architecture=f"hf:{tmp_path / 'model'}"))

    assert len([*(tmp_path / "model").glob("*.safetensors")]) > 1
    assert all(torch.equal(p, dict(trained.named_parameters())[name]) for name, p in trainable(model.module))
    assert model.module.training


@pytest.mark.parametrize(("change", "told"), [
    ({"vocab_size": 98}, "another shape"), ({"num_hidden_layers": 3}, "has no"), ({"num_hidden_layers": 1}, "does not have"),
])  # fmt: skip
def test_weights_that_do_not_fit_their_configuration_are_named(tmp_path: Path, change: dict[str, int], told: str) -> None:
    trained = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**CONFIGS["llama"]))
    trained.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, **change}))

    with pytest.raises(IncompatibleModelError, match=told):
        spec_of(NewRun("foreign", architecture=f"hf:{tmp_path}"))


def test_a_folder_with_a_pickle_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["gpt2"]))

    with pytest.raises(ConfigError, match=r"pickle, which can run code.*safetensors"):
        spec_of(NewRun("foreign", architecture=f"hf:{tmp_path}"))


@pytest.mark.parametrize(("fields", "told"), [
    ([1], "a JSON list"), ({}, "model_type is None"), ({"model_type": "bert-of-mars"}, "no model of type 'bert-of-mars'"),
    ({"model_type": "t5"}, "that predicts tokens"), ({**CONFIGS["llama"], "hidden_size": "wide"}, "refuses|cannot build"),
    ({**CONFIGS["llama"], "num_attention_heads": 5}, "refuses|cannot build"),
    ({**CONFIGS["gpt2"], "auto_map": {"a": "b.c"}}, "auto_map"),
    ({**CONFIGS["llama"], "intermediate_size": 1 << 25, "hidden_size": 1 << 25}, "more than 3.4e.10 parameters"),
])  # fmt: skip
def test_a_configuration_that_cannot_be_built_is_refused_by_name(tmp_path: Path, fields: object, told: str) -> None:
    with pytest.raises(LegionError, match=told):
        described(new_run(tmp_path, fields))


def test_a_hostile_specification_is_given_up_while_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    text = model_config({**CONFIGS["gpt2"], "n_layer": 3000})
    monkeypatch.setattr(module, "MAX_PARAMS", 100)  # a few hundred layers take seconds

    with pytest.raises(IncompatibleModelError, match="more than 100 tensors"):
        module.outline_of(text)
    monkeypatch.setattr(module, "MAX_PARAMS", 20_000)
    monkeypatch.setattr(module, "MAX_MODULES", 100)
    with pytest.raises(IncompatibleModelError, match="more than 100 parts"):
        module.outline_of(text)
    monkeypatch.undo()
    assert module.outline_of(model_config(CONFIGS["gpt2"])).params  # what watches it is gone


def test_parameters_that_are_not_the_model_s_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    spec = described(new_run(tmp_path, CONFIGS["llama"]))
    other = described(new_run(tmp_path, CONFIGS["gpt2"]))
    liar = msgspec.structs.replace(spec, params=other.params)

    with pytest.raises(IncompatibleModelError, match="parameter 0 differs"):
        model_of(liar)


def test_a_run_that_is_there_with_another_model_is_not_joined_by_mistake(tmp_path: Path) -> None:
    there = described(new_run(tmp_path, CONFIGS["llama"]))

    check_choices(new_run(tmp_path, CONFIGS["llama"]), there)
    with pytest.raises(IncompatibleModelError, match="transformers"):
        check_choices(new_run(tmp_path, CONFIGS["gpt2"]), there)


def test_without_the_library_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path, CONFIGS["llama"])
    spec = described(run)
    module.outline_of.cache_clear()
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)

    for fails in (lambda: model_of(spec), lambda: spec_of(run)):
        with pytest.raises(LegionError, match=r'pip install "legion_p2p\[hf\]"'):
            fails()


def test_what_names_a_model_is_a_family_a_file_or_a_folder() -> None:
    with pytest.raises(UsageError, match=r"hf:NAME, hf:CONFIG\.json or hf:FOLDER"):
        NewRun("foreign", architecture="gpt2")
    with pytest.raises(ConfigError, match=r"hf:gtp2: no such file or folder, and no family; these are gpt2, "):
        described(NewRun("foreign", architecture="hf:gtp2"))
    with pytest.raises(UsageError, match="give one"):
        NewRun("foreign", architecture="hf:gpt2", preset="s")


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_a_checkpoint_is_exported_as_a_folder_that_from_pretrained_loads(tmp_path: Path, fields: dict[str, object]) -> None:
    spec, model = spec_of(new_run(tmp_path, fields, seed=3))
    flat = FlatView(trainable(model.module)).snapshot()
    tokens = torch.randint(97, (2, 16), generator=torch.Generator().manual_seed(1))

    with BlockStore(tmp_path / "store") as store:
        root = stored(store, spec, flat)
        names = export_safetensors(Checkpoint(store, root), tmp_path / "out")
        again = import_folder(store, tmp_path / "out", FOUNDER)
        back = torch.cat([value.reshape(-1) for _, value in Checkpoint(store, again).parameters()])
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)

    assert names == "transformers" and torch.equal(back, flat)
    assert not any(told[kind] for kind in ("unexpected_keys", "mismatched_keys", "missing_keys"))
    model.module.eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(tokens).logits, model.logits(tokens), rtol=1e-6, atol=1e-6)


def stored(store: BlockStore, spec: RunSpec, flat: torch.Tensor) -> Cid:
    """A checkpoint of the run at its start."""
    signed = sign_spec(msgspec.structs.replace(spec, creator=FOUNDER.peer_id), FOUNDER)
    plan = spec.plan()
    put_spec(store, signed)
    shards = []
    for shard in range(plan.n_shards):
        part = flat[slice(*plan.bounds(shard))]
        shards.append(put_node(store, StoredShard(shard, 0, digest(part), put_base(store, 0, (), fp32_bytes(part)))))
    return publish(store, Manifest(Cid.of(signed.spec), signed.signature, 0, tuple(shards), FOUNDER.peer_id, 1), FOUNDER, "start")
