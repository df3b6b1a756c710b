"""What is handed in instead of a model or an optimizer is refused by name, before anything is opened."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import legion_p2p as legion
from legion_p2p.config.old_names import AVERAGE_ARGUMENTS, NAMES, OPTIMIZER_ARGUMENTS
from legion_p2p.core.identity import Identity
from legion_p2p.errors import ConfigError, UsageError
from legion_p2p.train.arguments import model_view
from legion_p2p.train.described import check_choices, described

MODEL = nn.Linear(2, 2)
INNER = torch.optim.SGD(MODEL.parameters(), lr=0.1)
FROZEN = nn.Linear(2, 2).requires_grad_(False)


def wrap(inner: Any = INNER, model: Any = MODEL, run: Any = "never", **more: Any) -> legion.Optimizer:
    return legion.Optimizer(inner, model, run, **more)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: wrap(model=MODEL.parameters()), "model is tensors without names, as of parameters(): give the module"),
        (lambda: wrap(model=list(MODEL.parameters())), "model is tensors without names"),
        (lambda: wrap(model=(p for p in MODEL.parameters())), "model is tensors without names"),
        (lambda: wrap(model=MODEL.state_dict()), "model is a mapping, as state_dict() returns it"),
        (lambda: wrap(model=dict(MODEL.named_parameters())), "model is a mapping"),
        (lambda: wrap(MODEL, INNER), "inner is a module: the order is Optimizer(inner, model, ...)"),
        (lambda: wrap(model=INNER), "model is an optimizer: the order is Optimizer(inner, model, ...)"),
        (lambda: wrap(torch.optim.SGD), "inner is the class SGD: give an object, SGD(model.parameters())"),
        (lambda: wrap(MODEL.parameters()), "inner is an object of type generator"),
        (lambda: wrap(None), "inner is None: give a torch.optim.Optimizer"),
        (lambda: wrap(model=None), "model is None: give a torch.nn.Module"),
        (lambda: wrap(model=nn.Linear), "model is the class"),
        (lambda: wrap(model="model.pt"), "model is 'model.pt': give a torch.nn.Module"),
        (lambda: wrap(model=MODEL.weight), "model is an object of type torch.nn.parameter.Parameter"),
        (lambda: wrap(model=[("weight", 3)]), "model holds ('weight', 3): give a torch.nn.Module"),
        (lambda: wrap(model=[]), "the model has no parameters to train"),
        (lambda: wrap(model=FROZEN), "the model has no parameters to train: at least one must require gradients"),
        (lambda: wrap(model=nn.Linear(3, 3)), "the inner optimizer does not hold weight"),
        (lambda: wrap(run=None), "Optimizer(run=...): None is not allowed: give the name or id of a run to join"),
        (lambda: wrap(run=b"run"), "Optimizer(run=...): b'run' is not allowed"),
        (lambda: wrap(run=""), "Optimizer(run=...): '' is not allowed"),
        (lambda: wrap(run="x" * 101), "is not allowed: give the name or id of a run"),
        (lambda: wrap(initial_peers=None), "Optimizer(initial_peers=...): None is not allowed: give addresses such as"),
        (lambda: wrap(initial_peers=["10.0.0.1:4710"]), "Optimizer(initial_peers=...): '10.0.0.1:4710' cannot be used"),
        (lambda: wrap(peer="peer.key"), "Optimizer(peer=...): 'peer.key' is not allowed: give a Peer(...)"),
        (lambda: wrap(peer=legion.Peer(role="helper")), "Peer(role='helper') trains nothing: join the run without a model"),
        (
            lambda: wrap(peer=legion.Peer(role="boss")),
            "Peer(role=...): 'boss' is not allowed: give one of auto, client",
        ),
        (lambda: legion.average([torch.zeros(3)], "x", n_peers=2, peer=legion.Peer(role="helper")), "trains nothing"),
        (lambda: wrap(tokens_per_step=0), "tokens_per_step"),
        (
            lambda: wrap(peer=legion.Peer(lan=False)),
            "no initial peers are given to find the run 'never' through; to create it: --new-run on the command",
        ),
        (lambda: wrap(run=legion.NewRun("x", rounds=legion.Rounds(push_codec="int9"))), "push_codec: unknown codec 'int9'"),
        (lambda: wrap(run=legion.NewRun("x", preset="s")), "NewRun(preset=...) is of the built-in model"),
        (lambda: legion.join(legion.NewRun("x")), "join(run=...): an object of type legion_p2p.config.new_run.NewRun"),
        (lambda: legion.join("x", initial_peers=3), "join(initial_peers=...): 3 is not allowed"),
        (lambda: legion.create("x", MODEL), "create(new_run=...): 'x' is not allowed: give a NewRun(...)"),
        (lambda: legion.create(legion.NewRun("x"), MODEL.parameters()), "model is tensors without names"),
        (lambda: legion.create(legion.NewRun("x"), MODEL, or_join="yes"), "create(or_join=...): 'yes' is not allowed"),
        (lambda: legion.average(torch.zeros(3), "x", n_peers=2), "average(tensors=...): an object of type torch.Tensor"),
        (lambda: legion.average([1.0], "x", n_peers=2), "average(tensors=...): [1.0] is not allowed: give a list of tensors"),
        (lambda: legion.average(None, "x", n_peers=2), "average(tensors=...): None is not allowed"),
        (lambda: legion.average([], "x", n_peers=2), "average(tensors=...): [] is not allowed: give a list of tensors"),
        (lambda: legion.average([torch.zeros(3)], "x", n_peers=0), "average(n_peers=...): 0 is not allowed"),
        (lambda: legion.average([torch.zeros(3)], "x", n_peers=2, gather_s="1"), "average(gather_s=...): '1' is not allowed"),
        (lambda: legion.average([torch.zeros(3)], legion.NewRun("x"), n_peers=1, codec="int9"), "push_codec: unknown codec"),
        (lambda: legion.average([torch.zeros(3)], legion.NewRun("x", seed=1), n_peers=1), "has a name only"),
    ],
)
def test_a_mistake_is_a_usage_error_that_names_the_argument(make: Callable[[], object], told: str) -> None:
    with pytest.raises(UsageError) as refused:
        make()

    assert told in str(refused.value)


@pytest.mark.parametrize("old", sorted(OPTIMIZER_ARGUMENTS))
def test_an_old_argument_of_the_optimizer_tells_its_new_place(old: str) -> None:
    with pytest.raises(UsageError) as refused:
        wrap(**{old: 1})

    assert str(refused.value) == f"Optimizer({old}=...): write {OPTIMIZER_ARGUMENTS[old]} instead"
    assert makes_sense(OPTIMIZER_ARGUMENTS[old])


@pytest.mark.parametrize("old", sorted(AVERAGE_ARGUMENTS))
def test_an_old_argument_of_average_tells_its_new_place(old: str) -> None:
    with pytest.raises(UsageError) as refused:
        legion.average([torch.zeros(3)], "x", n_peers=2, **{old: 1})

    assert str(refused.value) == f"average({old}=...): write {AVERAGE_ARGUMENTS[old]} instead"
    assert makes_sense(AVERAGE_ARGUMENTS[old])


def makes_sense(advice: str) -> bool:
    """The advice is code that names values and fields that there are."""
    names = {name: recording(getattr(legion, name)) for name in ("Peer", "Limits", "Store", "NewRun", "Rounds")}
    eval(f"dict({advice})", {"dict": dict, **names})
    return True


def recording(kind: Any) -> Callable[..., object]:
    """A constructor that checks the fields' names only."""

    def make(*args: object, **fields: object) -> object:
        assert len(args) <= 1 and set(fields) <= set(kind.__struct_fields__)
        return object()

    return make


