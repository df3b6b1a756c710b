"""`legion.Optimizer` is a torch.optim.Optimizer: whatever is made for those works with it as with a plain one."""

import asyncio
import copy
import multiprocessing
import os
import pickle
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset
from workers import batch_of, loss_of, model_of

import legion_p2p as legion
from legion_p2p.errors import ClosedError, UsageError
from tests.waiting import PATIENCE_S, eventually

PEER = legion.Peer(listen="/ip4/127.0.0.1/tcp/0", status=False)
ROUNDS = legion.Rounds(local_steps=2)
Wrap = Callable[[torch.optim.Optimizer, nn.Module], torch.optim.Optimizer]


@pytest.fixture
def wrap() -> Iterator[Wrap]:
    """Wraps an optimizer into a swarm of one."""
    made: list[legion.Optimizer] = []

    def wrapped(inner: torch.optim.Optimizer, model: nn.Module) -> legion.Optimizer:
        opt = legion.Optimizer(inner, model, legion.NewRun(f"optimizer/{time.time_ns()}", rounds=ROUNDS), peer=PEER)
        made.append(opt)
        return opt

    try:
        yield wrapped
    finally:
        for opt in made:
            opt.close()


def plain(inner: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    return inner


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "lambda": lambda opt: lr_scheduler.LambdaLR(opt, lambda step: 0.9**step),
    "cosine": lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=12),
    "one cycle": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.02, total_steps=20),
    "plateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=1, factor=0.5),
    "sequential": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(opt, T_max=8)], milestones=[4]
    ),
}


def run_schedule(make: Callable[[torch.optim.Optimizer], Any], wrap: Wrap) -> list[tuple[float, ...]]:
    model = model_of()
    opt = wrap(adam(model), model)
    scheduler = make(opt)
    trace = []
    for step in range(12):
        opt.zero_grad()
        loss = loss_of(model, 1, step)
        loss.backward()
        opt.step()
        scheduler.step(1.0) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else scheduler.step()
        trace.append((float(loss.detach()), *(group["lr"] for group in opt.param_groups)))
    return trace


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_do_what_they_do_with_a_plain_optimizer(wrap: Wrap, scheduler: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = run_schedule(SCHEDULERS[scheduler], plain)

    with warnings.catch_warnings():
        # SequentialLR itself warns with a plain optimizer, about a deprecation of its own.
        warnings.filterwarnings("error", message=".*lr_scheduler.step.*before.*")
        got = run_schedule(SCHEDULERS[scheduler], wrap)

    assert got == expected
    assert len({lr for _, lr in got}) > 1


def test_a_scheduler_called_before_the_first_step_warns_as_it_does_with_a_plain_optimizer(wrap: Wrap) -> None:
    model = model_of()
    opt = wrap(adam(model), model)
    scheduler = lr_scheduler.LambdaLR(opt, lambda step: 0.5)

    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()


def test_it_is_an_optimizer_with_the_groups_and_the_state_of_the_inner_one(wrap: Wrap) -> None:
    model = model_of()
    inner = torch.optim.AdamW([{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2:].parameters()}], lr=0.01)
    opt = wrap(inner, model)

    loss_of(model, 1, 0).backward()
    opt.step()
    opt.param_groups[0]["lr"] = 0.25

    assert isinstance(opt, torch.optim.Optimizer)
    assert opt.param_groups is inner.param_groups and inner.param_groups[0]["lr"] == 0.25
    assert opt.state is inner.state and len(opt.state) == len(list(model.parameters()))
    assert opt.defaults == inner.defaults
    assert "AdamW" in repr(opt)
    with pytest.raises(UsageError, match="fixed"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    opt.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    opt.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_closures_and_lbfgs(wrap: Wrap) -> None:
    def run(wrapping: Wrap) -> list[float]:
        model = model_of()
        opt = wrapping(torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4), model)
        losses = []
        for _ in range(5):

            def closure() -> torch.Tensor:
                opt.zero_grad()
                loss = loss_of(model, 1, 0)
                loss.backward()
                return loss

            losses.append(float(opt.step(closure).detach()))
        return losses

    expected = run(plain)
    assert run(wrap) == expected
    assert expected[-1] < expected[0]


