"""Training libraries as peers of a run: the real packages, a small random model, and a second peer with an ordinary loop."""

import importlib.util
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import HERE, Process
from torch import Tensor

import legion_p2p as legion
from legion_p2p.errors import UsageError
from tests.forking import ForkServer
from tests.small_models import gpt2, linear, parameters_digest, squares
from tests.waiting import PATIENCE_S

PEER = legion.Peer(listen="/ip4/127.0.0.1/tcp/0", status=False, lan=False, port_mapping=False)


def needs(library: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed here")


class Other:
    """A peer in a process of its own, which created the run and trains until it is told to end."""

    def __init__(self, kind: str, forks: ForkServer) -> None:
        self.run = f"integrations/{time.time_ns()}"
        self.process = Process(str(HERE / "other_peer.py"), kind, self.run, forks=forks)
        self.contacts: list[str] = []
        self.said: dict[str, Any] = {}

    def begin(self) -> None:
        self.contacts = self.process.wait_for("in_run")["addresses"]

    def may_end(self) -> None:
        self.process.tell(end=True)

    def ended(self) -> dict[str, Any]:
        """What it has at the end, when all members have ended."""
        if not self.said:
            self.said = self.process.wait_for("ended")
        return self.said


@pytest.fixture
def other_peer(forks: ForkServer) -> Iterator[Callable[[str], Other]]:
    started: list[Other] = []

    def start(kind: str) -> Other:
        started.append(Other(kind, forks))
        started[-1].begin()
        return started[-1]

    yield start
    for other in started:
        other.process.close()


# transformers


def texts(n: int = 32) -> list[dict[str, Tensor]]:
    rows = [torch.arange(i, i + 8) % 32 for i in range(n)]
    return [{"input_ids": row, "labels": row} for row in rows]


def move_weights_of(file: Path, by: float) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: tensor + by for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def trainer_of(model: Any, optimizer: Any, folder: Path, **arguments: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    from legion_p2p.integrations.transformers import LegionCallback

    usual = {"per_device_train_batch_size": 2, "save_steps": 4, "logging_steps": 2, "report_to": [], "disable_tqdm": True}
    args = TrainingArguments(str(folder), use_cpu=True, **(usual | arguments))
    return Trainer(
        model, args, train_dataset=texts(), eval_dataset=texts(4), optimizers=(optimizer, None), callbacks=[LegionCallback()]
    )


class Hub:
    """What transformers calls of the hub's library: repositories are folders here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create_repo(self, name: str, **given: Any) -> Any:
        (self.folder / name).mkdir(parents=True)
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, *, repo_id: str, folder_path: str, **given: Any) -> None:
        for file in Path(folder_path).glob("*"):
            if file.is_file():
                shutil.copy(file, self.folder / repo_id)


@needs("transformers")
@needs("accelerate")
def test_a_trainer_with_bf16_accumulation_and_evaluation_ends_with_the_common_model_and_resumes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_peer: Callable[[str], Other]
) -> None:
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: Hub(tmp_path / "hub"))
    other = other_peer("gpt2")
    model = gpt2(2)
    with legion.Optimizer(
        torch.optim.AdamW(model.parameters(), lr=1e-3), model, other.run, initial_peers=other.contacts, peer=PEER
    ) as opt:
        usual = {"bf16": True, "gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 4}
        trainer = trainer_of(model, opt, tmp_path, max_steps=6, **usual)
        trainer.train()
        assert opt.steps == 6 and opt.state_dict()["state"]
        assert {"loss", "eval_loss"} <= {name for entry in trainer.state.log_history for name in entry}
        assert opt.status.loss is not None
        saved_at = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
        assert saved_at["state"][0]["step"] == 4
        move_weights_of(tmp_path / "checkpoint-4" / "model.safetensors", by=100.0)

        went_on = trainer_of(model, opt, tmp_path, max_steps=8, **usual)
        went_on.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
        assert opt.steps == 10 and went_on.state.global_step == 8

        other.may_end()
        common = opt.finish(together=True, timeout_s=PATIENCE_S)
        trainer.save_model(str(tmp_path / "end"))
        trainer.push_to_hub()

    ended = other.ended()
    assert common == ended["common"]
    assert ended["largest"] < 10, "the checkpoint's parameters were pushed into the run"
    for saved in (tmp_path / "end", tmp_path / "hub" / tmp_path.name):
        assert parameters_digest(type(model).from_pretrained(saved)) == ended["model"]


@needs("transformers")
@needs("accelerate")
def test_a_trainer_that_would_push_an_old_checkpoint_or_whose_optimizer_is_in_no_run_is_refused(tmp_path: Path) -> None:
    model = gpt2(1)
    alone = torch.optim.AdamW(model.parameters())
    with pytest.raises(UsageError, match="AdamW, which is in no run"):
        trainer_of(model, alone, tmp_path, max_steps=1).train()
    with (
        legion.Optimizer(alone, model, legion.NewRun("refused"), peer=PEER) as opt,
        pytest.raises(UsageError, match="load_best_model_at_end"),
    ):
        trainer_of(model, opt, tmp_path, max_steps=1, load_best_model_at_end=True, eval_strategy="steps", eval_steps=4).train()


# accelerate


@needs("accelerate")
def test_a_loop_of_accelerate_trains_along_while_the_block_lasts(other_peer: Callable[[str], Other]) -> None:
    from accelerate import Accelerator

    from legion_p2p.integrations.accelerate import LegionSGD

    model = linear(2)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    inner = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(inner, 1, gamma=0.5)
    model, optimizer, schedule = accelerator.prepare(model, inner, schedule)

    other = other_peer("linear")
    with LegionSGD(accelerator, model, other.run, initial_peers=other.contacts, peer=PEER, together=True) as local_sgd:
        for _ in range(8):
            with accelerator.accumulate(model):
                loss = squares(model)
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                local_sgd.step(loss)
        assert local_sgd.optimizer is not None and local_sgd.optimizer.steps == 4
        assert inner.param_groups[0]["lr"] == pytest.approx(1e-3 / 16)
        other.may_end()

    assert parameters_digest(model) == other.ended()["model"]
    assert optimizer.optimizer is inner
    optimizer.step()  # free again


@needs("accelerate")
def test_an_accelerator_without_an_optimizer_and_one_of_several_processes_are_refused() -> None:
    from accelerate import Accelerator

    from legion_p2p.integrations.accelerate import LegionSGD
    from legion_p2p.integrations.common import check_processes

    with pytest.raises(UsageError, match="has prepared 0 optimizers"):
        LegionSGD(Accelerator(cpu=True), linear(1), "any")
    with pytest.raises(UsageError, match="the order is LegionSGD"):
        LegionSGD(linear(1), Accelerator(cpu=True), "any")
    with pytest.raises(UsageError, match="has 2 processes"):
        check_processes("this accelerator", 2)


# lightning


@needs("lightning")
def test_a_lightning_module_trains_along_by_a_callback_alone(tmp_path: Path, other_peer: Callable[[str], Other]) -> None:
    import lightning.pytorch as pl

    from legion_p2p.integrations.lightning import LegionCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = linear(2)

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return squares(self.model)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    other = other_peer("in a module")
    module = Module()
    callback = LegionCallback(other.run, initial_peers=other.contacts, peer=PEER, together=True)
    ending = threading.Timer(3.0, other.may_end)
    ending.start()
    trainer = pl.Trainer(
        max_steps=6, accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[callback], log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(32, 1), batch_size=2))

    assert trainer.global_step == 6
    assert parameters_digest(module) == other.ended()["model"]
    assert callback.optimizer is None
    assert type(trainer.optimizers[0]) is torch.optim.AdamW
    saved = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)
    assert saved["optimizer_states"][0]["state"][0]["step"] == 6