def test_an_argument_that_there_never_was_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"Optimizer\(initial_peer=...\): there is no such argument; did you mean initial_peers"):
        wrap(initial_peer="x")
    with pytest.raises(UsageError, match=r"Optimizer\(uplod_limit=...\): write peer=Peer\(limits=Limits\(upload=...\)\) instead"):
        wrap(uplod_limit="x")
    with pytest.raises(UsageError, match=r"no such argument; known are inner, model, run"):
        wrap(zzz=1)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_that_is_gone_tells_what_took_its_place(name: str) -> None:
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; its place was taken by"):
        getattr(legion, name)


def test_what_is_clear_is_taken() -> None:
    for model in (MODEL, MODEL.named_parameters(), list(MODEL.named_parameters())):
        assert [name for name, _ in model_view(model).trained] == ["weight", "bias"]
    assert [name for name, _ in model_view([["a", MODEL.weight]]).trained] == ["a"]


# a run that is there instead of the one that was to be created


def test_a_run_that_is_there_is_compared_with_what_was_chosen_and_only_with_that() -> None:
    chosen = legion.NewRun("x", preset="xxs", rounds=legion.Rounds(local_steps=7, push_codec="int8"))
    spec = described(chosen)

    check_choices(chosen, spec)
    check_choices(legion.NewRun("x"), spec)
    for other, told in (
        (legion.NewRun("x", rounds=legion.Rounds(local_steps=8)), "rounds.local_steps 7; asked for was 8"),
        (legion.NewRun("x", preset="s"), "model."),
        (legion.NewRun("x", inner=legion.Inner(batch=9)), "inner.batch 4; asked for was 9"),
        (legion.NewRun("x", data="my books"), "data 'stdlib'; asked for was 'my books'"),
    ):
        with pytest.raises(legion.errors.IncompatibleModelError) as refused:
            check_choices(other, spec)
        assert "run 'x' is there already" in str(refused.value) and told in str(refused.value)


def test_a_preset_or_a_field_of_the_model_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match="preset: unknown model 'huge'"):
        described(legion.NewRun("x", preset="huge"))
    with pytest.raises(ConfigError, match=r"model: .*int"):
        described(legion.NewRun("x", model={"width": "wide"}))
    with pytest.raises(ConfigError, match=r"model.n_embd: nothing of this name can be set; known are n_layer"):
        described(legion.NewRun("x", model={"n_embd": 32}))


# the identity


def test_an_identity_may_be_made_of_a_seed() -> None:
    identity = legion.Identity(b"1" * 32)

    assert legion.Peer(identity=identity).identity is identity and isinstance(identity, Identity)
