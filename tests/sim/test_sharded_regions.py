"""Sharded runs of several regions: each holds the whole model, makes its own steps, and syncs with the others now and then."""

from pathlib import Path

import msgspec
import pytest
import torch
import trio
from torch import Tensor

from legion_p2p.core.messages.base import Busy
from legion_p2p.core.messages.sharding import AppointUnit, PullUnit, PushGradient, UnitWeights
from legion_p2p.core.priority import ThrottledReply
from legion_p2p.errors import NetworkError
from tests.sim.sharded import INNER, ROUND, SPEC, Group, Member, group_of
from tests.sim.test_sharded_runs import target, towards_target, whole_of

STEP_S = 0.05
N_STEPS = 30
SYNCING = msgspec.structs.replace(
    SPEC,
    round=msgspec.structs.replace(ROUND, local_steps=2, sync_every=1, sync_codec="int8", sync_reach=0.0),
    inner=msgspec.structs.replace(INNER, weight_decay=0.0),
)


async def two_regions(group: Group) -> None:
    """`group` has a and b in the region home: c and d make another one."""
    for name in "cd":
        await group.add(name, region="away")
    await group.settled()


async def train(group: Group, n_steps: int, *, gradient_of=towards_target, regions=("home", "away")) -> None:
    async def one(member: Member) -> None:
        await member.begin(len(group.of_region(member.region)), await member.units.client.newest_step())
        for _ in range(n_steps):
            await trio.sleep(STEP_S)
            await member.train_step(gradient_of)

    async with trio.open_nursery() as nursery:
        for member in group.members.values():
            if member.region in regions:
                nursery.start_soon(one, member)


def to_own_target(weights: Tensor, name: str, step: int) -> Tensor:
    return weights - target(name)


def stays(weights: Tensor, name: str, step: int) -> Tensor:
    return torch.zeros_like(weights)


async def weights_of(group: Group, region: str) -> Tensor:
    return await group.of_region(region)[0].pulled()


async def apart(group: Group) -> float:
    return float(torch.dist(await weights_of(group, "home"), await weights_of(group, "away")))


