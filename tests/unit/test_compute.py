"""A step in parts, in bf16, with recomputed activations or compiled takes less memory or time, and gives the same result."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from legion_p2p.config import Inner, NewRun, Training
from legion_p2p.errors import IncompatibleModelError, UsageError
from legion_p2p.observe.memory import FreeMemory
from legion_p2p.train import described
from legion_p2p.train.compute import Compute, memory_advice
from legion_p2p.train.evaluation import evaluating
from legion_p2p.train.flops import Utilisation, flops_per_token, peak_flops, peak_of
from legion_p2p.train.gpt import GPT
from legion_p2p.train.gpt_config import GPTConfig
from legion_p2p.train.language_model import LanguageModel
from legion_p2p.train.peer_memory import activation_bytes

TINY = GPTConfig(n_layer=2, n_head=2, width=16, context=12, vocab_size=11)


def gradients(job: Training, *, config: GPTConfig = TINY, batch: int = 5, **how: Any) -> tuple[float, Tensor]:
    """The loss of one batch, and all gradients."""
    model = LanguageModel.of_gpt(GPT(config, torch.Generator().manual_seed(1)))
    x, y = torch.randint(11, (2, batch, config.context), generator=torch.Generator().manual_seed(2))
    loss = Compute(model, "cpu", job, **how).backward(x, y)
    return loss, torch.cat([p.grad.reshape(-1) for p in model.module.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("job", "how"),
    [
        (Training(accumulate=2), {}),
        (Training(accumulate=5), {}),
        (Training(activation_checkpointing=True), {}),
        (Training(compile=True), {"backend": "eager"}),
        (Training(accumulate=3, activation_checkpointing=True), {}),
    ],
    ids=["two parts", "a part a window", "recomputed", "compiled", "parts, recomputed"],
)
def test_what_saves_memory_or_time_gives_the_same_loss_and_gradients(job: Training, how: dict[str, Any]) -> None:
    loss, grads = gradients(job, **how)
    plain_loss, plain_grads = gradients(Training())

    assert loss == pytest.approx(plain_loss, abs=1e-5)
    torch.testing.assert_close(grads, plain_grads, atol=1e-6, rtol=1e-4)


def test_bf16_computes_about_the_same_and_leaves_parameters_and_gradients_in_fp32() -> None:
    loss, grads = gradients(Training(precision="bf16"))
    plain_loss, plain_grads = gradients(Training())

    assert loss == pytest.approx(plain_loss, rel=0.02) and loss != plain_loss
    assert grads.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(grads, plain_grads, dim=0) > 0.98


def test_recomputed_layers_draw_the_same_dropout() -> None:
    config = GPTConfig(n_layer=2, n_head=2, width=16, context=12, vocab_size=11, dropout=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        _, plain = gradients(Training(), config=config)
        torch.manual_seed(4)
        _, recomputed = gradients(Training(activation_checkpointing=True), config=config)

    torch.testing.assert_close(recomputed, plain)


def test_with_recomputed_activations_less_is_kept_for_the_backward_pass() -> None:
    def kept_bytes(job: Training) -> int:
        model = LanguageModel.of_gpt(GPT(GPTConfig(n_layer=6, n_head=2, width=32, context=32, vocab_size=11)))
        compute = Compute(model, "cpu", job)
        total = 0

        def pack(kept: Tensor) -> Tensor:
            nonlocal total
            total += kept.numel() * kept.element_size()
            return kept

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
            compute.loss(*torch.randint(11, (2, 4, 32), generator=torch.Generator().manual_seed(2)))
        return total

    assert kept_bytes(Training(activation_checkpointing=True)) < kept_bytes(Training()) / 3


def test_what_the_compiler_cannot_do_is_told_with_the_option_to_leave_out() -> None:
    def broken(_graph: Any, _inputs: Any) -> Callable[..., Any]:
        raise RuntimeError("no C++ compiler was found\nand more")

    with pytest.raises(UsageError, match=r"train without --compile: .*no C\+\+ compiler was found"):
        gradients(Training(compile=True), backend=broken)


def test_other_errors_of_a_compiled_model_stay_what_they_are() -> None:
    class Broken(nn.Module):
        def forward(self, _x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    module = Broken()
    model = LanguageModel(module, 4, 11, lambda idx: module(idx), lambda: None)
    x = torch.zeros((1, 4), dtype=torch.int64)

    with pytest.raises(torch.OutOfMemoryError):
        Compute(model, "cpu", Training(compile=True), backend="eager").loss(x, x)


def test_evaluating_leaves_the_mode_as_it_was_even_if_it_fails() -> None:
    module = nn.Linear(1, 1)

    with pytest.raises(ZeroDivisionError), evaluating(module):
        assert not module.training
        1 // 0  # noqa: B018
    assert module.training


def test_lack_of_memory_is_told_with_what_takes_less_and_is_not_in_use_yet() -> None:
    bad = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    told = memory_advice(bad, Training(accumulate=2, precision="bf16"), "cuda:0", batch=8, n_steps=3)
    assert told == (
        "training on cuda:0 ran out of memory after 3 steps (2.00 GiB more were asked for); less takes: "
        "--accumulate 4, --activation-checkpointing, --device cpu"
    )

    everything = Training(accumulate=8, activation_checkpointing=True, precision="bf16")
    assert memory_advice(MemoryError(), everything, "cpu", batch=8, n_steps=0).endswith("less takes: a run of a smaller model")


def test_a_step_that_would_take_absurd_memory_is_refused_before_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = described.described(NewRun("x", preset="xxs", inner=Inner(batch=65536)))
    monkeypatch.setattr(described, "free_memory", lambda: FreeMemory(10**10, "for this test"))

    described.check_memory(spec)
    with pytest.raises(IncompatibleModelError, match=r"needs about .* GB of memory, and 10\.0 GB are free"):
        described.check_memory(spec, activation_bytes(spec))
    described.check_memory(spec, activation_bytes(spec, Training(accumulate=256)))


def test_the_operations_of_a_token_count_each_matrix_once_and_tables_where_they_multiply() -> None:
    tied = GPT(TINY)
    layers = 2 * 12 * 16**2
    attention = 12 * 2 * 16 * 12

    assert flops_per_token(tied, 2, 16, 12) == 6 * (layers + 11 * 16) + attention
    untied = GPT(GPTConfig(n_layer=2, n_head=2, width=16, context=12, vocab_size=11, tied=False))
    assert flops_per_token(untied, 2, 16, 12) == 6 * (layers + 11 * 16) + attention


def test_utilisation_is_told_only_where_the_peak_is_known() -> None:
    assert peak_flops("cpu", "fp32") is None
    assert peak_flops("cpu", "fp32", 0.5) == 5e11
    assert peak_of("NVIDIA H100 PCIe", "bf16") == 756e12 and peak_of("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak_of("NVIDIA A100-SXM4-80GB", "fp32") == 19.5e12
    assert peak_of("GeForce GT 710", "fp32") is None
    assert Utilisation(10**9, 1e12).mfu(250.0) == 0.25
    assert Utilisation(10**9, None).mfu(250.0) is None
