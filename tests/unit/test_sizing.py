"""What the planner says of a round, against the messages themselves. Against a whole swarm: tests/sim/test_sizing.py."""

import math

import msgspec
import pytest
import torch

from legion_p2p.config import NewRun
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.roles import Role
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec
from legion_p2p.core.wire import Push, encode
from legion_p2p.errors import CodecError, UsageError
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.train.described import described
from legion_p2p.train.gpt import shapes_of
from legion_p2p.train.gpt_config import of_size, preset
from legion_p2p.train.job_plan import plan_of
from legion_p2p.train.round_traffic import announcement_bytes, frames_of, traffic_of
from legion_p2p.train.sizing import MAX_ELEMENTS, Connection, forecast, shares

SLOW = Connection(10e6, 100e6, 0.05)


def run_of(codec: str, *others: str, params: tuple[ParamSpec, ...] = (ParamSpec("w", (400, 1000)),), **changes) -> RunSpec:
    rounds = RoundSpec(push_codec=codec, push_codecs=others, update_codec=codec, update_codecs=others, **changes)
    return RunSpec("planned", "", params, rounds)


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8", "int3", "gauss2", "sign", "topk64-2bit", "topk128-4bit"])
@pytest.mark.parametrize("params", [(ParamSpec("w", (400, 1000)),), shapes_of(preset("xxs"))], ids=["a matrix", "a model"])
def test_pushes_are_as_large_as_those_of_normal_values(name: str, params: tuple[ParamSpec, ...]) -> None:
    spec = run_of(name, params=params, shard_elements=1 << 17)
    generator = torch.Generator().manual_seed(0)
    plan = spec.plan()

    bodies = [
        shard_codec(spec, shard, name).encode(torch.randn(plan.size(shard), generator=generator))
        for shard in range(plan.n_shards)
    ]
    pushes = [encode(Push("b" * 59, i, 1000, 1000, 1 << 20, 10, name, body)) for i, body in enumerate(bodies)]

    assert frames_of(spec, 3, name, name).pushes == pytest.approx(sum(map(len, pushes)) + 15 * plan.n_shards, rel=0.01)


def test_an_owner_brings_every_update_to_every_other_member() -> None:
    frames = frames_of(run_of("int8"), 10, "int8", "int8")

    none, all_of_them = traffic_of(frames, 10, 0), traffic_of(frames, 10, frames.n_shards)

    assert (none.push_bytes, none.update_bytes) == (frames.pushes, 0)
    assert (all_of_them.push_bytes, all_of_them.update_bytes) == (0, 9 * frames.updates)


def test_a_helper_pushes_nothing_and_gets_no_replies_to_pushes() -> None:
    frames = frames_of(run_of("int8"), 4, "int8", "int8")

    trainer, helper = (traffic_of(frames, 4, 2, trains=trains) for trains in (True, False))

    assert (helper.push_bytes, helper.update_bytes) == (0, trainer.update_bytes)
    assert trainer.received_bytes - helper.received_bytes == pytest.approx((frames.n_shards - 2) * frames.pushed, abs=1)


def test_a_helper_needs_less_memory_than_a_trainer_and_a_client_sends_pushes_only() -> None:
    spec = described(NewRun("x", preset="l"))

    trainer, helper, client = (plan_of(spec, (10,), None, role) for role in (Role.AUTO, Role.HELPER, Role.CLIENT))

    assert 800e6 < helper.memory_bytes < 1000e6 < trainer.memory_bytes
    assert (helper.tokens_per_step, helper.traffic[0].sent_bytes_per_token) == (0, 0.0)
    assert client.traffic[0].sent_bytes == pytest.approx(client.push_bytes_per_round, rel=0.01)


def test_what_one_sends_another_receives() -> None:
    frames = frames_of(run_of("int8"), 4, "int8", "int8")
    rounds = [traffic_of(frames, 4, owned) for owned in (0, 1, 2, frames.n_shards - 3)]

    assert sum(t.sent_bytes for t in rounds) == pytest.approx(sum(t.received_bytes for t in rounds), abs=4)


def test_alone_nothing_is_sent() -> None:
    made = forecast(run_of("fp32"), 1, SLOW, 1.0, 100)

    assert all(cost.traffic.sent_bytes == cost.sync_s == cost.sync_share == 0 and cost.keeps_up for cost in made.adapted)


