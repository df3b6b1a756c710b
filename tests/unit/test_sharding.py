"""Sharded runs: how a model is cut and placed, whose gradients a step is made with, who goes on, and when weights are here."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.identity import PeerId
from legion_p2p.core.messages.sharding import UnitHeld
from legion_p2p.core.plan import MAX_SHARD_ELEMENTS, ParamSpec
from legion_p2p.core.round import RoundConfig
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import InnerSpec, RunSpec
from legion_p2p.core.sharding.cost import SentBits, held_bytes, mean_codec, step_bytes
from legion_p2p.core.sharding.matrices import Matrix, matrices_of
from legion_p2p.core.sharding.placement import place_units
from legion_p2p.core.sharding.plan import plan_units
from legion_p2p.core.sharding.pull_schedule import BlockSchedule
from legion_p2p.core.sharding.step import GradientVerdict, UnitSteps
from legion_p2p.core.sharding.takeover import owner_that_prevails, takes_over
from legion_p2p.errors import UsageError
from legion_p2p.tensor.adamw import AdamWRates, Moments, adamw_step
from legion_p2p.tensor.flatten import digest
from legion_p2p.tensor.muon import exact_product, muon_step, orthogonal
from legion_p2p.train.gpt import shapes_of
from legion_p2p.train.gpt_config import preset
from legion_p2p.train.muon import MuonAdamW

ALL = RoundConfig(quorum=1.0)
A, B, C, D = (PeerId(name) for name in "abcd")


# how a model is cut


def test_a_unit_is_a_block_and_the_rest_comes_first():
    params = [ParamSpec("wte.weight", (50, 4)), ParamSpec("h.0.a", (4, 4)), ParamSpec("h.0.b", (4,)), ParamSpec("h.1.a", (4, 4))]

    plan = plan_units([*params, ParamSpec("ln.weight", (4,))])

    assert [(block.name, block.numel) for block in plan.blocks] == [("", 204), ("h.0.", 20), ("h.1.", 16)]
    assert [unit.index for unit in plan.units] == [0, 1, 2]


def test_embeddings_are_cut_by_rows_so_that_no_peer_holds_much_more_than_a_block():
    plan = plan_units([ParamSpec("wte.weight", (50_000, 256)), *(ParamSpec(f"h.{i}.w", (1000, 1000)) for i in range(4))])

    rest = plan.blocks[0]
    assert len(rest.units) > 10 and max(unit.numel for unit in rest.units) <= 1_000_000
    assert all(piece.start % 256 == 0 for unit in rest.units for piece in unit.pieces)


def test_a_block_that_no_message_carries_is_several_units_of_whole_tensors():
    plan = plan_units([ParamSpec(f"h.0.{i}", (2048, 2048)) for i in range(5)])

    assert [unit.numel for unit in plan.units] == [8 << 20, 8 << 20, 4 << 20]


def test_a_row_that_no_message_carries_is_refused():
    with pytest.raises(UsageError, match="a row of"):
        plan_units([ParamSpec("w", (2, MAX_SHARD_ELEMENTS + 1))])


_names = st.sampled_from(["wte.weight", "h.0.w", "h.1.w", "h.1.b", "enc.0.w", "dec.3.x.w", "0.w", "ln"])


@given(st.lists(st.tuples(_names, st.lists(st.integers(1, 3000), min_size=1, max_size=2)), min_size=1, unique_by=lambda p: p[0]))
def test_every_element_is_in_exactly_one_unit(params):
    specs = [ParamSpec(name, tuple(shape)) for name, shape in params]

    plan = plan_units(specs)

    pieces = sorted((p.param, p.start, p.end) for unit in plan.units for p in unit.pieces)
    covered = {i: [(start, end) for param, start, end in pieces if param == i] for i in range(len(specs))}
    for i, spec in enumerate(specs):
        ends = covered[i]
        assert ends[0][0] == 0 and ends[-1][1] == spec.numel and all(a[1] == b[0] for a, b in pairwise(ends))
    assert [unit.index for unit in plan.units] == list(range(len(plan.units)))


# where units are


@pytest.mark.parametrize("name", ["m", "gpt2"])
@pytest.mark.parametrize("n", [2, 4, 8])
def test_no_peer_holds_more_than_its_share_and_a_block(name: str, n: int):
    plan = plan_units(shapes_of(preset(name)))
    sizes = [unit.numel for unit in plan.units]
    held = dict.fromkeys(range(n), 0)

    placed = place_units("run", "home", sizes, {PeerId(str(i)): 1.0 for i in range(n)})

    for size, who in zip(sizes, placed, strict=True):
        assert who.owner != who.standby
        held[int(who.owner)] += size
        held[int(who.standby)] += size
    assert max(held.values()) <= 2 * sum(sizes) / n + max(sizes)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.sets(st.sampled_from("abcdefgh"), min_size=1))
def test_placement_does_not_depend_on_the_order_and_a_lone_peer_owns_all(sizes, names):
    weights = {PeerId(name): 1.0 for name in names}

    placed = place_units("run", "home", sizes, weights)

    assert placed == place_units("run", "home", sizes, dict(reversed(weights.items())))
    assert all(who.owner in names for who in placed)
    assert all((who.standby is None) == (len(names) == 1) for who in placed)


def test_where_nobody_may_own_nobody_does():
    assert place_units("run", "home", [3], {A: 0.0})[0].owner is None


# the steps of a unit


def steps_of(*names: PeerId, config: RoundConfig = ALL) -> UnitSteps:
    steps = UnitSteps(config, 0)
    steps.expect(dict.fromkeys(names, 0), 0.0)
    return steps


def test_a_step_waits_for_all_that_train_and_closes_with_them():
    steps = steps_of(A, B)

    assert steps.push(A, 0, 5, 0.0) is GradientVerdict.TAKEN and not steps.ready(100.0)
    assert steps.push(B, 0, 7, 1.0) is GradientVerdict.TAKEN and steps.ready(1.0)
    assert [(c.peer, c.tokens) for c in steps.close(1.0)] == [(A, 5), (B, 7)]


def test_a_member_that_began_later_is_waited_for_from_its_step_on():
    steps = steps_of(A)
    steps.expect({A: 0, B: 1}, 0.0)
    steps.push(A, 0, 1, 0.0)
    assert steps.ready(0.0)

    steps.close(0.0)
    steps.made([A])
    steps.expect({A: 0, B: 1}, 0.0)
    steps.push(A, 1, 1, 0.0)

    assert not steps.ready(50.0)


def test_a_late_gradient_is_told_that_it_is_not_in_the_step_and_one_sent_again_that_it_is():
    steps = steps_of(A)
    steps.push(A, 0, 1, 0.0)
    steps.close(0.0)

    late = steps.push(B, 0, 1, 0.1)
    steps.made([A])

    assert late is GradientVerdict.LATE
    assert steps.push(A, 0, 1, 0.2) is GradientVerdict.LATE
    assert steps.was_included(A, 0) and not steps.was_included(B, 0)
    assert steps.push(A, 2, 1, 0.3) is GradientVerdict.AHEAD


_pushes = st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 4), st.booleans()), max_size=60)


@given(_pushes)
def test_no_gradient_counts_twice_or_in_another_step_whatever_comes_in_whatever_order(pushes):
    steps = steps_of(A, B, C, config=RoundConfig(quorum=0.5))
    made: list[list[tuple[PeerId, int]]] = []
    taken: set[tuple[PeerId, int]] = set()
    for at, (peer, step, is_late_hour) in enumerate(pushes):
        verdict = steps.push(peer, step, 1, float(at))
        assert (verdict is GradientVerdict.TAKEN) == (step == steps.version and (peer, step) not in taken)
        if verdict is GradientVerdict.TAKEN:
            taken.add((peer, step))
        if steps.ready(at + (1000.0 if is_late_hour else 0.0)):
            closed = steps.close(float(at))
            made.append([(c.peer, c.version) for c in closed])
            steps.made(c.peer for c in closed)

    assert all(step == i for i, one in enumerate(made) for _, step in one)
    assert sum(map(len, made)) == len({pair for one in made for pair in one})
    assert all(one for one in made)
    assert taken - {pair for one in made for pair in one} == {(c.peer, c.version) for c in steps.close(1e9)}


# who goes on


_held = st.builds(UnitHeld, st.sampled_from(["standby", "none", "owner"]), st.integers(0, 3), st.integers(0, 3))


@given(st.dictionaries(st.sampled_from([A, B, C, D]), _held, min_size=1))
def test_of_all_that_stand_by_at_most_one_takes_over_and_none_where_one_owns(held):
    takers = [
        peer
        for peer, mine in held.items()
        if mine.role == "standby" and takes_over(peer, mine, {p: h for p, h in held.items() if p != peer})
    ]

    n_owners = sum(h.role == "owner" for h in held.values())
    n_standbys = sum(h.role == "standby" for h in held.values())
    assert len(takers) == (1 if n_standbys and not n_owners else 0)
    if takers:
        assert held[takers[0]].version == max(h.version for h in held.values() if h.role == "standby")


@given(st.dictionaries(st.sampled_from([A, B, C, D]), _held, min_size=1))
def test_of_several_owners_all_say_that_the_same_one_prevails(held):
    owners = [peer for peer, h in held.items() if h.role == "owner"]

    said = {owner_that_prevails(peer, held[peer], {p: h for p, h in held.items() if p != peer}) for peer in owners}

    assert len(said) == min(1, len(owners))


# when weights are here


def test_weights_come_before_a_block_runs_and_go_after_it():
    schedule = BlockSchedule(4)

    assert schedule.before_forward(0) == (0, 1)
    assert schedule.after_forward(0, has_backward=True)
    assert schedule.before_forward(1) == (2,)
    assert schedule.after_forward(1, has_backward=True)
    assert schedule.before_forward(2) == (3,) and schedule.after_forward(2, has_backward=True)
    assert schedule.before_forward(3) == () and not schedule.after_forward(3, has_backward=True)
    assert schedule.before_backward(3) == (2,)
    assert schedule.after_backward(3) and schedule.here == {2}
    assert schedule.before_backward(2) == (1,)
    assert schedule.after_step() == (1, 2) and schedule.here == set()


def test_without_a_backward_pass_the_last_block_is_freed_as_well():
    schedule = BlockSchedule(1)
    schedule.before_forward(0)

    assert schedule.after_forward(0, has_backward=False)


def test_the_order_in_which_blocks_run_is_learnt():
    schedule = BlockSchedule(3)
    for block in (2, 0, 1):
        schedule.before_forward(block)
        schedule.after_forward(block, has_backward=True)
    schedule.before_backward(1)
    schedule.after_step()

    assert schedule.before_forward(2) == (2, 0)


@given(st.integers(1, 12), st.integers(1, 3), st.booleans())
def test_a_block_never_runs_without_its_weights_and_at_most_three_are_here(n_blocks, n_micro, recomputes):
    schedule = BlockSchedule(n_blocks)
    for _ in range(2):
        for _ in range(n_micro):
            for block in range(n_blocks):
                schedule.before_forward(block)
                assert block in schedule.here and len(schedule.here) <= 3
                schedule.after_forward(block, has_backward=True)
            for block in reversed(range(n_blocks)):
                schedule.before_backward(block)
                if recomputes:
                    schedule.before_forward(block)
                    schedule.after_forward(block, has_backward=True)
                assert block in schedule.here and len(schedule.here) <= 3
                schedule.after_backward(block)
            schedule.after_micro_batch()
        schedule.after_step()
        assert not schedule.here


# the optimizer


def test_adamw_steps_as_torch_does():
    start, rates = torch.randn(1000), AdamWRates(0.01, 0.9, 0.95, 0.1)
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    moments = Moments.of(ours)
    inner = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)

    for _ in range(30):
        theirs.grad = torch.randn(1000) * 10 ** torch.randn(1000)
        adamw_step(ours, theirs.grad.clone(), moments, rates)
        inner.step()

    assert torch.allclose(ours, theirs.detach(), atol=2e-6, rtol=0)


def test_adamw_gives_the_same_bits_with_another_number_of_threads():
    digests = set()
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            generator = torch.Generator().manual_seed(1)
            weights = torch.randn(200_001, generator=generator)
            moments = Moments.of(weights)
            for _ in range(3):
                adamw_step(weights, torch.randn(200_001, generator=generator), moments, AdamWRates(0.01, 0.9, 0.95, 0.1))
            digests.add(digest(weights))
    finally:
        torch.set_num_threads(before)

    assert len(digests) == 1
    assert math.isfinite(float(weights.sum()))


# Muon

MUON_PARAMS = (
    ParamSpec("blocks.0.attention.qkv.weight", (48, 16)),
    ParamSpec("blocks.0.attention.qkv.bias", (48,)),
    ParamSpec("blocks.0.mlp.up.weight", (64, 16)),
    ParamSpec("blocks.0.token_emb.weight", (16, 16)),
)


def test_muon_turns_the_matrices_of_blocks_and_of_a_fused_one_each_third():
    params = [ParamSpec("wte.weight", (50, 16)), *MUON_PARAMS, ParamSpec("lm_head.weight", (50, 16))]
    plan = plan_units(params)

    found = [matrices_of(unit, params) for unit in plan.units]

    assert found[0] == ()
    assert found[1] == (Matrix(0, 16, 16), Matrix(256, 16, 16), Matrix(512, 16, 16), Matrix(816, 64, 16))


def test_of_a_matrix_that_is_cut_by_rows_each_unit_turns_its_own_rows():
    params = [ParamSpec("h.0.qkv.weight", (9000, 3000))]
    units = plan_units(params).units

    found = [matrices_of(unit, params) for unit in units]

    assert len(units) > 1 and sum(matrix.rows for one in found for matrix in one) == 9000
    assert all(matrix.end <= unit.numel for unit, one in zip(units, found, strict=True) for matrix in one)
    assert any(matrix.start > 0 for one in found for matrix in one), "a cut at a third lies within a unit"


def test_muon_steps_as_the_optimizer_for_one_process_does():
    plan, rates = plan_units(MUON_PARAMS), AdamWRates(0.02, 0.9, 0.95, 0.1)
    (unit,) = plan.units
    start = torch.randn(unit.numel, generator=torch.Generator().manual_seed(3)) * 0.1
    shapes, starts = [param.shape for param in MUON_PARAMS], plan.starts
    theirs = [torch.nn.Parameter(start[a:b].view(shape).clone()) for a, b, shape in zip(starts, starts[1:], shapes, strict=False)]
    inner = MuonAdamW([theirs[2]], [theirs[1], theirs[3]], 0.02, fused=[theirs[0]], weight_decay=0.1)
    ours, moments = start.clone(), Moments.of(start)

    for step in range(5):
        gradient = torch.randn(unit.numel, generator=torch.Generator().manual_seed(step)) * 10.0 ** (step - 2)
        for a, b, one in zip(starts, starts[1:], theirs, strict=False):
            one.grad = gradient[a:b].view(one.shape).clone()
        muon_step(ours, gradient, moments, rates, matrices_of(unit, MUON_PARAMS))
        inner.step()

    made = torch.cat([one.detach().reshape(-1) for one in theirs])
    assert torch.allclose(ours, made, atol=2e-5, rtol=0)
    assert float((ours - start).abs().mean()) > 1e-3


@given(st.integers(1, 40), st.integers(1, 3000), st.integers(1, 9), st.integers(0, 1 << 30), st.floats(1e-30, 1e30))
def test_an_exact_product_is_the_same_in_any_order_of_its_sums(rows, inner, columns, seed, size):
    generator = np.random.default_rng(seed)
    a, b = generator.standard_normal((rows, inner)) * size, generator.standard_normal((inner, columns))
    order = generator.permutation(inner)

    product = exact_product(a, b)

    assert product.tobytes() == exact_product(a[:, order], b[order]).tobytes()
    assert np.allclose(product, a @ b, rtol=0, atol=1e-4 * size * inner)


def test_orthogonal_of_nothing_is_nothing_and_of_a_tall_matrix_that_of_the_wide_one_turned():
    wide = torch.randn(6, 30, generator=torch.Generator().manual_seed(0))

    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))
    assert torch.allclose(orthogonal(wide.T.contiguous()), orthogonal(wide).T, atol=1e-5)
    assert torch.allclose(torch.linalg.svdvals(orthogonal(wide)), torch.ones(6), atol=0.35)


# what it takes


def test_two_members_pull_nothing_and_many_pull_the_model_twice():
    bf16, fp32 = SentBits(16, 16, 16), SentBits(32, 32, 32)
    assert step_bytes(1000, 1, bf16) == 0
    assert step_bytes(1000, 2, bf16) == 2000
    assert step_bytes(1000, 4, fp32) == 8000
    assert 9990 < step_bytes(1000, 10_000, SentBits(32, 16, 16)) < 10_000


def test_gradients_in_a_byte_leave_their_mean_in_two_and_take_a_byte_to_remember_what_they_left_out():
    plan = plan_units([ParamSpec("h.0.w", (100, 100))])

    assert mean_codec("int8") == "bf16" and mean_codec("bf16") == "bf16" and mean_codec("fp32") == "fp32"
    assert step_bytes(1000, 4, SentBits(8, 8, 16)) == 1000 * (2 * 2 / 4 + 3 / 4 + 2 / 4)
    assert held_bytes(plan, 4, has_feedback=True) - held_bytes(plan, 4) == 10_000 * 3 / 4


def test_what_a_member_holds_falls_with_the_number_of_members():
    plan = plan_units([ParamSpec("wte.w", (10, 10)), *(ParamSpec(f"h.{i}.w", (100, 100)) for i in range(40))])

    held = [held_bytes(plan, n) for n in (1, 2, 4, 8)]

    assert held[0] == held[1] > held[2] > held[3] >= 16 * 400_100 / 4


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"round": RoundSpec(push_codec="topk64-2bit", update_codec="bf16")}, "round.push_codec"),
        ({"inner": InnerSpec(optimizer="onebit-adam", clip=0.0)}, "the owners of a sharded run run adamw or muon"),
        ({"round": RoundSpec(push_codec="bf16", update_codec="bf16", sync_rule="center")}, "sync_rule"),
        ({"target_tokens": 5}, "give target_steps"),
        ({"round": RoundSpec(push_codec="bf16", update_codec="bf16", untrained="average")}, "untrained"),
    ],
)
def test_what_a_sharded_run_cannot_do_is_refused_when_it_is_created(chosen: dict, told: str):
    dense = {"round": RoundSpec(push_codec="bf16", update_codec="bf16"), "inner": InnerSpec(clip=0.0)}
    spec = RunSpec("run", "", (ParamSpec("w", (3,)),), sharding="full", **(dense | chosen))

    with pytest.raises(UsageError, match=told):
        spec.check()
