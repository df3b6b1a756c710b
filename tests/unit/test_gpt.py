"""The model: sizes, a reproducible start, causality, and that it learns."""

import math
from dataclasses import replace

import pytest
import torch

from legion_p2p.errors import ConfigError, UsageError
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.gpt import GPT, INIT_STD, shapes_of
from legion_p2p.train.gpt_config import PRESETS, GPTConfig, of_size, preset
from legion_p2p.train.parameters import param_specs, trainable

LLAMA = GPTConfig(2, 4, 16, 12, 11, positions="rotary", tied=False, norm="rms", mlp="swiglu", mlp_width=24, n_kv_head=2)
TINY = GPTConfig(n_layer=2, n_head=2, width=16, context=12, vocab_size=11)
ROTARY = GPTConfig(n_layer=2, n_head=2, width=16, context=12, vocab_size=11, positions="rotary", bias=True, tied=False)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "n_params"), [("xxs", 252_384), ("s", 836_736), ("m", 4_852_992), ("l", 25_567_744), ("gpt2", 124_439_808)]
)
def test_presets_have_the_sizes_of_record(name: str, n_params: int) -> None:
    c = PRESETS[name]
    per_layer = 12 * c.width**2 + 2 * c.width + (11 * c.width if c.bias else 0)
    norm = c.width * (2 if c.bias else 1)
    assert (c.vocab_size + c.context) * c.width + c.n_layer * per_layer + norm == n_params
    if n_params < 1e6:  # the large ones take seconds to make
        assert GPT.from_preset(name).n_params == n_params


@pytest.mark.parametrize(
    ("name", "n_params"),
    [("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200), ("llama-1b", 1_100_048_384),
     ("llama-7b", 6_738_415_616)],
)  # fmt: skip
def test_larger_presets_have_the_sizes_that_were_published(name: str, n_params: int) -> None:
    assert sum(param.numel for param in shapes_of(PRESETS[name])) == n_params


def test_heads_of_queries_share_heads_of_keys_and_values() -> None:
    shared = GPT(LLAMA)
    alone = GPT(replace(LLAMA, n_kv_head=0))
    same = shared.state_dict()
    for name, value in same.items():
        if name.endswith("qkv.weight"):
            q, k, v = value.split([16, 8, 8])
            twice = [x.view(2, 4, 16).repeat_interleave(2, dim=0).reshape(16, 16) for x in (k, v)]
            same[name] = torch.cat([q, *twice])
    alone.load_state_dict(same)
    tokens = torch.randint(11, (2, 12), generator=seeded(0))

    torch.testing.assert_close(shared(tokens)[0], alone(tokens)[0])


def test_the_inner_layer_of_swiglu_takes_about_as_many_parameters_as_that_of_gelu() -> None:
    assert GPTConfig(1, 32, 4096, 8, mlp="swiglu").inner_width == 11008  # LLaMA's
    assert GPTConfig(1, 4, 64, 8).inner_width == 256


def test_the_formula_of_sizes_holds_with_bias() -> None:
    model = GPT.from_preset("gpt2", n_layer=1, width=24, n_head=2, context=8, vocab_size=10)

    assert model.n_params == 18 * 24 + 12 * 24**2 + 13 * 24 + 2 * 24


@pytest.mark.parametrize("config", [TINY, ROTARY, LLAMA, PRESETS["xxs"]])
def test_the_shapes_of_a_model_are_known_without_making_it(config: GPTConfig) -> None:
    assert shapes_of(config) == param_specs(FlatView(trainable(GPT(config))))


@pytest.mark.parametrize("n_params", [3e7, 1.24e8, 3.5e8, 1e9, 3e9, 7e9, 13e9, 30e9])
def test_a_model_of_a_size_is_about_that_large(n_params: float) -> None:
    assert sum(p.numel for p in shapes_of(of_size(n_params))) == pytest.approx(n_params, rel=0.1)


def test_the_size_of_gpt2_gives_its_shape() -> None:
    config = of_size(124e6)

    assert (config.n_layer, config.n_head, config.width, config.context) == (12, 12, 768, 1024)


def test_a_size_too_small_for_its_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 10000000"):
        of_size(9e6)


def test_untied_and_rotary_models_have_what_they_need_and_no_more() -> None:
    names = {name for name, _ in GPT(ROTARY).named_parameters()}

    assert "head.weight" in names
    assert not any("position" in name or "rotation" in name for name in names)
    assert "rotation" not in GPT(ROTARY).state_dict()


def test_the_start_depends_on_the_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = GPT(TINY, seeded(7))
    untouched = torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other, default = GPT(TINY, seeded(7)), GPT(TINY, seeded(8)), GPT(TINY)

    assert untouched
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert torch.equal(default.embedding.weight, GPT(TINY, seeded(0)).embedding.weight)


def test_weights_start_normal_and_output_projections_smaller() -> None:
    model = GPT.from_preset("s", seeded(0))

    for name, p in model.state_dict().items():
        if p.ndim == 1:
            assert bool((p == 1).all()), name
        else:
            expected = INIT_STD / math.sqrt(8) if name.endswith("out.weight") else INIT_STD
            assert float(p.std()) == pytest.approx(expected, rel=0.03), name
            assert abs(float(p.mean())) < 0.05 * expected, name


def test_biases_start_at_zero() -> None:
    assert all(not p.any() for name, p in GPT(ROTARY).named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize("config", [TINY, ROTARY, LLAMA])
def test_no_token_sees_a_later_one(config: GPTConfig) -> None:
    model = GPT(config).eval()
    idx = torch.randint(11, (3, 12), generator=seeded(0))
    changed = idx.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 11

    before, after = model(idx)[0], model(changed)[0]

    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-6)
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-6)


