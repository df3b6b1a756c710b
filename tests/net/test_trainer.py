"""What the trainer of legion-peer does when training fails, with a real peer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from legion_p2p.config import Inner, NewRun, Peer, RunChoice, Training
from legion_p2p.core.learning_rate import learning_rate
from legion_p2p.core.run import InnerSpec
from legion_p2p.errors import StoreError, UsageError
from legion_p2p.observe.events import Event, Events
from legion_p2p.observe.status import Status
from legion_p2p.train import examiner, loop, step_clock
from legion_p2p.train.compute import Compute
from legion_p2p.train.control import Control
from legion_p2p.train.job import run_job
from legion_p2p.train.outcome import Outcome

HERE = Peer(listen=("/ip4/127.0.0.1/tcp/0",), lan=False, port_mapping=False, status=False)


NEW_RUN = NewRun("x", preset="xxs", inner=Inner(batch=2))


def train(
    tmp_path: Path, on_status: Callable[[Status], None] | None = None, new_run: NewRun = NEW_RUN, **training: Any
) -> tuple[Outcome, list[Event]]:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 2000)
    events, seen = Events(), list[Event]()
    events.add_sink(seen.append)
    usual = {"data": str(text), "steps": 6, "threads": 1, "out": str(tmp_path / "out")}
    job = Training(**(usual | training))
    return run_job(RunChoice(new_run=new_run), HERE, job, events=events, control=Control(), on_status=on_status), seen


def test_a_peer_whose_memory_does_not_suffice_leaves_in_order_and_says_what_takes_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_calls = 0
    compute = Compute.backward

    def backward(self: Compute, x: torch.Tensor, y: torch.Tensor) -> float:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return compute(self, x, y)

    monkeypatch.setattr(Compute, "backward", backward)

    outcome, seen = train(tmp_path)

    assert (outcome.reason, outcome.steps) == ("memory", 2)
    assert outcome.memory_problem.startswith("training on cpu ran out of memory after 2 steps (2.00 GiB more were asked for)")
    assert "--accumulate 2" in outcome.memory_problem
    assert outcome.saved_to and Path(outcome.saved_to).exists()
    assert [event.name for event in seen][-1] == "run.left"


def test_steps_in_parts_and_their_utilisation_are_told(tmp_path: Path) -> None:
    outcome, seen = train(tmp_path, accumulate=2, peak_tflops=1.0)

    assert outcome.reason == "steps" and outcome.tokens == 6 * 2 * 64
    assert outcome.mfu is not None and 0 < outcome.mfu < 1
    assert next(event.fields["mfu"] for event in reversed(seen) if event.name == "step") is not None


def test_an_average_of_the_common_model_is_evaluated_and_saved_only_if_it_is_better(tmp_path: Path) -> None:
    outcome, seen = train(tmp_path, average=True)

    assert outcome.average_val_loss is not None and outcome.val_loss is not None
    is_better = outcome.average_val_loss < outcome.val_loss
    assert bool(outcome.average_saved_to) == (tmp_path / "out" / "average.safetensors").exists() == is_better
    finished = next(event for event in seen if event.name == "run.finished")
    assert finished.fields["average_val_loss"] == outcome.average_val_loss


def test_of_a_run_that_gets_worse_the_best_common_model_that_was_evaluated_is_saved_beside_the_last(tmp_path: Path) -> None:
    too_fast = NewRun("x", preset="xxs", inner=Inner(batch=2, optimizer="adamw", learning_rate=0.5, warmup_steps=0))

    outcome, seen = train(tmp_path, new_run=too_fast, keep_best=True, eval_every_s=0.001)

    assert outcome.best_val_loss is not None and outcome.val_loss is not None and outcome.best_val_loss < outcome.val_loss
    assert outcome.best_saved_to == str(tmp_path / "out" / "best.safetensors") and Path(outcome.best_saved_to).exists()
    assert min(event.fields["val_loss"] for event in seen if event.name == "eval") < outcome.val_loss
    finished = next(event for event in seen if event.name == "run.finished")
    assert finished.fields["best_val_loss"] == outcome.best_val_loss


def test_the_rate_of_a_run_with_a_target_falls_to_nothing_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[tuple[int, float]] = []

    def told(inner: InnerSpec, own_step: int, run_step: int, done: float) -> float:
        rates.append((run_step, learning_rate(inner, own_step, run_step, done)))
        return rates[-1][1]

    monkeypatch.setattr(loop, "learning_rate", told)
    calm = NewRun("x", preset="xxs", inner=Inner(batch=2, warmup_steps=0), target_steps=10)

    outcome, _ = train(tmp_path, new_run=calm, steps=0)

    usual = rates[0][1]
    assert outcome.reason == "target" and outcome.steps >= 10
    assert [rate for step, rate in rates if step <= 8] == pytest.approx([usual] * 9) and 0 < dict(rates)[9] < 0.5 * usual
    assert {rate for step, rate in rates if step >= 10} <= {0.0}


def test_text_is_trained_on_as_it_is_read(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "the number of this row is {i}, and of the next one {i + 1}"}}\n' for i in range(300)))

    outcome, seen = train(tmp_path, data=f"stream:{rows}")

    assert outcome.reason == "steps" and outcome.tokens == 6 * 2 * 64 and outcome.val_loss is not None
    assert "data.begins_anew" not in [event.name for event in seen]


def test_questions_of_a_task_are_answered_with_the_common_model_at_the_steps_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examiner, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(step_clock, "REPORT_EVERY_S", 0.0)  # so that the run's step is told at each of these few
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"q": "the {i}", "c": ["lazy dog", "of"]}}\n' for i in range(5)))
    task = tmp_path / "task.yaml"
    task.write_text("task: foxes\ndataset_kwargs: {data_files: rows.jsonl}\ndoc_to_text: q\ndoc_to_choice: c\ndoc_to_target: 1\n")
    shown: list[Status] = []

    outcome, seen = train(tmp_path, shown.append, eval_tasks=(str(task),), eval_tasks_every=2)

    assert outcome.reason == "steps"
    told = [event.fields for event in seen if event.name == "eval.task"]
    assert [one["n_answered"] for one in told] == [5] * len(told) and told[0]["task"] == "foxes"
    assert [one["step"] for one in told] == sorted({one["step"] for one in told}) and told[0]["step"] >= 2
    assert shown[-1].test is not None and shown[-1].test.tasks[0].n_answered == 5


def test_a_task_that_cannot_be_read_ends_the_command_before_a_run_is_created(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere\.yaml"):
        train(tmp_path, eval_tasks=(str(tmp_path / "nowhere.yaml"),))


def test_more_parts_than_a_step_has_windows_are_refused_before_the_run_is_created(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--accumulate 3: a step of run 'x' has 2 windows"):
        train(tmp_path, accumulate=3)