def test_the_state_goes_out_and_in(wrap: Wrap) -> None:
    model = model_of()
    opt = wrap(adam(model), model)
    for step in range(3):
        loss_of(model, 1, step).backward()
        opt.step()
    saved, weights = copy.deepcopy(opt.state_dict()), copy.deepcopy(model.state_dict())

    def go_on(model: nn.Module, opt: torch.optim.Optimizer) -> list[float]:
        losses = []
        for step in range(3, 6):
            opt.zero_grad()
            loss = loss_of(model, 1, step)
            loss.backward()
            opt.step()
            losses.append(float(loss.detach()))
        return losses

    other = model_of(seed=9)
    other.load_state_dict(weights)
    again = wrap(adam(other), other)
    again.load_state_dict(saved)
    assert again.state_dict()["state"][0]["step"] == 3
    assert go_on(other, again) == go_on(model, opt)
    # and a plain optimizer takes it: nothing of ours is in there
    adam(model).load_state_dict(opt.state_dict())


def test_hooks_are_called(wrap: Wrap) -> None:
    model = model_of()
    opt = wrap(adam(model), model)
    seen: list[str] = []
    handles = [
        opt.register_step_pre_hook(lambda *_: seen.append("pre")),
        opt.register_step_post_hook(lambda *_: seen.append("post")),
        opt.register_state_dict_post_hook(lambda *_: seen.append("state")),
        opt.register_load_state_dict_pre_hook(lambda *_: seen.append("load")),
    ]

    loss_of(model, 1, 0).backward()
    opt.step()
    opt.load_state_dict(opt.state_dict())
    for handle in handles:
        handle.remove()
    opt.step()

    assert seen == ["pre", "post", "state", "load"]


@pytest.mark.parametrize("enabled", [False, True])
def test_a_gradient_scaler_does_what_it_does_with_a_plain_optimizer(wrap: Wrap, enabled: bool) -> None:
    def run(wrapping: Wrap) -> list[float]:
        model = model_of()
        opt = wrapping(torch.optim.AdamW(model.parameters(), lr=0.01, fused=True), model)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=1024.0)
        for step in range(4):
            opt.zero_grad()
            scaler.scale(loss_of(model, 1, step)).backward()
            scaler.unscale_(opt)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(opt)
            scaler.update()
        return [float(p.detach().sum()) for p in model.parameters()]

    assert run(wrap) == pytest.approx(run(plain), rel=1e-5)


def test_copies_and_pickles_are_refused_with_what_to_do_instead(wrap: Wrap) -> None:
    model = model_of()
    opt = wrap(adam(model), model)

    for copied in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(UsageError, match="live peer: use its state_dict"):
            copied(opt)


def test_after_it_is_closed_step_says_so_and_the_inner_optimizer_goes_on(wrap: Wrap) -> None:
    model = model_of()
    inner = adam(model)
    opt = wrap(inner, model)
    loss_of(model, 1, 0).backward()
    opt.step()

    opt.close()
    opt.close()

    with pytest.raises(ClosedError):
        opt.step()
    for use in (lambda: opt.status, opt.common_digest, lambda: opt.wait_for_members(1)):
        with pytest.raises(ClosedError):
            use()
    assert opt.flush(1.0) is False
    inner.step()


def test_what_was_trained_since_the_last_push_goes_with_who_closes(wrap: Wrap) -> None:
    stays = wrap(adam(model := model_of()), model)
    leaves = legion.Optimizer(
        adam(model := model_of()),
        model,
        run=stays.status.run.name,
        initial_peers=stays.status.addresses,
        peer=PEER,
    )
    before, me = stays.common_digest(), leaves.status.peer_id
    loss_of(model, 1, 0).backward()
    leaves.step()

    leaves.close()

    eventually(lambda: stays.common_digest() != before)
    chains = [replica.chain for replica in stays._part.engine.shards.replicas.values()]
    assert [chain.newest(me) for chain in chains] == [0] * len(chains)


def test_a_model_whose_parameters_the_inner_optimizer_lacks_is_refused() -> None:
    model = model_of()

    with pytest.raises(UsageError, match=r"does not hold 2.weight"):
        legion.Optimizer(torch.optim.SGD(model[0].parameters(), lr=0.1), model, run="never")


# processes


def train_a_bit(steps: int = 4) -> str:
    """What a child does: a peer of its own."""
    model = model_of()
    inner = adam(model)
    with legion.Optimizer(inner, model, legion.NewRun(f"child/{os.getpid()}", rounds=ROUNDS), peer=PEER) as opt:
        for step in range(steps):
            opt.zero_grad()
            loss_of(model, 1, step).backward()
            opt.step()
        assert opt.flush(PATIENCE_S)
        return opt.common_digest()


