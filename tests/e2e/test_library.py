"""What users of the library do by mistake, or rightly, and did not see the consequences of: on loopback, in one process."""

import copy
import gc
import math
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from workers import loss_of, model_of

import legion_p2p as legion
from legion_p2p.errors import ClosedError, IncompatibleModelError, UsageError
from legion_p2p.train import bridge
from tests.waiting import PATIENCE_S, eventually

LISTEN = "/ip4/127.0.0.1/tcp/0"
PEER = legion.Peer(listen=LISTEN, status=False)
Wrap = Callable[..., legion.Optimizer]


@pytest.fixture
def wrap() -> Iterator[Wrap]:
    """`wrap(inner, model)` creates a run, `wrap(inner, model, of=other)` joins it; what else is given are rounds."""
    made: list[legion.Optimizer] = []

    def wrapped(
        inner: Any, model: Any, of: legion.Optimizer | None = None, tokens_per_step: Any = 1, **rounds: Any
    ) -> legion.Optimizer:
        if of is None:
            run, contacts = legion.NewRun(f"library/{time.time_ns()}", rounds=legion.Rounds(**{"local_steps": 2, **rounds})), ()
        else:
            run, contacts = of.status.run.name, of.status.addresses
        opt = legion.Optimizer(inner, model, run, initial_peers=contacts, peer=PEER, tokens_per_step=tokens_per_step)
        made.append(opt)
        return opt

    try:
        yield wrapped
    finally:
        for opt in made:
            opt.close()


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def train(opt: Any, model: nn.Module, steps: int, seed: int = 1) -> None:
    for step in range(steps):
        opt.zero_grad()
        loss_of(model, seed, step).backward()
        opt.step()


# values


def test_a_loss_may_be_a_tensor_or_of_numpy_and_what_is_none_is_named_at_the_call(wrap: Wrap) -> None:
    a = wrap(sgd(model := model_of()), model)
    for loss in (torch.tensor(0.5), np.float32(0.5), np.float64(0.5), torch.tensor([0.5], requires_grad=True)):
        a.note(loss=loss)
        train(a, model, 1)

    for wrong in (math.nan, "0.5", torch.zeros(2), math.inf):
        with pytest.raises(UsageError, match="loss is"):
            a.note(loss=wrong)
    with pytest.raises(UsageError, match="'los' is nothing that a peer tells"):
        a.note(los=0.5)
    train(a, model, 2)
    a.report()

    assert a.status.loss == 0.5
    assert a.status.errors == ()


@pytest.mark.parametrize("tokens", [0, -4, 2.5, "many", torch.zeros(2), 1 << 50, math.nan])
def test_tokens_per_step_that_others_would_refuse_are_refused_at_the_call(wrap: Wrap, tokens: Any) -> None:
    with pytest.raises(UsageError, match="tokens_per_step"):
        wrap(sgd(model := model_of()), model, tokens_per_step=tokens)


def test_batches_may_differ_from_step_to_step(wrap: Wrap) -> None:
    a = wrap(sgd(model := model_of()), model, tokens_per_step=torch.tensor(8))
    train(a, model, 1)
    a.tokens_per_step = np.int64(3)
    train(a, model, 1)

    assert a.tokens == 11
    with pytest.raises(UsageError, match="tokens_per_step is 0"):
        a.tokens_per_step = 0


@pytest.mark.parametrize("wait", ["wait_for_members", "flush", "finish"])
def test_times_to_wait_are_checked_at_the_call(wrap: Wrap, wait: str) -> None:
    a = wrap(sgd(model := model_of()), model)
    more = {"n": 1} if wait == "wait_for_members" else {}

    for wrong in ("3", math.nan, -1, torch.zeros(2)):
        with pytest.raises(UsageError, match="timeout_s is"):
            getattr(a, wait)(timeout_s=wrong, **more)
    getattr(a, wait)(timeout_s=np.float32(20), **more)


