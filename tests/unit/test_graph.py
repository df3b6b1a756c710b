"""The graph of a simulation as a file, and steps of many models at once: each as a model by itself would make them."""

import gzip

import pytest
import torch

from legion_p2p.errors import ConfigError, UsageError
from legion_p2p.scenarios.graph import FORMAT, CloseLine, EndLine, GraphHeader, GraphWriter, TakeLine, read_graph
from legion_p2p.scenarios.graph_replay import Replay
from legion_p2p.scenarios.scenario import SimTask
from legion_p2p.scenarios.scenario_files import scenario_of
from legion_p2p.scenarios.stacked_models import Stack, StackedMuonAdamW, stacked_task
from legion_p2p.scenarios.tasks import trained_task
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.train.gpt import GPT
from legion_p2p.train.muon import MuonAdamW

SCENARIO = scenario_of({"duration_s": 5, "peers": [{"name": "a", "count": 2}]})
HEADER = GraphHeader(FORMAT, 3, SCENARIO, 4, ("a-0", "a-1"), ("x", "y"))


def test_a_graph_is_read_as_it_was_written_and_the_same_graph_has_the_same_bytes(tmp_path):
    lines = [TakeLine(0, 5, ((0, 1), (3, -1))), CloseLine("", 1, 2, 7, 6, 8, (4, 5), "int8"), EndLine(1, 9)]

    for name in ("one", "two"):
        with GraphWriter(tmp_path / name) as writer:
            for line in (HEADER, *lines):
                writer.write(line)

    assert read_graph(tmp_path / "one") == (HEADER, lines)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not gzipped", "cannot be read"),
        (gzip.compress(b"{}\n", mtime=0), "this is no graph of legion-sim"),
        (gzip.compress(b'{"format":"another"}\n', mtime=0), "this is no graph"),
        (gzip.compress(b"x" * 1000, mtime=0)[:-12], "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_refused_in_a_line(content, said, tmp_path):
    (tmp_path / "graph").write_bytes(content)

    with pytest.raises(ConfigError, match=said):
        read_graph(tmp_path / "graph")


def test_a_line_that_is_none_is_named(tmp_path):
    with GraphWriter(tmp_path / "graph") as writer:
        writer.write(HEADER)
        writer.write(EndLine(0, 1))
    whole = gzip.decompress((tmp_path / "graph").read_bytes()) + b'["never",1]\n'
    (tmp_path / "graph").write_bytes(gzip.compress(whole, mtime=0))

    with pytest.raises(ConfigError, match="line 3: "):
        read_graph(tmp_path / "graph")


def test_a_graph_of_a_later_format_is_named(tmp_path):
    import msgspec

    with GraphWriter(tmp_path / "graph") as writer:
        writer.write(msgspec.structs.replace(HEADER, format="legion-sim graph 9"))

    with pytest.raises(ConfigError, match="this version reads"):
        read_graph(tmp_path / "graph")


@pytest.mark.parametrize("task", [SimTask(unlike=0.5), SimTask(kind="quadratic", unlike=0.5), SimTask(kind="text", batch=2)])
def test_a_step_of_many_is_a_step_of_each(task):
    single, many = trained_task(task, 7), stacked_task(task, 7, "cpu")
    stack = Stack(many, 3, "cpu")
    stack.theta_PE[:] = many.start
    n_steps = 1 if task.kind == "text" else 5

    for _ in range(n_steps):
        stack.step([0, 2], [many.draw(name) for name in ("a", "c")])

    for row, name in ((0, "a"), (2, "c")):
        view = None if single.model is None else single.model(name)
        theta = single.start.clone()
        for _ in range(n_steps):
            single.step(name, theta)
        alone = theta if view is None else view.snapshot()
        moved = (alone - single.start).norm()
        assert moved > 0 and (stack.theta_PE[row] - alone).norm() < 0.02 * moved
    assert torch.equal(stack.theta_PE[1], many.start), "who makes no step stays"


def test_the_optimizer_of_many_is_the_optimizer_of_each():
    models = [GPT.from_preset("xxs", torch.Generator().manual_seed(n)) for n in (1, 2)]
    optimizers = [MuonAdamW.of(model, 0.02) for model in models]
    views = [FlatView(model.named_parameters()) for model in models]
    theta_PE = torch.stack([view.snapshot() for view in views])
    slots = [torch.zeros_like(theta_PE) for _ in range(2)]
    together = StackedMuonAdamW(models[0], optimizers[0])
    generator = torch.Generator().manual_seed(3)

    for age in range(3):
        gradients_PE = torch.randn(theta_PE.shape, generator=generator)
        for row in range(len(models)):
            for p, at in zip(views[row].parameters, views[row].starts, strict=False):
                p.grad = gradients_PE[row, at : at + p.numel()].view(p.shape).clone()
            optimizers[row].step()
        together.step(theta_PE, gradients_PE, slots, torch.full((2,), age))

    for row, view in enumerate(views):
        assert torch.allclose(theta_PE[row], view.snapshot(), rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_in_memory_together_is_done_in_parts(monkeypatch):
    many = stacked_task(SimTask(kind="quadratic"), 0, "cpu")
    stack, sizes, step = Stack(many, 5, "cpu"), [], many.step

    def small(theta_PE, *rest):
        sizes.append(len(theta_PE))
        if len(theta_PE) > 2:
            raise torch.OutOfMemoryError("too many")
        step(theta_PE, *rest)

    monkeypatch.setattr(many, "step", small)

    for _ in range(2):
        stack.step(range(5), [many.draw(name) for name in "abcde"])

    assert sizes[-3:] == [2, 2, 1]
    assert all(row.norm() > 0 for row in stack.theta_PE)


def test_a_model_that_is_too_small_for_the_shards_of_the_run_is_refused():
    with pytest.raises(UsageError, match="cannot be cut into 4 equal shards"):
        Replay(HEADER, [], stacked_task(SimTask(kind="quadratic", size=5), 0, "cpu"), "cpu", 10)
    with pytest.raises(UsageError, match="choose what to train"):
        stacked_task(SimTask(kind="none"), 0, "cpu")
