"""Sharded runs: the group trains as one process would, whoever comes, leaves or dies."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import torch
import trio
from torch import Tensor

from legion_p2p.core.control import Pause, Wish
from legion_p2p.core.identity import Identity
from legion_p2p.core.manifest import MOMENTS
from legion_p2p.core.messages.sharding import PullUnit, UnitWeights
from legion_p2p.core.plan import ShardPlan
from legion_p2p.core.run import RunSpec
from legion_p2p.errors import CodecError, JoinError, NetworkError
from legion_p2p.services.run.progress import Progress
from legion_p2p.services.sharding.unit_client import LOST_S
from legion_p2p.store.archive import Archive
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoints import get_manifest
from legion_p2p.tensor.codec import get as get_codec
from legion_p2p.tensor.flatten import from_fp32_bytes
from legion_p2p.train.muon import MuonAdamW
from tests.sim.sharded import INNER, NUMEL, PARAMS, SPEC, Group, Member, group_of, resumed_group, with_codec

NAMES = ("a", "b", "c", "d")


def target(name: str) -> Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(sum(name.encode())))


def towards_target(weights: Tensor, name: str, step: int) -> Tensor:
    """Of a quadratic loss around a point of its own, that moves."""
    return weights - target(name) * (1 + 0.1 * step)


def plain_adamw(start: Tensor, *batches: Sequence[str], clip: float = 0.0) -> Tensor:
    """What one process makes of joint batches: whose are in each step."""
    weights = torch.nn.Parameter(start.clone())
    betas = (INNER.beta1, INNER.beta2)
    inner = torch.optim.AdamW([weights], lr=INNER.learning_rate, betas=betas, weight_decay=INNER.weight_decay)
    for step, names in enumerate(batches):
        weights.grad = torch.stack([towards_target(weights.detach(), name, step) for name in names]).mean(0)
        if clip:
            torch.nn.utils.clip_grad_norm_([weights], clip)
        inner.step()
    return weights.detach()


async def train(group: Group, n_steps: int) -> None:
    async def one(member: Member) -> None:
        await member.begin(len(group.members), member.step)
        for _ in range(n_steps):
            await member.train_step(towards_target)

    async with trio.open_nursery() as nursery:
        for member in group.members.values():
            nursery.start_soon(one, member)


@pytest.mark.parametrize("n", [1, 2, 4])
async def test_a_group_trains_as_one_process_with_the_joint_batch(n: int, autojump_clock):
    async with group_of(*NAMES[:n]) as group:
        await train(group, 20)

        weights = await group.members["a"].pulled()
        assert torch.allclose(weights, plain_adamw(group.start, *[NAMES[:n]] * 20), atol=1e-5, rtol=0)
        assert all(all(member.included) for member in group.members.values())
        assert all(len(states) == 1 for states in group.digests().values())


CLIP = 40.0  # longer than the first gradients, shorter than later ones
CLIPPED = msgspec.structs.replace(SPEC, inner=msgspec.structs.replace(INNER, clip=CLIP))


async def test_gradients_are_clipped_by_the_norm_of_all_units_as_one_process_does(autojump_clock):
    async with group_of(*NAMES[:3], spec=CLIPPED) as group:
        await train(group, 20)

        weights = await group.members["a"].pulled()
        clipped = plain_adamw(group.start, *[NAMES[:3]] * 20, clip=CLIP)
        assert torch.allclose(weights, clipped, atol=1e-5, rtol=0)
        assert not torch.allclose(clipped, plain_adamw(group.start, *[NAMES[:3]] * 20), atol=1e-3, rtol=0)
        assert not torch.allclose(clipped, plain_adamw(group.start, *[NAMES[:3]] * 20, clip=1.0), atol=1e-3, rtol=0)
        await all_made(group, 20)
        assert all(len(states) == 1 for states in group.digests().values())


async def all_made(group: Group, n_steps: int) -> None:
    """Members are answered before the steps of a clipped gradient are made."""
    for member in group.members.values():
        member.step = n_steps
        await member.pulled()
    await trio.sleep(1)


async def test_with_muon_a_group_trains_as_one_process_and_owner_and_standby_hold_the_same_bits(autojump_clock):
    spec = msgspec.structs.replace(SPEC, inner=msgspec.structs.replace(INNER, optimizer="muon"))
    async with group_of(*NAMES[:2], spec=spec) as group:
        await train(group, 10)

        weights = await group.members["a"].pulled()
        assert torch.allclose(weights, plain_muon(group.start, NAMES[:2], 10), atol=1e-4, rtol=0)
        assert all(len(states) == 1 for states in group.digests().values())


def plain_muon(start: Tensor, names: Sequence[str], n_steps: int) -> Tensor:
    """What one process makes of joint batches."""
    tensors = [torch.nn.Parameter(one.view(param.shape).clone()) for one, param in zip(_cut(start), PARAMS, strict=True)]
    is_matrix = [param.name.startswith("blocks.") for param in PARAMS]
    matrices, others = ([t for t, m in zip(tensors, is_matrix, strict=True) if m is wanted] for wanted in (True, False))
    inner = MuonAdamW(matrices, others, INNER.learning_rate, betas=(INNER.beta1, INNER.beta2), weight_decay=INNER.weight_decay)
    for step in range(n_steps):
        flat = torch.cat([one.detach().reshape(-1) for one in tensors])
        mean = torch.stack([towards_target(flat, name, step) for name in names]).mean(0)
        for tensor, gradient in zip(tensors, _cut(mean), strict=True):
            tensor.grad = gradient.view(tensor.shape)
        inner.step()
    return torch.cat([one.detach().reshape(-1) for one in tensors])


def _cut(flat: Tensor) -> Sequence[Tensor]:
    return torch.split(flat, [param.numel for param in PARAMS])


async def test_with_a_byte_for_each_weight_and_gradient_a_group_comes_as_near_and_holds_the_same_bits(autojump_clock):
    async with group_of(*NAMES[:3], spec=with_codec("int8")) as group:
        await train(group, 30)

        weights = await group.members["a"].pulled()
        plain = plain_adamw(group.start, *[NAMES[:3]] * 30)
        moved = float((plain - group.start).norm())
        assert float((weights - plain).norm()) < 0.05 * moved
        assert all(len(states) == 1 for states in group.digests().values())


async def test_what_a_byte_leaves_out_of_a_gradient_is_in_a_later_one(autojump_clock):
    async with group_of("a", "b", spec=with_codec("int8")) as group:
        await train(group, 0)  # both say that they train
        pusher = group.members["b"].units
        others = (u for u in pusher.table.units if pusher.table.ownership(u.index).owner != group.members["b"].id)
        unit = next(u for u in others if u.numel <= 256)  # one block of the codec
        small = torch.full((unit.numel,), 1e-3)
        small[0] = 1.0  # beside it the others are a quarter of a step of the codec, and round to nothing
        arrived: list[Tensor] = []
        owner = group.members["a"].units.keeper
        submit = owner.submit

        async def noted(peer, index, step, tokens, decoded):
            if index == unit.index and peer == group.members["b"].id:
                arrived.append(decoded())
            return await submit(peer, index, step, tokens, decoded)

        owner.submit = noted
        for step in range(40):
            async with trio.open_nursery() as nursery:
                for member in group.members.values():
                    nursery.start_soon(member.units.client.push, unit.index, step, 1, small)

        total = torch.stack(arrived).sum(0)
        assert len(arrived) == 40
        assert float(arrived[0][1:].abs().sum()) == 0.0
        assert torch.allclose(total, 40 * small, atol=0.008, rtol=0)


@pytest.mark.parametrize("spec", [SPEC, CLIPPED], ids=["plain", "clipped"])
async def test_a_killed_owner_costs_at_most_ten_seconds_and_no_step(spec: RunSpec, autojump_clock):
    async with group_of(*NAMES, spec=spec) as group:
        await train(group, 5)
        before = await group.members["b"].pulled()

        await group.kill("a")
        killed_at = trio.current_time()
        await train(group, 1)
        took_s = trio.current_time() - killed_at
        await group.settled()
        await train(group, 4)

        weights = await group.members["b"].pulled()
        await all_made(group, 10)
        assert took_s < 10
        assert not torch.equal(weights, before)
        assert {version for states in group.digests().values() for version, _ in states} == {10}
        assert all(len(states) == 1 for states in group.digests().values())
        assert any(member.events_named("unit.taken_over") for member in group.members.values())


async def test_four_of_which_one_is_killed_in_mid_step_go_on_as_three_that_never_had_it(autojump_clock):
    async with group_of(*NAMES) as group:
        await train(group, 3)
        killed = group.members["d"]
        others = [member for member in group.members.values() if member is not killed]
        table = killed.units.table

        async with trio.open_nursery() as nursery:
            for member in others:
                nursery.start_soon(member.train_step, towards_target)
            for unit in table.units[::2]:  # half of its gradients are on their way
                zeros = torch.zeros(unit.numel)
                killed_push = killed.units.client.push
                group.nursery.start_soon(killed_push, unit.index, 3, 1, zeros)
            await trio.sleep(0.2)
            await group.kill("d")
        start = await group.members["a"].pulled()
        moments = moments_of(group)
        await train(group, 6)

        weights = await group.members["a"].pulled()
        assert torch.allclose(weights, adamw_from(start, moments, ["a", "b", "c"], 6, first=4), atol=1e-5, rtol=0)
        assert all(len(states) == 1 for states in group.digests().values())


def moments_of(group: Group) -> tuple[Tensor, Tensor]:
    """What the peers that hold the newest version of each unit remember, flat: one may be a step behind, and an owner dead."""
    first, second = torch.zeros(NUMEL), torch.zeros(NUMEL)
    tables = [member.units.table for member in group.members.values()]
    for unit in tables[0].units:
        held = max((t.held[unit.index] for t in tables if unit.index in t.held), key=lambda held: held.version)
        at = 0
        for piece in unit.pieces:
            start, numel = tables[0].plan.starts[piece.param] + piece.start, piece.numel
            first[start : start + numel] = held.moments.first[at : at + numel]
            second[start : start + numel] = held.moments.second[at : at + numel]
            at += numel
    return first, second


def adamw_from(start: Tensor, moments: tuple[Tensor, Tensor], names: list[str], n_steps: int, first: int) -> Tensor:
    """As `plain_adamw`, from moments that `first` steps have made."""
    weights = torch.nn.Parameter(start.clone())
    betas = (INNER.beta1, INNER.beta2)
    inner = torch.optim.AdamW([weights], lr=INNER.learning_rate, betas=betas, weight_decay=INNER.weight_decay)
    inner.state[weights] = {"step": torch.tensor(float(first)), "exp_avg": moments[0], "exp_avg_sq": moments[1]}
    for step in range(first, first + n_steps):
        weights.grad = torch.stack([towards_target(weights.detach(), name, step) for name in names]).mean(0)
        inner.step()
    return weights.detach()


async def test_a_step_that_waits_long_for_a_slow_member_is_not_taken_for_lost(autojump_clock):
    async with group_of("a", "b") as group:
        slow_s = 3 * LOST_S

        async def one(member: Member, delay_s: float) -> None:
            await member.begin(2)
            await trio.sleep(delay_s)
            await member.train_step(towards_target)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, group.members["a"], 0)
            nursery.start_soon(one, group.members["b"], slow_s)

        assert all(all(member.included) for member in group.members.values())
        assert {version for states in group.digests().values() for version, _ in states} == {1}


async def test_a_unit_whose_only_copy_is_behind_is_lost(autojump_clock):
    async with group_of("a", "b") as group:
        member = group.members["a"]
        began = trio.current_time()

        with pytest.raises(NetworkError, match="unit 0 of the run is lost"):
            await member.units.client.push(0, 5, 1, torch.zeros(member.units.table.units[0].numel))

        assert LOST_S <= trio.current_time() - began < LOST_S + 60


async def test_moments_that_no_optimizer_has_are_refused(autojump_clock):
    async with group_of("a") as group:
        units = group.members["a"].units
        client, numel = units.client, units.table.units[0].numel
        request = PullUnit("group", 0, 0, exact=True, part="second")
        for n_steps, value in ((3, -1.0), (1 << 32, 1.0)):
            with pytest.raises(CodecError, match="no optimizer"):
                client.read(request, UnitWeights(3, get_codec("fp32").encode(torch.full((numel,), value)), n_steps))


async def test_members_come_and_go_at_any_step_and_the_units_with_them(autojump_clock):
    async with group_of("a", "b") as group:
        await train(group, 4)
        await group.add("c")
        await group.settled()
        group.members["c"].step = 4
        await train(group, 4)
        await group.leave("a")
        await group.settled()
        await train(group, 4)

        weights = await group.members["b"].pulled()
        expected = plain_adamw(group.start, *["ab"] * 4, *["abc"] * 4, *["bc"] * 4)
        assert torch.allclose(weights, expected, atol=1e-5, rtol=0)
        assert all(len(states) == 1 for states in group.digests().values())


@pytest.mark.parametrize("clip", [0.0, CLIP])
async def test_a_newcomer_takes_its_units_while_the_others_train(clip: float, autojump_clock):
    async with group_of("a", "b", spec=CLIPPED if clip else SPEC) as group:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(train, group, 60)
            await trio.sleep(0.5)
            await group.add("c")
            group.members["c"].step = 0
        await group.settled()

        weights = await group.members["a"].pulled()
        assert torch.allclose(weights, plain_adamw(group.start, *["ab"] * 60, clip=clip), atol=1e-5, rtol=0)
        await all_made(group, 60)
        assert all(len(states) == 1 for states in group.digests().values())


async def test_an_owner_that_was_cut_off_lets_go_when_it_is_back(autojump_clock):
    async with group_of(*NAMES) as group:
        await train(group, 2)
        away = group.members["a"]
        group.world.partition([away.id], [member.id for member in group.members.values() if member is not away])
        await trio.sleep(20)
        rest = {name: group.members[name] for name in NAMES[1:]}
        everybody, group.members = group.members, rest
        await train(group, 3)
        group.world.heal()
        group.members = everybody
        await group.settled()

        assert {version for states in group.digests().values() for version, _ in states} == {5}
        assert all(len(states) == 1 for states in group.digests().values())


async def test_a_checkpoint_is_a_manifest_like_any_other_and_the_run_goes_on_from_it(tmp_path: Path, autojump_clock):
    async with group_of(*NAMES[:2], stores=tmp_path) as group:
        await train(group, 5)
        saver = group.members["b"]
        await saver.units.saver.save(saver.step)
        weights = await saver.pulled()

    assert saver.events_named("checkpoint.stored")
    stored = whole_of(tmp_path / "b", saver.engine.plan)
    assert torch.equal(stored, weights)
    async with resumed_group("b", tmp_path) as group:
        again = group.members["b"]
        assert await again.units.client.newest_step() == 5
        again.step = 5
        assert torch.equal(await again.pulled(), weights)
        await train(group, 4)  # the optimizer goes on as if nothing had been
        expected = plain_adamw(group.start, *["ab"] * 5, *["b"] * 4)
        assert torch.allclose(await again.pulled(), expected, atol=1e-5, rtol=0)


async def test_a_store_without_room_for_what_the_optimizer_remembers_keeps_the_weights(tmp_path: Path, autojump_clock):
    async with group_of("a", stores=tmp_path) as group:
        await train(group, 3)
        roomy = group.members["a"]
        await roomy.units.saver.save(3)
        with closing(BlockStore(tmp_path / "a", read_only=True)) as store:
            group.quota_bytes = store.used_bytes - 4 * NUMEL
        await group.add("b")
        await group.settled()
        narrow = group.members["b"]
        await narrow.units.saver.save(3)
        weights = await narrow.pulled()

    assert narrow.events_named("checkpoint.moments_left_out") and narrow.events_named("checkpoint.stored")
    assert torch.equal(whole_of(tmp_path / "b", narrow.engine.plan), weights)


async def test_where_what_the_optimizer_remembered_is_lost_it_begins_cold_and_says_so(tmp_path: Path, autojump_clock):
    async with group_of("a", stores=tmp_path) as group:
        await train(group, 3)
        await group.members["a"].units.saver.save(3)
        weights = await group.members["a"].pulled()
    with closing(BlockStore(tmp_path / "a")) as store:
        (manifest,) = [get_manifest(store, cid) for cid in store.pins()]
    (block,) = [path for path in (tmp_path / "a").rglob("*") if path.name == str(manifest.state[MOMENTS])]
    block.unlink()

    async with resumed_group("a", tmp_path) as group:
        again = group.members["a"]
        assert again.events_named("checkpoint.moments_lost")
        again.step = 3
        assert torch.equal(await again.pulled(), weights)
        assert all(held.moments is None for held in again.units.table.held.values())


def whole_of(store: Path, plan: ShardPlan) -> Tensor:
    """The parameters in a store, as a replicated run would read them."""
    archive = Archive(BlockStore(store), Identity(b"reader".ljust(32, b".")))
    try:
        (found,) = archive.find("group")
        archive.open(found.signed, found)
        return torch.cat([from_fp32_bytes(archive.shard(shard)[1]) for shard in range(plan.n_shards)])
    finally:
        archive.close()


async def test_a_network_that_is_too_slow_is_refused_with_the_figure(autojump_clock, monkeypatch):
    async with group_of("a", "b") as group:
        monkeypatch.setattr("legion_p2p.services.sharding.unit_client.MAX_STEP_S", 1e-6)

        with pytest.raises(JoinError, match=r"the network is too slow .* came from .* are allowed"):
            async with group.joining("c"):
                pass


async def test_a_pause_ends_by_itself_and_a_target_ends_the_run(autojump_clock):
    async with group_of("a", "b", spec=msgspec.structs.replace(SPEC, target_steps=7)) as group:
        member = group.members["a"]
        member.engine.control.obey(Pause(5.0))
        assert member.engine.control.wish is Wish.PAUSE
        await trio.sleep(10)
        assert member.engine.control.wish is Wish.TRAIN

        for one in group.members.values():
            one.engine.report(Progress(training=True, run_step=7))
        await trio.sleep(10)

        assert {one.engine.control.wish for one in group.members.values()} == {Wish.FINISH}


@pytest.mark.parametrize("data", ["x", "z"])
async def test_nobody_keeps_what_has_moved_on_twice(data: str, autojump_clock):
    async with group_of(*NAMES, spec=msgspec.structs.replace(SPEC, data=data)) as group:  # another id, other owners
        assert sum(len(member.units.table.held) for member in group.members.values()) == 2 * 7
