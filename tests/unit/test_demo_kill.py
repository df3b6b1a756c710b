"""In the middle of a demo a peer is killed and another joins; played by processes that train nothing."""

import signal
from pathlib import Path

import msgspec
import pytest

from legion_p2p.cli import demo_commands, demo_swarm
from legion_p2p.cli.demo_page import DemoRecord
from legion_p2p.cli.demo_plan import DemoPlan
from legion_p2p.cli.demo_processes import ProcessGroup
from legion_p2p.cli.demo_swarm import is_worth_a_join
from legion_p2p.cli.demo_view import DemoView
from legion_p2p.observe.status import Status

N_STEPS = 120


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A demo that has trained, and what its page has."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    for name in ("PEER", "BOOTSTRAP", "LONE"):
        monkeypatch.setattr(demo_commands, name, "demo_stand_in")
    monkeypatch.setattr(demo_swarm, "MIN_LEFT_S", 0.0)
    plan = DemoPlan(n_peers=3, minutes=1, preset="xxs", seed=0, lone=True, steps=N_STEPS)
    record = DemoRecord(plan)
    with ProcessGroup() as processes:
        start = processes.start
        monkeypatch.setattr(processes, "start", lambda label, log, *, preload=True: start(label, log, preload=False))
        demo = demo_swarm._Demo(plan, tmp_path, DemoView(plan, "none"), record, processes, 0.0)
        demo.train()
    return demo, record


def test_one_is_killed_and_another_makes_the_steps_that_are_left(played) -> None:
    demo, record = played

    assert demo.killed == "peer-3" and demo.lost == []
    victim, newcomer = demo.peers["peer-3"], demo.peers["peer-4"]
    assert victim.exit_code == -getattr(signal, "SIGKILL", signal.SIGTERM) and victim.finished is None
    assert newcomer.finished is not None and 20 <= newcomer.finished["step"] < N_STEPS
    assert [mark.text for mark in record.page().blocks[0].marks] == ["peer-3 is killed (kill -9)", "peer-4 has joined"]
    assert demo.contestants.lone.finished and demo.contestants.lone_all_text.finished


def test_nobody_is_killed_where_the_others_would_end_before_a_newcomer_is_in_the_run() -> None:
    assert is_worth_a_join(spent_s=60.0, step=100, n_steps=300)
    assert not is_worth_a_join(spent_s=10.0, step=100, n_steps=300)
    assert not is_worth_a_join(spent_s=1.0, step=0, n_steps=10)


def test_a_peer_that_is_gone_says_nothing_of_speed_and_of_the_time_left() -> None:
    view = DemoView(DemoPlan(n_peers=2, minutes=1, preset="xxs", seed=0, lone=True, steps=N_STEPS), "none")
    here = Status("here", (), None, "", "training", 50, (), (), 0, 0, None, (), tokens_per_s=100.0, remaining_s=20.0)
    view.status("peer-1", here)
    view.status("peer-2", msgspec.structs.replace(here, tokens_per_s=900.0, remaining_s=156.0))
    assert "1.00k tokens/s" in view._progress() and view._progress().endswith("2:36 left")

    view.state("peer-2", "killed")

    assert "100 tokens/s" in view._progress() and view._progress().endswith("0:20 left")