async def test_two_regions_of_a_sharded_run_train_apart_and_come_together(autojump_clock):
    async with group_of("a", "b", spec=SYNCING) as group:
        await two_regions(group)
        assert await apart(group) == 0.0

        await train(group, N_STEPS, gradient_of=to_own_target)
        drifted = await apart(group)
        await train(group, N_STEPS // 2, gradient_of=stays)

        alone = [plain_adamw_to_own(group.start, names, N_STEPS) for names in ("ab", "cd")]
        assert 0 < drifted < 0.5 * float(torch.dist(*alone))
        assert await apart(group) < 0.25 * drifted
        for region in ("home", "away"):
            assert all(len(states) == 1 for states in group.digests(region).values())
            done = [event for member in group.of_region(region) for event in member.events_named("sync.done")]
            assert done and not all(event.fields["whole"] for event in done)


def plain_adamw_to_own(start: Tensor, names: str, n_steps: int) -> Tensor:
    weights = torch.nn.Parameter(start.clone())
    inner = torch.optim.AdamW([weights], lr=INNER.learning_rate, betas=(INNER.beta1, INNER.beta2), weight_decay=0.0)
    for step in range(n_steps):
        weights.grad = torch.stack([to_own_target(weights.detach(), name, step) for name in names]).mean(0)
        inner.step()
    return weights.detach()


async def test_what_one_region_moves_by_the_other_moves_by_the_other_way(autojump_clock):
    still = msgspec.structs.replace(SYNCING, round=msgspec.structs.replace(SYNCING.round, sync_codec="fp32"))
    async with group_of("a", "b", spec=still) as group:
        await two_regions(group)
        for member in group.of_region("away"):
            for held in member.units.table.held.values():
                held.weights += 0.1
                held.packed = None
        before = (await weights_of(group, "home") + await weights_of(group, "away")) / 2
        was_apart = await apart(group)

        await train(group, 24, gradient_of=stays)

        after = (await weights_of(group, "home") + await weights_of(group, "away")) / 2
        assert await apart(group) < 0.5 * was_apart
        assert torch.allclose(after, before, atol=2e-3, rtol=0)  # the first sync rounds to bf16
        assert all(len(states) == 1 for region in ("home", "away") for states in group.digests(region).values())


async def test_a_region_that_dies_holds_up_no_step_of_the_other(autojump_clock):
    async with group_of("a", "b", spec=SYNCING) as group:
        await two_regions(group)
        await train(group, 6)
        for name in "cd":
            await group.kill(name)
        began = trio.current_time()
        await train(group, 12)

        assert trio.current_time() - began < 12 * (STEP_S + 0.3)
        assert {version for states in group.digests().values() for version, _ in states} == {18}


async def test_a_newcomer_joins_its_own_region_and_a_member_of_another_has_no_part_in_its_steps(autojump_clock):
    async with group_of("a", "b", spec=SYNCING) as group:
        await two_regions(group)
        await train(group, 3)
        await train(group, 5, regions=["home"])
        newcomer = await group.add("e", region="away")
        await group.settled()
        await train(group, 3, regions=["away"])

        assert newcomer.units.table.held and not newcomer.events_named("region.founded")
        assert len(group.members["c"].events_named("region.founded")) == 1
        assert all(newcomer.included) and len(newcomer.included) == 3 * len(newcomer.units.table.units)
        assert {version for states in group.digests("home").values() for version, _ in states} == {8}
        assert {version for states in group.digests("away").values() for version, _ in states} == {6}
        stranger = group.members["a"]
        unit = next(iter(newcomer.units.table.held))
        for message in (
            PushGradient(stranger.engine.id, unit, 6, 1, b""),
            AppointUnit(stranger.engine.id, unit, 9, 6, "none"),
        ):
            with pytest.raises(NetworkError, match="not a known member of region 'away'"):
                await stranger.units.table.ask(newcomer.id, message)


async def test_two_that_found_a_region_at_the_same_moment_end_as_one_region(autojump_clock):
    async with group_of("a", "b", spec=SYNCING) as group:
        await train(group, 4)
        async with trio.open_nursery() as nursery:
            for name in "cd":
                nursery.start_soon(lambda name: group.add(name, region="away"), name)
        await group.settled()

        assert torch.equal(await weights_of(group, "away"), await weights_of(group, "home"))
        await train(group, 3)
        assert all(len(states) == 1 for states in group.digests("away").values())
        assert {version for states in group.digests("away").values() for version, _ in states} == {7}
        held = [held for member in group.of_region("away") for held in member.units.table.held.values()]
        assert {one.moments.n_steps for one in held} == {7}  # the optimizer went on as well


async def test_a_checkpoint_is_that_of_the_region_of_the_peer_that_writes_it(tmp_path: Path, autojump_clock):
    async with group_of("a", "b", spec=SYNCING, stores=tmp_path) as group:
        await two_regions(group)
        await train(group, 5)
        saver = group.members["c"]
        await saver.units.saver.save(saver.step)

        assert await apart(group) > 0
        weights = await saver.pulled()

    assert torch.equal(whole_of(tmp_path / "c", saver.engine.plan), weights)


async def test_other_regions_are_given_a_few_units_at_a_time_and_members_all_that_they_pull(monkeypatch, autojump_clock):
    monkeypatch.setattr("legion_p2p.services.upload_slots.FREE_BYTES", 0)
    async with group_of("a", "b", spec=SYNCING) as group:
        await group.add("c", region="away")  # it founds the region with what it is given
        giver, stranger = group.members["a"], group.members["c"]
        unit = next(iter(giver.units.table.held))
        request = PullUnit(giver.engine.id, unit, 0, exact=True)

        answers = [await giver.units.keeper.on_pull(stranger.id, request) for _ in range(4)]

        assert [type(answer) for answer in answers] == [ThrottledReply, ThrottledReply, Busy, Busy]
        member = group.members["b"]
        of_member = [await giver.units.keeper.on_pull(member.id, request) for _ in range(4)]
        assert [type(answer) for answer in of_member] == [UnitWeights] * 4
        for answer in answers[:2]:
            answer.sent()
        assert isinstance(await giver.units.keeper.on_pull(stranger.id, request), ThrottledReply)
        assert torch.equal(await weights_of(group, "away"), await weights_of(group, "home"))
