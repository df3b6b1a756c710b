"""Configurations of foreign models in a specification: data, bounded, and nothing that could load code."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.model_config import (
    MAX_CONFIG_CHARS,
    MAX_CONFIG_DEPTH,
    MAX_NUMBER,
    MAX_REPEATED,
    MAX_TEXT_CHARS,
    model_config,
    read_model_config,
)
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.run import RunSpec, open_spec, sign_spec
from legion_p2p.errors import DecodeError, LegionError, UsageError
from tests.checkpoint_of import FOUNDER

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "rope_theta": 1e6, "tie_word_embeddings": True}


def test_a_configuration_comes_back_as_it_was() -> None:
    assert read_model_config(model_config(LLAMA)) == LLAMA


def test_two_spellings_of_one_configuration_are_one_text() -> None:
    assert model_config(dict(reversed(LLAMA.items()))) == model_config(LLAMA)


def test_what_has_no_effect_in_a_run_is_left_out() -> None:
    more = {
        "_name_or_path": "/home/me/model",
        "dtype": "bfloat16",
        "_attn_implementation": "sdpa",
        "id2label": {"0": "A"},
        "auto_map": None,
    }

    assert model_config({**LLAMA, **more}) == model_config(LLAMA)


def test_a_base_of_angles_may_be_a_large_whole_number() -> None:
    assert read_model_config(model_config({**LLAMA, "rope_theta": 1_000_000_000}))["rope_theta"] == 1e9


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("auto_map", {"AutoModelForCausalLM": "modeling.Mine"}), ("trust_remote_code", True),
        ("quantization_config", {"bits": 4}),
        ("vision_config", {"auto_map": {"AutoModel": "x"}}), ("use_kernels", True), ("backbone", "resnet18"),
        ("text_backbone", "x"),
    ],
)  # fmt: skip
def test_what_names_code_is_refused_wherever_it_stands(field: str, value: object) -> None:
    with pytest.raises(DecodeError, match=r"is data, and this names code"):
        model_config({**LLAMA, field: value})


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation_internal", "_experts_implementation"])
def test_implementations_are_not_the_founder_s_to_choose(name: str) -> None:
    with pytest.raises(DecodeError, match="names code"):
        read_model_config(json.dumps({**LLAMA, name: "kernels-community/flash"}))


@pytest.mark.parametrize("value", ["org/repository", "..\\weights", "https://example.org", "file:weights"])
def test_a_path_or_an_address_is_refused(value: str) -> None:
    with pytest.raises(DecodeError, match="no path, address or name of a repository"):
        model_config({**LLAMA, "some_new_field": [value]})


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("num_hidden_layers", MAX_REPEATED + 1, f"at most {MAX_REPEATED}"), ("n_layer", 10**30, f"at most {MAX_REPEATED}"),
        ("num_experts", MAX_REPEATED + 1, f"at most {MAX_REPEATED}"), ("vocab_size", MAX_NUMBER + 1, f"at most {MAX_NUMBER}"),
        ("sizes", [[-MAX_NUMBER - 1]], f"at most {MAX_NUMBER}"), 
        ("hidden_act", "x" * (MAX_TEXT_CHARS + 1), "characters, at most"),
        ("layer_types", ["full_attention"] * (MAX_CONFIG_CHARS // 10), "characters, at most"),
    ],
)  # fmt: skip
def test_sizes_are_bounded(field: str, value: object, told: str) -> None:
    with pytest.raises(DecodeError, match=told):
        model_config({**LLAMA, field: value})


def test_nesting_is_bounded() -> None:
    deep: object = 1
    for _ in range(MAX_CONFIG_DEPTH + 1):
        deep = [deep]

    with pytest.raises(DecodeError, match="nested more than"):
        model_config({**LLAMA, "deep": deep})
    with pytest.raises(DecodeError, match=r"not JSON|nested"):
        read_model_config("[" * (MAX_CONFIG_CHARS // 2))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"gpt2"', "{}", '{"model_type": 3}', '{"model_type": "../x"}', "\x00"])
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(DecodeError, match="model configuration"):
        read_model_config(text)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


@given(st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3)))
def test_whatever_json_a_stranger_sends_is_read_or_refused(value: object) -> None:
    try:
        fields = read_model_config(json.dumps(value))
    except LegionError:
        return
    assert read_model_config(model_config(fields)) is not None


def spec_with(**fields: object) -> RunSpec:
    return RunSpec("foreign", FOUNDER.peer_id, (ParamSpec("w", (4, 4)),), **fields)  # type: ignore[arg-type]


def test_a_run_of_a_foreign_model_is_signed_and_opened() -> None:
    spec = spec_with(transformers=model_config(LLAMA))

    assert open_spec(sign_spec(spec, FOUNDER)) == spec


def test_a_run_has_one_model_and_one_that_is_data() -> None:
    with pytest.raises(UsageError, match="not both"):
        sign_spec(spec_with(transformers=model_config(LLAMA), model={"n_layer": 1}), FOUNDER)
    with pytest.raises(UsageError, match="auto_map"):
        sign_spec(spec_with(transformers=json.dumps({**LLAMA, "auto_map": {"a": "b"}})), FOUNDER)