RETURNED = [lambda x: (x, 3), lambda x: {"loss": x}, lambda x: float(x.detach()), lambda x: None, lambda x: "text"]


@pytest.mark.parametrize("returned", RETURNED)
def test_a_closure_may_return_anything(wrap: Wrap, returned: Callable[[Tensor], Any]) -> None:
    a = wrap(sgd(model := model_of()), model)

    def closure() -> Any:
        a.zero_grad()
        loss = loss_of(model, 1, 0)
        loss.backward()
        return returned(loss)

    result = a.step(closure)

    assert type(result) is type(returned(torch.tensor(1.0)))
    assert a.steps == 1
    shown = a._part.progress.loss
    assert shown is None or shown == pytest.approx(loss_of(model_of(), 1, 0).item())


# failures and their cause


def test_a_failure_inside_is_the_cause_of_what_the_user_sees(wrap: Wrap, capsys: pytest.CaptureFixture[str]) -> None:
    a = wrap(sgd(model := model_of()), model)
    train(a, model, 1)

    def fails() -> None:
        raise ZeroDivisionError("a fault that nobody foresaw")

    a._part.thread.post(fails)
    with pytest.raises(ClosedError) as caught:
        for _ in range(3000):
            train(a, model, 1)
            time.sleep(0.01)

    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "ZeroDivisionError: a fault that nobody foresaw (test_library.py:" in str(caught.value)
    assert "\n" not in str(caught.value)
    a.close()
    for use in (lambda: a.status, a.common_digest, a.step):
        with pytest.raises(ClosedError) as again:
            use()
        assert again.value.__cause__ is caught.value.__cause__
    eventually(lambda: not a._part.thread.alive)
    capsys.readouterr()
    bridge._close_all()
    bridge._close_all()
    assert capsys.readouterr().err.count("a peer left its run early: ZeroDivisionError: a fault that nobody foresaw") == 1


def test_so_is_that_of_a_service(wrap: Wrap) -> None:
    a = wrap(sgd(model := model_of()), model)

    async def fails(*_: Any, **__: Any) -> None:
        raise KeyError("in a service")

    a._part.engine.members.announcer.publish = fails  # which its task calls within a period
    a._part.thread.call(a._part.engine.members.announcer.announce_soon)
    began = time.monotonic()
    with pytest.raises(ClosedError, match="KeyError: 'in a service'") as caught:
        while time.monotonic() < began + 40:
            train(a, model, 1)
            time.sleep(0.01)

    assert isinstance(caught.value.__cause__, KeyError)
    a.close()
    eventually(lambda: not a._part.thread.alive, 30)  # what has failed hands nothing over, which would take a minute


def test_a_script_that_never_calls_again_reads_one_line_at_its_end() -> None:
    script = f"""
import torch, legion_p2p as legion, time
model = torch.nn.Linear(2, 2)
peer = legion.Peer(listen={LISTEN!r}, status=False)
opt = legion.Optimizer(torch.optim.SGD(model.parameters(), lr=.1), model, legion.NewRun("x"), peer=peer)
opt._part.thread.post(lambda: 1 / 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)

    assert done.returncode == 0
    assert done.stderr.count("legion_p2p: a peer left its run early: ZeroDivisionError: division by zero") == 1
    assert "Traceback" not in done.stderr


# what is in the run


def test_a_layer_that_is_unfrozen_later_is_named(wrap: Wrap) -> None:
    model = model_of()
    model[0].requires_grad_(False)
    a = wrap(sgd(model), model)
    train(a, model, 2)
    model[0].requires_grad_(True)

    with pytest.raises(UsageError, match=r"parameter 0\.weight has a gradient and is not in the run"):
        train(a, model, 1)


class Normed(nn.Module):
    """A model with running statistics and a frozen base."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.base = nn.Linear(8, 16).requires_grad_(False)
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.base(x)).relu())


