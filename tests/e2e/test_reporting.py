"""A peer that is watched: Prometheus reads its numbers, and a tracker gets them, from Python and from the command."""

import importlib.util
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from torch import nn

import legion_p2p as legion
from legion_p2p.cli import peer as command
from legion_p2p.cli.peer_options import Output, job_of
from legion_p2p.errors import UsageError
from legion_p2p.train.outcome import Outcome
from tests.unit.test_measures import STATUS
from tests.waiting import PATIENCE_S, eventually

LISTEN = "/ip4/127.0.0.1/tcp/0"


def tags_in(folder: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return {
        value.tag
        for file in (folder / "tensorboard").rglob("events.*")
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    }


def event_of(run: legion.Run, name: str) -> legion.Event:
    return eventually(lambda: [event for event in run.events() if event.name == name])[0]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed here")
def test_a_run_serves_metrics_and_reports_and_a_port_that_is_taken_ends_no_training(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    peer = legion.Peer(listen=LISTEN, status=False, metrics="127.0.0.1:0")
    with legion.create(legion.NewRun("watched", rounds=legion.Rounds(local_steps=2)), model, peer=peer) as run:
        address = event_of(run, "metrics.served").fields["address"]
        run.report_to("tensorboard", folder=tmp_path, every_s=0.1)
        with pytest.raises(UsageError, match="reports already"):
            run.report_to("tensorboard")
        taken = legion.Peer(listen=LISTEN, status=False, metrics=address.removeprefix("http://").removesuffix("/metrics"))
        with legion.join("watched", initial_peers=run.addresses(), peer=taken) as second:
            assert event_of(second, "metrics.not_served").is_error
        opt = run.optimizer(torch.optim.SGD(model.parameters(), lr=0.01), model)
        for _ in range(4):
            opt.zero_grad()
            model(torch.ones(1, 4)).sum().backward()
            opt.note(loss=0.5)
            opt.step()
        opt.report()
        with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))

    told = {sample.name: sample.value for family in families for sample in family.samples}
    assert told["legion_step"] == 4 and told["legion_loss"] == 0.5 and told["legion_members"] >= 1
    assert {"loss", "tokens", "members"} <= tags_in(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed here")
def test_the_command_reports_into_the_folder_of_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(job: Any, events: Any, shown: Any, signals: Any, control: Any) -> tuple[Any, Outcome]:
        shown.on_status(STATUS)
        events.emit("eval", step=3, tokens=4, val_loss=1.5)
        return job, Outcome(10, 4096, 1.5, "00", "steps")

    monkeypatch.setattr(command, "_run", trained)
    job = job_of({"run": "r", "initial_peers": (), "lan": True, "out": str(tmp_path), "report_to": ("tensorboard",)})

    assert command._train(job, Output(quiet=True)) == 0
    assert {"loss", "val_loss"} <= tags_in(tmp_path)
