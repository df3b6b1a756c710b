"""A foreign configuration: every field is understood, or refused by its name."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.errors import IncompatibleModelError
from legion_p2p.train import gpt2_config as module
from legion_p2p.train.foreign_fields import OF_NO_EFFECT
from legion_p2p.train.gpt2_config import config_from_gpt2, gpt2_config
from legion_p2p.train.gpt_config import GPTConfig

OURS = GPTConfig(n_layer=2, n_head=2, width=16, context=8, vocab_size=31, bias=True, dropout=0.1)
SAID = gpt2_config(OURS)
PUBLISHED = {  # as the hub has it for gpt2
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
    "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
    "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index",
    "summary_use_proj": True, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}  # fmt: skip


def test_what_was_exported_is_what_is_imported() -> None:
    assert config_from_gpt2(SAID, has_head=False) == OURS


def test_the_published_gpt2_is_known() -> None:
    config = config_from_gpt2(PUBLISHED, has_head=False)

    assert (config.n_layer, config.width, config.context, config.vocab_size, config.tied) == (12, 768, 1024, 50257, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation_function", "relu"), ("activation_function", "gelu"), ("activation_function", None), ("model_type", "gptj"),
        ("layer_norm_epsilon", 1e-6), ("layer_norm_epsilon", "1e-5"), ("scale_attn_weights", False), ("scale_attn_weights", 1),
        ("scale_attn_by_inverse_layer_idx", True), ("add_cross_attention", True), ("is_encoder_decoder", True),
        ("pruned_heads", {"0": [1]}), ("quantization_config", {"bits": 4}), ("rope_scaling", {"factor": 2}), ("n_inner", 63),
        ("n_layer", "two"), ("n_layer", 0), ("n_head", True), ("n_embd", 1.5), ("vocab_size", None), ("resid_pdrop", 2),
        ("attn_pdrop", 0.2), ("embd_pdrop", True), ("tie_word_embeddings", "yes"), ("tie_word_embeddings", False),
        ("n_kv_head", 1), ("attention_window", 8),
    ],
)  # fmt: skip
def test_a_field_that_means_another_model_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(IncompatibleModelError, match=name):
        config_from_gpt2({**SAID, name: value}, has_head=False)


@pytest.mark.parametrize("name", ["n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "model_type"])
def test_a_field_that_is_missing_is_named(name: str) -> None:
    said = {key: value for key, value in SAID.items() if key != name}

    with pytest.raises(IncompatibleModelError, match=f"{name} is missing"):
        config_from_gpt2(said, has_head=False)


@given(st.text(min_size=1, max_size=12), st.booleans() | st.integers() | st.text(max_size=3))
def test_no_field_that_is_not_known_passes(name: str, value: Any) -> None:
    known = {*module._ONLY, *module._SHAPE, *module._DROPOUTS, *OF_NO_EFFECT, "n_inner", "tie_word_embeddings"}
    if name in known:
        return
    with pytest.raises(IncompatibleModelError, match="not known here"):
        config_from_gpt2({**SAID, name: value}, has_head=False)


def test_a_head_of_its_own_needs_the_tensor() -> None:
    said = {**SAID, "tie_word_embeddings": False}

    assert not config_from_gpt2(said, has_head=True).tied
    with pytest.raises(IncompatibleModelError, match=r"no lm_head\.weight"):
        config_from_gpt2(said, has_head=False)