def test_a_frozen_base_that_differs_is_named_at_joining(wrap: Wrap) -> None:
    a = wrap(sgd(model := Normed(0)), model)

    with pytest.raises(IncompatibleModelError, match=r"base\.weight \[16, 8\] has other values"):
        wrap(sgd(model := Normed(1)), model, of=a)
    wrap(sgd(model := Normed(0)), model, of=a)


def test_running_statistics_are_averaged_where_the_run_says_so(wrap: Wrap) -> None:
    exact = {"push_codec": "fp32", "update_codec": "fp32", "synchronous": True, "local_steps": 1, "untrained": "average"}
    mine, theirs = Normed(0), Normed(0)
    a = wrap(sgd(mine), mine, **exact)
    b = wrap(sgd(theirs), theirs, of=a)
    digests: list[str] = []

    def work(opt: legion.Optimizer, model: nn.Module, seed: int) -> None:
        opt.wait_for_members(2, PATIENCE_S)
        train(opt, model, 5, seed)
        digests.append(opt.finish(together=True, timeout_s=PATIENCE_S))

    threads = [threading.Thread(target=work, args=args) for args in ((a, mine, 1), (b, theirs, 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(digests)) == 1
    assert torch.equal(mine.norm.running_mean, theirs.norm.running_mean)
    assert torch.equal(mine.norm.running_var, theirs.norm.running_var)
    assert float(mine.norm.running_mean.abs().sum()) > 0
    x = torch.ones(3, 8)
    assert torch.equal(mine.eval()(x), theirs.eval()(x))


def test_a_compiled_model_joins_the_run_of_a_plain_one(wrap: Wrap) -> None:
    a = wrap(sgd(model := model_of()), model)
    compiled = torch.compile(model_of(), backend="eager")

    b = wrap(sgd(compiled), nn.DataParallel(compiled), of=a)

    assert b.common_digest() == a.common_digest()


def test_a_list_of_optimizers_trains(wrap: Wrap) -> None:
    model = model_of()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    opt = wrap([legion.MuonAdamW(matrices, [], lr=0.02), torch.optim.AdamW(others, lr=0.01)], model)
    before = loss_of(model, 1, 0).item()

    train(opt, model, 20)

    assert loss_of(model, 1, 0).item() < before
    assert opt.flush(30)
    assert opt.status.rounds >= 5


def test_a_mixture_of_nineteen_thousand_parameters_is_founded_and_joined(wrap: Wrap) -> None:
    def experts() -> list[tuple[str, Tensor]]:
        names = [
            f"model.layers.{i // 400:02}.mixture_of_experts.experts.{i % 400:03}.gate.weight".ljust(60, "_")
            for i in range(19_000)
        ]
        return [(name, nn.Parameter(torch.full((2,), 0.5))) for name in names]

    mine, theirs = experts(), experts()
    a = wrap(torch.optim.SGD([p for _, p in mine], lr=0.1), mine)
    b = wrap(torch.optim.SGD([p for _, p in theirs], lr=0.1), theirs, of=a)

    for p in (mine[0][1], mine[-1][1]):
        p.grad = torch.ones(2)
    for _ in range(2):
        a.step()

    assert a.flush(60)
    eventually(lambda: b.flush(1) and b.common_digest() == a.common_digest())
    assert theirs[0][1][0].item() == pytest.approx(0.3, abs=0.02)


# other ways to step


def test_a_step_of_the_inner_optimizer_is_refused_while_the_run_lives(wrap: Wrap) -> None:
    inner = sgd(model := model_of())
    a = wrap(inner, model)
    loss_of(model, 1, 0).backward()

    with pytest.raises(UsageError, match="on the optimizer inside"):
        inner.step()
    a.close()
    inner.step()


def test_what_was_moved_without_a_step_is_handed_in_at_the_end(wrap: Wrap) -> None:
    a = wrap(sgd(model := model_of()), model, push_codec="fp32", update_codec="fp32")
    before = a.common_digest()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.125)

    after = a.finish(timeout_s=PATIENCE_S)

    assert after != before
    assert torch.equal(a.common_parameters(), a.local.view.snapshot())
    assert torch.allclose(a.common_parameters(), torch.cat([p.detach().reshape(-1) + 0.125 for p in model_of().parameters()]))


class Sharp(torch.optim.SGD):
    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=0.05)