def test_updates_name_everybody_whose_push_they_contain() -> None:
    spec = run_of("topk64-2bit")

    few, many = (frames_of(spec, n, "topk64-2bit", "topk64-2bit").updates for n in (10, 110))

    assert (many - few) / spec.plan().n_shards / 100 == pytest.approx(67, abs=3)


def test_a_slow_connection_ends_up_with_the_sparse_codec_and_then_with_longer_rounds() -> None:
    spec = run_of("int8", "topk64-2bit", params=shapes_of(preset("s")))

    def ends_with(upload_bps: float) -> tuple[str, int]:
        mean = forecast(spec, 10, Connection(upload_bps, None, 0.05), 0.1, 1000).adapted[1]
        return mean.push_codec, mean.local_steps

    assert [ends_with(1e9), ends_with(2e6)] == [("int8", 10), ("topk64-2bit", 10)]
    assert ends_with(2e5)[0] == "topk64-2bit" and 10 < ends_with(2e5)[1] < ends_with(1e5)[1] < ends_with(1e4)[1] == 120
    assert forecast(spec, 10, Connection(2e5), 0.1, 1000).initial[1].push_codec == "int8"


def test_what_is_overlapped_costs_nothing_until_it_takes_longer_than_computing() -> None:
    spec = run_of("int8", max_local_steps=10, params=shapes_of(preset("s")))

    quick, slow = (forecast(spec, 2, Connection(bps), 0.1, 1000).adapted[1] for bps in (20e6, 1e6))
    waiting = forecast(
        msgspec.structs.replace(spec, round=msgspec.structs.replace(spec.round, synchronous=True)), 2, Connection(20e6), 0.1, 1000
    ).adapted[1]

    assert quick.keeps_up and quick.exposed_share == 0 < quick.sync_share
    assert not slow.keeps_up and slow.exposed_share == pytest.approx(1 - slow.compute_s / slow.sync_s)
    assert waiting.exposed_share == waiting.sync_share == quick.sync_share


def test_what_will_not_work_is_said() -> None:
    dense = forecast(run_of("int8", params=shapes_of(of_size(1e9))), 100, SLOW, 1.0, 8192)

    assert any("pushes come late" in warning for warning in dense.warnings)
    assert any("is given up after 120 s" in warning for warning in dense.warnings)
    assert forecast(run_of("topk64-2bit", params=shapes_of(preset("gpt2"))), 10, SLOW, 1.0, 4096).warnings == ()


def test_shards_fall_to_members_as_rendezvous_lets_them() -> None:
    assert shares(16, 1) == (16, 16, 16)
    fewest, mean, most = shares(16, 4)
    assert fewest < mean == 4 < most
    assert shares(16, 100)[0] == 0 and shares(16, 100)[2] in (1, 2)


def test_announcements_grow_by_eight_bytes_a_shard_until_a_digest_is_shorter() -> None:
    assert announcement_bytes(32) - announcement_bytes(8) == pytest.approx(8 * 24, abs=4)
    assert announcement_bytes(4096) == announcement_bytes(33) < announcement_bytes(32)


def test_what_no_run_can_be_is_refused() -> None:
    too_large = run_of("int8", params=tuple(ParamSpec(f"w{i}", (1 << 20, 1 << 12)) for i in range(9)))

    assert sum(p.numel for p in too_large.params) > MAX_ELEMENTS
    with pytest.raises(UsageError, match=r"38\.7b parameters, a run holds at most 34\.4b"):
        forecast(too_large, 10, SLOW, 1.0, 100)
    for n_members in (0, 10_001):
        with pytest.raises(UsageError, match="allowed are 1 to 10000"):
            forecast(run_of("int8"), n_members, SLOW, 1.0, 100)
    with pytest.raises(CodecError, match="unknown codec"):
        frames_of(run_of("int8"), 2, "int8", "int9")


def test_a_connection_of_unknown_rate_takes_no_time() -> None:
    cost = forecast(run_of("int8"), 5, Connection(), 1.0, 100).adapted[2]

    assert cost.sync_s == 0 and cost.traffic.sent_bytes > 0 and math.isfinite(cost.sent_bytes_per_token)
