"""What of a model is in a run, by which names, and what stands beside it."""

import pytest
import torch
from torch import nn

from legion_p2p.core.plan import FixedSpec, check_fixed
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import IncompatibleModelError
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.parameters import ModelView, param_specs, plain_names


def model_of(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in ModelView(model).trained]


def spec_of(model: nn.Module, untrained: str = "same") -> RunSpec:
    own = ModelView(model)
    round_ = RoundSpec(untrained=untrained)  # type: ignore[arg-type]
    fixed = () if untrained == "own" else own.fixed()
    return RunSpec("run", "", param_specs(FlatView(own.in_run(untrained))), round_, fixed=fixed)


PLAIN = names_of(model_of())
WRAPPERS = {
    "compiled": lambda m: torch.compile(m, backend="eager"),
    "data parallel": nn.DataParallel,
    "compiled and data parallel": lambda m: nn.DataParallel(torch.compile(m, backend="eager")),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_words_of_wrappers_do_not_count(wrapper: str) -> None:
    assert names_of(WRAPPERS[wrapper](model_of())) == PLAIN


def test_nor_do_they_inside_a_model_and_in_pairs_of_names() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = model_of()
    model[0] = torch.compile(model[0], backend="eager")
    model[2] = checkpoint_wrapper(nn.DataParallel(model[2]))

    assert names_of(model) == PLAIN
    assert plain_names(["module._orig_mod.a.weight", "module._orig_mod.b"]) == ["a.weight", "b"]
    assert plain_names(["_fsdp_wrapped_module.a", "b._checkpoint_wrapped_module.c"]) == ["a", "b.c"]


def test_a_models_own_module_keeps_its_name_beside_others() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.head = nn.Linear(2, 2)

    assert names_of(Model())[0] == "module.weight"
    assert names_of(nn.DataParallel(Model())) == names_of(Model())


def test_frozen_parameters_and_kept_float_buffers_stand_beside() -> None:
    model = model_of()
    model[0].requires_grad_(False)
    model[1].register_buffer("computed", torch.ones(3), persistent=False)
    own = ModelView(model)

    assert [name for name, _ in own.trained] == PLAIN[2:]
    assert [name for name, _ in own.frozen] == ["0.weight", "0.bias"]
    assert [name for name, _ in own.buffers] == ["1.running_mean", "1.running_var"]  # not the count of batches, an integer
    assert [fixed.name for fixed in own.fixed()] == ["0.weight", "0.bias", "1.running_mean", "1.running_var"]


def test_a_frozen_base_that_differs_is_refused_by_name() -> None:
    founder, joiner = model_of(seed=0), model_of(seed=1)
    for model in (founder, joiner):
        model[0].requires_grad_(False)

    with pytest.raises(IncompatibleModelError, match=r"0\.weight \[8, 4\] has other values .*and 1 more.*Load what its creator"):
        ModelView(joiner).fit(spec_of(founder))
    assert ModelView(founder).fit(spec_of(founder)) == spec_of(founder).params


@pytest.mark.parametrize("change", ["value", "type"])
def test_a_buffer_that_differs_is_refused_unless_the_run_averages_or_ignores_it(change: str) -> None:
    founder, joiner = model_of(), model_of()
    if change == "value":
        joiner[1].running_var[3] = 2.0
    else:
        joiner[1].running_var = joiner[1].running_var.double()

    with pytest.raises(IncompatibleModelError, match=r"1\.running_var \[8\] has other values"):
        ModelView(joiner).fit(spec_of(founder))
    assert ModelView(joiner).fit(spec_of(founder, "own")) == spec_of(founder).params
    averaged = ModelView(joiner).fit(spec_of(founder, "average"))
    assert [p.name for p in averaged] == [*PLAIN, "1.running_mean", "1.running_var"]


def test_a_run_that_averages_buffers_still_compares_what_is_frozen() -> None:
    founder, joiner = model_of(seed=0), model_of(seed=1)
    founder[2].requires_grad_(False), joiner[2].requires_grad_(False)

    with pytest.raises(IncompatibleModelError, match=r"2\.weight"):
        ModelView(joiner).fit(spec_of(founder, "average"))


def test_buffers_that_no_average_could_hold_are_left_out() -> None:
    model = model_of()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    assert "mask" not in [name for name, _ in ModelView(model).in_run("average")]


def test_what_only_one_of_both_lists_is_not_compared() -> None:
    here, there = FixedSpec("a", (1,), b"1" * 8), FixedSpec("b", (1,), b"2" * 8)

    check_fixed([here], [there])
    check_fixed([here], [])
    with pytest.raises(IncompatibleModelError, match=r"a has the shape \[1\], in the run it has \[2\]"):
        check_fixed([here], [FixedSpec("a", (2,), b"1" * 8)])


def test_pairs_of_names_and_tensors_have_what_they_list() -> None:
    model = model_of()
    model[0].requires_grad_(False)
    own = ModelView(model.named_parameters())

    assert [name for name, _ in own.trained] == PLAIN[2:]
    assert own.buffers == []
    assert own.name_of(model[0].weight) == "0.weight"
    assert own.name_of(torch.zeros(1)) is None