def test_sharpness_aware_steps_are_refused_by_name(wrap: Wrap) -> None:
    a = wrap(Sharp((model := model_of()).parameters(), lr=0.1), model)
    loss_of(model, 1, 0).backward()

    with pytest.raises(UsageError, match=r"Sharp\.first_step moved the parameters"):
        a.first_step()


class Masters(torch.optim.SGD):
    """fp32 copies that are made with the optimizer, before it joins."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.masters = [p.detach().clone() for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        group = self.param_groups[0]
        for p, master in zip(group["params"], self.masters, strict=True):
            master.sub_(p.grad, alpha=group["lr"])
            p.copy_(master)


def test_an_optimizer_that_writes_its_own_copy_back_is_refused_by_name(wrap: Wrap) -> None:
    a = wrap(sgd(model := model_of()), model)
    theirs = model_of(seed=5)
    b = wrap(Masters(theirs.parameters(), 0.05), theirs, of=a)

    with pytest.raises(UsageError, match="Masters keeps a copy of the parameters and writes it back"):
        for _ in range(3000):
            train(a, model, 1)
            train(b, theirs, 1, seed=2)
            time.sleep(0.01)


def test_a_model_that_is_converted_after_wrapping_pushes_no_rounding(wrap: Wrap) -> None:
    a = wrap(sgd(model := model_of()), model, push_codec="fp32", update_codec="fp32")
    before = a.common_parameters()

    model.bfloat16()
    for _ in range(4):
        a.step()  # without gradients: nothing is trained
    assert a.flush(30)

    assert torch.equal(a.common_parameters(), before.bfloat16().float()) or torch.equal(a.common_parameters(), before)


def test_param_groups_can_be_replaced(wrap: Wrap) -> None:
    a = wrap(inner := sgd(model := model_of()), model)

    a.param_groups = [{**group, "lr": 0.5} for group in a.param_groups]

    assert inner.param_groups[0]["lr"] == 0.5
    train(a, model, 2)


# divergence


def test_a_poisoned_optimizer_is_told_of_here_and_at_the_others(wrap: Wrap, capfd: pytest.CaptureFixture[str]) -> None:
    mine, theirs = model_of(), model_of()
    a = wrap(torch.optim.AdamW(mine.parameters(), lr=0.01), mine)
    b = wrap(torch.optim.AdamW(theirs.parameters(), lr=0.01), theirs, of=a)
    a.wait_for_members(1)
    train(a, mine, 2)
    train(b, theirs, 2)
    theirs[0].weight.grad = torch.full_like(theirs[0].weight, math.nan)
    b.step()

    def errors(opt: legion.Optimizer) -> list[str]:
        return [error.text for error in opt.status.errors if "diverged" in error.event]

    def told() -> bool:
        train(a, mine, 1)
        train(b, theirs, 1, seed=2)
        time.sleep(0.01)
        return bool(errors(a) and errors(b))

    eventually(told)
    (here,), (there,) = errors(b), errors(a)
    assert "NaN or infinite, twice in a row" in here
    assert "the optimizer's state holds such numbers" in here
    assert "opt.state.clear()" in here and here in there
    assert b.status.peer_id in there
    printed = capfd.readouterr().err
    assert printed.count("legion_p2p: training diverged") == 1
    assert printed.count(f"legion_p2p: member {b.status.peer_id} pushes nothing any more") == 1

    # and the remedy is one, once the parameters have been taken back: a step before that fills the state with such numbers again
    def healed() -> bool:
        if b._part.trainer.refusals:
            b.state.clear()
        train(a, mine, 1)
        train(b, theirs, 1, seed=2)
        return b._part.trainer.refusals == 0

    eventually(healed)
    assert all(bool(torch.isfinite(p).all()) for p in theirs.parameters())
    eventually(lambda: a._part.thread.call(a._part.engine.members.roster.announced, b._part.engine.me).trouble == "")


# lifetimes


def test_finish_is_back_in_time_while_another_trains(wrap: Wrap) -> None:
    a = wrap(sgd(model := model_of()), model)
    b = wrap(sgd(theirs := model_of()), theirs, of=a)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            train(b, theirs, 1)
            time.sleep(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        train(a, model, 4)
        began = time.monotonic()
        digest = a.finish(together=True, timeout_s=3)
        took_s = time.monotonic() - began
    finally:
        stop.set()
        thread.join()

    assert 2 < took_s < 30  # a busy machine takes longer than 3; without the limit it would wait for the other for ever
    assert len(digest) == 64


def test_wrapping_twice_is_refused_by_name(wrap: Wrap) -> None:
    inner = sgd(model := model_of())
    a = wrap(inner, model)

    with pytest.raises(UsageError, match="in a run already: wrapped again, each of its changes would count twice"):
        wrap(a, model, of=a)
    with pytest.raises(UsageError, match=r"parameter 0\.weight is trained in a run already.*close\(\)"):
        wrap(sgd(model), model, of=a)
    with pytest.raises(UsageError, match="is trained in a run already"):
        wrap(sgd(model[0]), model[0])
    train(a, model, 2)
    a.close()
    wrap(sgd(model), model)


def test_a_wrapper_that_is_dropped_leaves_its_run(wrap: Wrap) -> None:
    a = wrap(sgd(model := model_of()), model)
    theirs = model_of()
    b = legion.Optimizer(sgd(theirs), theirs, a.status.run.name, initial_peers=a.status.addresses, peer=PEER)
    thread = b._part.thread
    train(b, theirs, 1)

    del b
    gc.collect()

    eventually(lambda: not thread.alive)
    train(a, model, 1)
    wrap(sgd(theirs), theirs, of=a)  # its parameters are free again


# schedules


def test_a_late_joiner_knows_the_runs_step(wrap: Wrap) -> None:
    a = wrap(sgd(model := model_of()), model)
    train(a, model, 30)
    a.report()
    eventually(lambda: a.status.run_step == 30)

    b = wrap(sgd(theirs := model_of()), theirs, of=a)

    assert a.run_step == 30
    eventually(lambda: b.run_step == 30 == b.status.run_step)  # as soon as the other has announced it
    train(b, theirs, 3)
    assert (b.steps, b.run_step) == (3, 33)


# synchronous runs


EXACT = {"push_codec": "fp32", "update_codec": "fp32", "synchronous": True, "local_steps": 1}


def batch(peer: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * peer + step)
    x = torch.randn(BATCHES[peer], 8, generator=generator) * (1 + 3 * peer)
    return x, x[:, :1].sin()


BATCHES = (4, 8, 64)
STEPS = 8


def exactly() -> Tensor:
    """The same in one process: the gradient is that of all samples."""
    model = model_of()
    opt = sgd(model)
    for step in range(STEPS):
        opt.zero_grad()
        for peer, n in enumerate(BATCHES):
            x, y = batch(peer, step)
            (nn.functional.mse_loss(model(x), y) * n / sum(BATCHES)).backward()
        opt.step()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("local_steps", [1, 2])
def test_batches_of_any_size_and_a_fast_peer_average_exactly(wrap: Wrap, local_steps: int) -> None:
    models = [model_of() for _ in BATCHES]
    opts = [wrap(sgd(models[0]), models[0], **{**EXACT, "local_steps": local_steps}, tokens_per_step=BATCHES[0])]
    opts += [wrap(sgd(m), m, of=opts[0], tokens_per_step=n) for m, n in zip(models[1:], BATCHES[1:], strict=True)]
    failed: list[BaseException] = []

    def work(peer: int) -> None:
        try:
            opts[peer].wait_for_members(len(BATCHES), PATIENCE_S)
            for step in range(STEPS):
                opts[peer].zero_grad()
                x, y = batch(peer, step)
                nn.functional.mse_loss(models[peer](x), y).backward()
                time.sleep(0.0 if peer == 0 else 0.15)  # the first is many times as fast as the others
                opts[peer].step()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(peer,)) for peer in range(len(BATCHES))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert [opt.status.local_steps for opt in opts] == [local_steps] * 3
    made = [opt.common_parameters() for opt in opts]
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert max(r.chain.version for r in opts[0]._part.engine.shards.replicas.values()) == STEPS // local_steps
    if local_steps == 1:
        assert float((made[0] - exactly()).abs().max()) < 1e-6


def test_the_same_seeds_make_the_same_synchronous_run_again(wrap: Wrap) -> None:
    def once() -> str:
        models = [model_of(), model_of()]
        a = wrap(torch.optim.AdamW(models[0].parameters(), lr=0.01), models[0], synchronous=True, local_steps=4)
        b = wrap(torch.optim.AdamW(models[1].parameters(), lr=0.01), models[1], of=a)
        digests: list[str] = []

        def work(opt: legion.Optimizer, seed: int) -> None:
            opt.wait_for_members(2, PATIENCE_S)  # from here on no round closes without the other
            train(opt, models[seed], 10, seed)
            digests.append(opt.finish(together=True, timeout_s=PATIENCE_S))

        threads = [threading.Thread(target=work, args=args) for args in ((a, 0), (b, 1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (digest,) = set(digests)
        return digest

    assert once() == once()


# the process


@pytest.mark.parametrize("codec", ["int8", "int4", "sign", "gauss4", "topk64-2bit"])
def test_the_defaults_of_the_process_change_nothing(wrap: Wrap, codec: str) -> None:
    def run() -> Tensor:
        model = model_of().float().to("cpu")
        opt = wrap(sgd(model), model, push_codec=codec, update_codec=codec)
        train(opt, model, 4)
        assert opt.flush(30)
        assert opt.status.errors == ()
        return opt.common_parameters()

    expected = run()
    model = model_of()
    torch.set_default_dtype(torch.float64)
    try:
        opt = wrap(sgd(model), model, push_codec=codec, update_codec=codec)
        theirs = copy.deepcopy(model)
        wrap(sgd(theirs), theirs, of=opt)
    finally:
        torch.set_default_dtype(torch.float32)
    train(opt, model, 4)

    assert opt.flush(30)
    assert opt.common_parameters().dtype == torch.float32
    assert expected.shape == opt.common_parameters().shape


def test_a_default_device_that_cannot_hold_anything_disturbs_nobody(wrap: Wrap) -> None:
    mine, theirs = model_of(), model_of()
    with torch.device("meta"):
        a = wrap(sgd(mine), mine)
        b = wrap(sgd(theirs), theirs, of=a)
    for opt, model in ((a, mine), (b, theirs)):
        for step in range(4):
            opt.zero_grad()
            loss_of(model, 1, step).backward()
            with torch.device("meta"):
                opt.step()

    a.finish(timeout_s=PATIENCE_S), b.finish(timeout_s=PATIENCE_S)
    eventually(lambda: a.common_digest() == b.common_digest())
    assert a.status.errors == b.status.errors == ()


def test_training_code_that_is_wrong_raises_its_own_error(wrap: Wrap) -> None:
    a = wrap(sgd(model := model_of()), model)

    def closure() -> Tensor:
        raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own") as caught:
        a.step(closure)
    assert "closure" in "".join(traceback.format_exception(caught.value))
    train(a, model, 2)
