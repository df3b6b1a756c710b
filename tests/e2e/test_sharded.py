"""Sharded runs over libp2p: peers in threads of one process, and in processes of their own that are killed."""

import threading
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from processes import Workers
from torch import Tensor, nn

import legion_p2p as legion
from legion_p2p.train.gpt import GPT
from legion_p2p.train.gpt_config import GPTConfig
from tests.waiting import PATIENCE_S

PEER = legion.Peer(listen=("/ip4/127.0.0.1/tcp/0",), lan=False)
CONFIG = GPTConfig(n_layer=3, n_head=2, width=16, context=8, vocab_size=32)
INNER = legion.Inner(optimizer="adamw", learning_rate=0.01, warmup_steps=0)
N_STEPS = 20


def new_run(codec: str = "fp32") -> legion.NewRun:
    rounds = legion.Rounds(push_codec=codec, update_codec=codec, quorum=1.0)
    return legion.NewRun("group", sharding="full", inner=INNER, rounds=rounds)


def batch_of(member: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * member + step)
    tokens = torch.randint(0, CONFIG.vocab_size, (2, CONFIG.context + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def plain(n: int) -> GPT:
    """What one process makes of the joint batches."""
    model = GPT(CONFIG)
    inner = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(N_STEPS):
        x, y = (torch.cat(parts) for parts in zip(*(batch_of(member, step) for member in range(n)), strict=True))
        inner.zero_grad()
        model(x, y)[1].backward()
        inner.step()
    return model


def train(run: legion.Run, model: nn.Module, member: int, n: int, trained: list[dict[str, Tensor]]) -> None:
    sharded = run.shard(model)
    sharded.wait_for_members(n)
    for step in range(N_STEPS):
        model(*batch_of(member, step))[1].backward()
        assert sharded.step()
    sharded.gather()
    trained.append({name: p.detach().clone() for name, p in model.named_parameters()})


def in_threads(jobs: list[Callable[[], None]]) -> None:
    failures: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as failed:
            failures.append(failed)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not failures and not any(thread.is_alive() for thread in threads), failures


@pytest.mark.parametrize("n", [1, 2, 4])
def test_members_that_shard_a_model_train_as_one_process_with_the_joint_batch(n: int):
    trained: list[dict[str, Tensor]] = []
    runs = [legion.create(new_run(), GPT(CONFIG), peer=PEER)]
    try:
        runs += [legion.join("group", initial_peers=runs[0].addresses(), peer=PEER) for _ in range(n - 1)]
        models = [GPT(CONFIG), *(meta_gpt() for _ in range(n - 1))]
        in_threads([lambda i=i: train(runs[i], models[i], i, n, trained) for i in range(n)])
    finally:
        for run in runs:
            run.close()

    expected = dict(plain(n).named_parameters())
    assert len(trained) == n
    for weights in trained:
        for name, tensor in weights.items():
            assert torch.allclose(tensor, expected[name], atol=1e-5, rtol=0), name


def test_a_member_that_is_killed_in_mid_step_costs_the_others_seconds_and_no_step(bootstrap: str, workers: Workers) -> None:
    four = workers.take(4)
    run = f"run/{time.time_ns()}"
    for rank, worker in enumerate(four):
        worker.tell(do="sharded", rank=rank, n=4, steps=40, run=run, peers=[bootstrap])
        worker.wait_for("in_run")
    for worker in four:
        worker.wait_for(lambda m: m.get("event") == "stepped" and m["step"] >= 5)

    four[3].kill()
    killed_at = time.time()
    results = [worker.result() for worker in four[:3]]

    steps = [[m["at"] for m in worker.events("stepped")] for worker in four[:3]]
    longest_s = max(after - before for one in steps for before, after in pairwise(one))
    assert len({result["parameters"] for result in results}) == 1
    assert {result["run_step"] for result in results} == {40}
    assert any(worker.events("unit.taken_over") for worker in four[:3])
    print(f"killed at {killed_at:.1f}; the longest step took {longest_s:.1f} s")


def test_two_regions_each_hold_a_whole_model_and_sync_over_libp2p():
    rounds = legion.Rounds(push_codec="fp32", update_codec="fp32", local_steps=1, sync_every=2, sync_codec="int8")
    here, there = (legion.Peer(listen=PEER.listen, lan=False, region=region) for region in ("here", "there"))
    runs = [legion.create(legion.NewRun("group", sharding="full", inner=INNER, rounds=rounds), GPT(CONFIG), peer=here)]
    synced: list[int] = []

    def train_until_synced(run: legion.Run, member: int) -> None:
        model, step = meta_gpt(), 0
        sharded = run.shard(model)
        deadline = time.monotonic() + PATIENCE_S
        while len([e for e in run.events() if e.name == "sync.done"]) < 4 and time.monotonic() < deadline:
            model(*batch_of(member, step))[1].backward()
            assert sharded.step()
            step += 1
        synced.append(len([e for e in run.events() if e.name == "sync.done"]))
        sharded.finish(together=True)

    try:
        runs.append(legion.join("group", initial_peers=runs[0].addresses(), peer=there))
        n_units = [len(run.status().shards) for run in runs]
        in_threads([lambda i=i: train_until_synced(runs[i], i) for i in range(2)])
    finally:
        for run in runs:
            run.close()

    assert n_units[0] == n_units[1] > 1
    assert all(n >= 4 for n in synced) and len(synced) == 2


def meta_gpt() -> GPT:
    """A model that has no memory yet."""
    return GPT(CONFIG, shapes_only=True)