@pytest.mark.parametrize("config", [TINY, ROTARY, LLAMA])
def test_positions_matter(config: GPTConfig) -> None:
    model = GPT(config)
    with torch.no_grad():  # at its start, attention looks at all alike
        for p in model.parameters():
            p.mul_(10)

    there, back = model(torch.tensor([[1, 2, 3]]))[0], model(torch.tensor([[2, 1, 3]]))[0]

    assert not torch.allclose(there[:, -1], back[:, -1], atol=1e-4)


def test_rotary_attention_sees_distances_only() -> None:
    from legion_p2p.train.gpt import _rotate, _rotation

    rotation = _rotation(ROTARY)
    q, k = torch.randn(8, generator=seeded(1)), torch.randn(8, generator=seeded(2))
    q_turned, k_turned = (_rotate(x.expand(1, 1, 12, 8), rotation)[0, 0] for x in (q, k))

    scores = q_turned @ k_turned.T

    for distance in range(11):
        assert float(scores.diagonal(-distance).std()) < 1e-5


def test_the_loss_is_the_mean_over_targets_that_count() -> None:
    model = GPT(TINY)
    idx = torch.randint(11, (2, 5), generator=seeded(0))
    targets = torch.randint(11, (2, 5), generator=seeded(1))
    targets[0, :3] = -1

    logits, loss = model(idx, targets)

    log_p = logits.log_softmax(-1).gather(2, targets.clamp_min(0)[..., None])[..., 0]
    assert loss is not None
    assert loss.item() == pytest.approx(-log_p[targets >= 0].mean().item(), rel=1e-5)
    assert model(idx)[1] is None
    assert loss.item() == pytest.approx(math.log(11), rel=0.1)


@pytest.mark.parametrize("config", [TINY, ROTARY, LLAMA])
def test_it_learns_a_pattern_and_goes_on_with_it(config: GPTConfig) -> None:
    model = GPT(config, seeded(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    starts = torch.arange(11)[:, None]
    text = (starts + 3 * torch.arange(13)) % 11

    for _ in range(60):
        _, loss = model(text[:, :-1], text[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    written = model.generate(torch.tensor([[4]]), 20, temperature=0)  # past the context of 12
    assert loss.item() < 0.2
    assert written[0].tolist() == [(4 + 3 * i) % 11 for i in range(21)]


def test_generation_is_reproducible_and_top_1_is_greedy() -> None:
    model = GPT(TINY)
    start = torch.zeros(2, 1, dtype=torch.int64)

    first, again = (model.generate(start, 30, generator=seeded(3)) for _ in range(2))

    assert torch.equal(first, again)
    assert first.shape == (2, 31) and int(first.max()) < 11
    assert torch.equal(model.generate(start, 9, top_k=1), model.generate(start, 9, temperature=0))


def test_every_parameter_gets_a_gradient() -> None:
    model = GPT(ROTARY)
    idx = torch.randint(11, (2, 12), generator=seeded(0))

    model(idx, idx)[1].backward()

    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_a_config_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of n_head"):
        preset("xxs", n_head=5)
    with pytest.raises(ConfigError, match="positions 'sine'"):
        preset("xxs", positions="sine")
    with pytest.raises(ConfigError, match="even"):
        preset("xxs", width=99, n_head=3, positions="rotary")
    with pytest.raises(ConfigError, match="dropout"):
        preset("xxs", dropout=1.0)
    with pytest.raises(ConfigError, match="unknown model 'xl', known are xxs, s, m"):
        preset("xl")
    with pytest.raises(ConfigError, match="13 tokens, the model's context is 12"):
        GPT(TINY)(torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(ConfigError, match="top_k 0"):
        GPT(TINY).generate(torch.zeros(1, 1, dtype=torch.int64), 1, top_k=0)
