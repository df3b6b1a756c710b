"""`legion.join`, `legion.create` and the `Run` that they return; the same under trio; and what is stored already. On loopback."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import trio
from torch import nn
from workers import loss_of, model_of

import legion_p2p as legion
from legion_p2p.errors import ClosedError, IncompatibleModelError, RunExistsError, UsageError
from tests.waiting import PATIENCE_S

PEER = legion.Peer(listen="/ip4/127.0.0.1/tcp/0", status=False)
ROUNDS = legion.Rounds(local_steps=2)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def new_run(**more: Any) -> legion.NewRun:
    return legion.NewRun(f"run/{time.time_ns()}", rounds=more.pop("rounds", ROUNDS), **more)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)


def train(opt: legion.Optimizer, model: nn.Module, steps: int, seed: int = 1) -> None:
    for step in range(steps):
        opt.zero_grad()
        loss_of(model, seed, step).backward()
        opt.step()


def with_store(folder: Path) -> legion.Peer:
    store = legion.Store(folder / "store", checkpoint_every_s=1)
    return legion.Peer(listen=PEER.listen, status=False, identity=folder / "key", store=store)


def test_a_run_is_created_joined_and_left_and_both_end_with_the_same_bits(stack: ExitStack) -> None:
    mine, theirs = model_of(seed=1), model_of(seed=2)
    wanted = new_run()

    a = stack.enter_context(legion.create(wanted, mine, peer=PEER))
    b = stack.enter_context(legion.join(wanted.name, initial_peers=a.addresses(), peer=PEER))
    first, second = a.optimizer(sgd(mine), mine), b.optimizer(sgd(theirs), theirs, tokens_per_step=8)
    train(first, mine, 6)
    train(second, theirs, 6, seed=2)
    digest = b.finish(timeout_s=PATIENCE_S)
    again = a.finish(together=True, timeout_s=PATIENCE_S)

    assert (a.id, a.name, a.spec.round.local_steps) == (b.id, wanted.name, 2)
    assert {m.peer_id for m in a.members()} == {a.status().peer_id, b.status().peer_id} == {m.peer_id for m in b.members()}
    assert a.step >= 6 and second.run_step >= 6 and second.tokens == 48
    assert "run.joined" in {e.name for e in b.events()}
    assert len(digest) == 64 and again == first.common_digest()
    b.close()
    with pytest.raises(ClosedError):
        b.status()


def test_a_model_that_differs_is_refused_before_joining_or_when_it_is_wrapped(stack: ExitStack) -> None:
    a = stack.enter_context(legion.create(new_run(), model_of(), peer=PEER))
    other = model_of(width=8)

    with pytest.raises(IncompatibleModelError, match="parameter 0 differs"):
        legion.join(a.name, other, initial_peers=a.addresses(), peer=PEER)
    b = stack.enter_context(legion.join(a.id, initial_peers=a.addresses(), peer=PEER))
    with pytest.raises(IncompatibleModelError, match="parameter 0 differs"):
        b.optimizer(sgd(other), other)
    with pytest.raises(UsageError, match=r"run\.optimizer"):
        b.finish()


def test_events_reach_whoever_asked_for_them_from_joining_to_leaving() -> None:
    seen: list[str] = []
    peer = legion.Peer(listen=PEER.listen, status=False, on_event=lambda event: seen.append(event.name))

    with legion.create(new_run(), model_of(), peer=peer) as run:
        kept = [event.name for event in run.events()]

    assert "run.created" in kept and kept == seen[: len(kept)]
    assert seen[-1] == "run.left"


def test_a_run_that_the_store_has_is_not_created_again_but_goes_on(tmp_path: Path) -> None:
    wanted, model = new_run(), model_of()
    with legion.create(wanted, model, peer=with_store(tmp_path)) as run:
        train(run.optimizer(sgd(model), model), model, 4)
        digest = run.finish(timeout_s=PATIENCE_S)
        run_id = run.id

    with pytest.raises(RunExistsError, match=rf"holds a run named '{wanted.name}' already, with the id {run_id}: --run"):
        legion.create(wanted, model_of(), peer=with_store(tmp_path))
    with pytest.raises(IncompatibleModelError, match=r"is there already, with rounds.local_steps 2; asked for was 3"):
        legion.create(
            legion.NewRun(wanted.name, rounds=legion.Rounds(local_steps=3)), model_of(), peer=with_store(tmp_path), or_join=True
        )
    fresh = model_of(seed=7)
    with legion.create(wanted, fresh, peer=with_store(tmp_path), or_join=True) as again:
        assert again.id == run_id
        opt = again.optimizer(sgd(fresh), fresh)
        assert opt.common_digest() == digest
    with legion.join(wanted.name, peer=with_store(tmp_path)) as joined:  # and no initial peers are needed
        assert joined.id == run_id


def test_create_or_join_joins_what_somebody_in_reach_has_and_creates_what_nobody_has(stack: ExitStack) -> None:
    wanted = new_run()
    a = stack.enter_context(legion.create(wanted, model_of(), peer=PEER, or_join=True))

    b = stack.enter_context(legion.create(wanted, model_of(), initial_peers=a.addresses(), peer=PEER, or_join=True))

    assert b.id == a.id
    with pytest.raises(RunExistsError, match="exists"):
        legion.create(wanted, model_of(), initial_peers=a.addresses(), peer=PEER)


def test_the_same_under_trio_with_training_in_a_worker_thread() -> None:
    async def main() -> str:
        model = model_of()
        async with legion.aio.create(new_run(), model, peer=PEER) as a:
            theirs = model_of(seed=5)
            async with legion.aio.join(a.name, initial_peers=a.addresses(), peer=PEER) as b:
                assert b.id == a.id and len(b.members()) == 2 and b.spec == a.spec
                opt = b.optimizer(sgd(theirs), theirs)
                with pytest.raises(UsageError, match="to_thread"):
                    train(opt, theirs, 1)
                await trio.to_thread.run_sync(train, opt, theirs, 4)
                digest = await b.finish(timeout_s=PATIENCE_S)
                assert b.status().rounds and "run.joined" in {event.name for event in b.events()} and b.step >= 4
            return digest

    async def in_time() -> str:
        with trio.fail_after(120):
            return await main()

    assert len(trio.run(in_time)) == 64