def _child_trains(pipe: Any) -> None:
    torch.set_num_threads(1)
    pipe.send(train_a_bit())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_has_a_peer_of_its_own(method: str) -> None:
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()

    child = context.Process(target=_child_trains, args=(theirs,))
    child.start()
    theirs.close()

    assert ours.poll(PATIENCE_S)
    assert len(ours.recv()) == 64
    child.join(PATIENCE_S)
    assert child.exitcode == 0


def _child_uses(pipe: Any, opt: legion.Optimizer) -> None:
    def outcome(use: Callable[[], Any]) -> str:
        try:
            return repr(use())
        except ClosedError as closed:
            return f"ClosedError: {closed}"

    pipe.send([c.laddr.port for c in psutil.Process().net_connections("inet")])
    pipe.send([
        outcome(opt.step), outcome(lambda: opt.status), outcome(opt.common_digest), outcome(lambda: opt.flush(5)),
        outcome(lambda: opt.wait_for_members(1)), outcome(lambda: opt.wait_briefly()), outcome(opt.close),
    ])  # fmt: skip
    pipe.send(train_a_bit())  # and it may have one of its own


def test_a_forked_child_cannot_use_its_parents_peer_nor_disturb_it(wrap: Wrap) -> None:
    model = model_of()
    opt = wrap(adam(model), model)
    loss_of(model, 1, 0).backward()
    opt.step()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    child = context.Process(target=_child_uses, args=(theirs, opt))
    child.start()
    while not ours.poll(0):  # the parent goes on meanwhile
        opt.step()
        time.sleep(0.01)
    inherited = ours.recv()
    said = ours.recv()
    while not ours.poll(0):
        opt.step()
        time.sleep(0.01)
        assert child.is_alive() or ours.poll(0)
    digest = ours.recv()
    child.join(PATIENCE_S)

    for outcome in said[:3] + said[4:5]:
        assert outcome == f"ClosedError: this peer lives in process {os.getpid()}; a forked process needs one of its own"
    assert inherited == []  # or the parent's death would look like silence to the others
    assert said[3] == "False"
    assert said[5:] == ["None", "None"]
    assert len(digest) == 64
    assert child.exitcode == 0
    before = opt.status.rounds
    loss_of(model, 1, 1).backward()
    opt.step()
    opt.step()
    assert opt.flush(PATIENCE_S)
    assert opt.status.rounds > before


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers_beside_a_live_peer(wrap: Wrap, method: str) -> None:
    model = model_of()
    opt = wrap(adam(model), model)
    x, y = batch_of(1, 0, n=64)
    n = 2 if method == "fork" else 1
    loader = DataLoader(TensorDataset(x, y), batch_size=8, num_workers=n, multiprocessing_context=method)

    for _ in range(n):
        for a, b in loader:
            opt.zero_grad()
            nn.functional.mse_loss(model(a), b).backward()
            opt.step()

    assert opt.steps == 8 * n
    assert opt.flush(PATIENCE_S)
    assert opt.status.errors == ()


def test_it_works_where_an_asyncio_loop_runs_already() -> None:
    async def main() -> str:
        ticked_on = asyncio.Event()

        async def tick() -> None:
            for _ in range(3):
                await asyncio.sleep(0.001)
            ticked_on.set()

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        digest = train_a_bit(steps=6)  # as a notebook's cell would: it blocks the loop, and does not touch it
        await asyncio.wait_for(ticked_on.wait(), PATIENCE_S)
        await ticking
        return digest

    assert len(asyncio.run(main())) == 64


def test_limits_and_a_link_to_emulate_are_given_like_other_options() -> None:
    model = nn.Linear(2, 2)
    peer = legion.Peer(listen=PEER.listen, status=False, limits=legion.Limits(netem="cable", upload="10mbit"))

    new_run = legion.NewRun(f"optimizer/{time.time_ns()}")
    opt = legion.Optimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, new_run, peer=peer)
    limits = (opt.status.upload_limit_bps, opt.status.download_limit_bps)
    opt.close()

    assert limits == (10e6, 250e6)
    with pytest.raises(UsageError, match="'cabel' is not known"):
        legion.average([torch.zeros(3)], legion.NewRun("x"), n_peers=1, peer=legion.Peer(limits=legion.Limits(netem="cabel")))
