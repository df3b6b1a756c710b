import copy
import math

import pytest
import torch
from torch import nn

from legion_p2p.errors import UsageError
from legion_p2p.train.gpt import GPT
from legion_p2p.train.muon import COEFFICIENTS, MuonAdamW, orthogonalize, split_parameters


def plain_muon_step(p, grad, momentum, lr, weight_decay):
    """One matrix, one line of the paper at a time, without stacking; returns the new matrix and momentum."""
    momentum = 0.95 * momentum + 0.05 * grad
    x = 0.05 * grad + 0.95 * momentum
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.T if tall else x
    return p - lr * weight_decay * p - lr * 0.2 * math.sqrt(max(p.shape)) * x, momentum


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_matrices_move_as_the_plain_algorithm_says(generator):
    shapes = [(4, 12), (12, 4), (6, 6)]
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    expected = [(p.detach().clone(), torch.zeros(p.shape)) for p in params]
    opt = MuonAdamW(params, [], lr=0.05, weight_decay=0.1)

    for _ in range(4):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        expected = [plain_muon_step(e, p.grad, m, 0.05, 0.1) for p, (e, m) in zip(params, expected, strict=True)]
        opt.step()

    for p, (e, _) in zip(params, expected, strict=True):
        assert torch.allclose(p, e, atol=1e-5)


def test_each_third_of_a_fused_matrix_moves_by_itself(generator):
    thirds = [nn.Parameter(torch.randn(4, 5, generator=generator)) for _ in range(3)]
    fused = nn.Parameter(torch.cat([p.detach() for p in thirds]))
    apart, together = MuonAdamW(thirds, []), MuonAdamW([], [], fused=[fused])

    for _ in range(3):
        for p in thirds:
            p.grad = torch.randn(p.shape, generator=generator)
        fused.grad = torch.cat([p.grad for p in thirds])
        apart.step()
        together.step()

    assert torch.allclose(torch.cat(list(thirds)), fused, atol=1e-6)


def test_the_others_move_as_torchs_adamw(generator):
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(5,), (3, 4), ()]]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    opt = MuonAdamW([], ours, lr=0.02, lr_factor=0.5, betas=(0.8, 0.9), weight_decay=0.3)
    reference = torch.optim.AdamW(theirs, lr=0.01, betas=(0.8, 0.9), weight_decay=0.3)

    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        opt.step()
        reference.step()

    for p, q in zip(ours, theirs, strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_orthogonalized_matrices_have_singular_values_near_one(generator):
    x = torch.randn(3, 16, 64, generator=generator)

    values = torch.linalg.svdvals(orthogonalize(x))

    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_zero_gradient_moves_nothing_but_by_weight_decay():
    p = nn.Parameter(torch.ones(3, 5))
    p.grad = torch.zeros(3, 5)

    MuonAdamW([p], [], lr=0.1, weight_decay=0.5).step()

    assert torch.allclose(p, torch.full((3, 5), 0.95))


def test_a_gpts_embeddings_norms_and_head_stay_with_adamw():
    model = GPT.from_preset("xxs", tied=False)

    matrices, fused, others = split_parameters(model)

    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].split(".")[-2] for p in matrices} == {"out", "inner"}
    assert {names[id(p)].split(".")[-2] for p in fused} == {"qkv"}
    assert {names[id(p)].split(".")[-2] for p in others} == {
        "embedding",
        "position",
        "attention_norm",
        "mlp_norm",
        "norm",
        "head",
    }
    assert len(matrices) + len(fused) + len(others) == len(names)


def test_a_square_model_keeps_its_matrices():
    # width, context and vocabulary of preset m are all 256: shapes alone would take an attention matrix for an output matrix
    model = GPT.from_preset("m")

    matrices, fused, _ = split_parameters(model)

    assert len(matrices) + len(fused) == 4 * model.config.n_layer


def test_what_does_not_train_is_left_out_and_what_has_no_gradient_stays():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    opt = MuonAdamW.of(model)
    before = copy.deepcopy(model.state_dict())

    opt.step()

    assert sum(len(group["params"]) for group in opt.param_groups) == 2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_it_goes_on_from_a_saved_state_with_the_same_bits(generator):
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8))
    x = torch.randn(16, 6, generator=generator)

    def train(model, opt):
        for _ in range(3):
            model(x).square().mean().backward()
            opt.step()
            opt.zero_grad()

    opt = MuonAdamW.of(model)
    train(model, opt)
    again = copy.deepcopy(model)
    restored = MuonAdamW.of(again, lr=1.0)
    restored.load_state_dict(copy.deepcopy(opt.state_dict()))
    train(model, opt)
    train(again, restored)

    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_it_learns_and_a_closure_gives_the_loss(generator):
    model = GPT.from_preset("xxs", generator)
    opt = MuonAdamW.of(model)
    tokens = torch.randint(0, 8, (4, 33), generator=generator)

    def closure():
        opt.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:])[1]
        loss.backward()
        return loss

    losses = [float(opt.step(closure).detach()) for _ in range(20)]

    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"lr": math.nan}, {"momentum": 1.0}, {"betas": (0.9, 1.5)}, {"weight_decay": -0.1}, {"lr_factor": -2.0}],
)
def test_rates_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        MuonAdamW([nn.Parameter(torch.ones(2, 2))], [], **wrong)


def test_a_vector_among_the_matrices_is_refused_by_its_shape():
    with pytest.raises(UsageError, match=r"\(3,\)"):
        MuonAdamW([nn.Parameter(torch.ones(3))], [])
