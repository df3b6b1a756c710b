"""The parts of legion-demo that need no swarm."""

import json
import queue
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from legion_p2p.cli import demo, demo_processes
from legion_p2p.cli.demo_evaluation import whole_stories
from legion_p2p.cli.demo_plan import N_PARAMS, DemoPlan
from legion_p2p.cli.demo_processes import ENDED, ProcessGroup
from legion_p2p.cli.new_folder import new_folder
from legion_p2p.cli.running import run_app
from legion_p2p.config import new_run_of
from legion_p2p.config.new_run import chosen_inner, chosen_rounds
from legion_p2p.core.adapt import Choice, Load
from legion_p2p.core.units import parse_rate
from legion_p2p.dashboard.plot import draw_demo
from legion_p2p.errors import ConfigError, UsageError
from legion_p2p.services.run.pacing import paced
from legion_p2p.train.described import spec_of
from tests.waiting import PATIENCE_S

has_sigkill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


def test_help_imports_neither_torch_nor_libp2p():
    code = (
        "import sys; from legion_p2p.cli import demo, demo_swarm, demo_view; from legion_p2p.cli.running import run_app\n"
        "run_app(demo.app, ['--help']); sys.exit(any(m in sys.modules for m in ('torch', 'libp2p', 'matplotlib')))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)

    assert done.returncode == 0, done.stderr
    assert "--minutes" in done.stdout and "--learning-rate" not in done.stdout


def test_the_specification_that_it_writes_is_one():
    plan = DemoPlan(n_peers=3, minutes=3, preset="xxs", seed=7, lone=True)

    spec = new_run_of(tomllib.loads(plan.spec_text(1234)))

    assert (spec.preset, spec.seed, spec.inner.decay_steps, spec.data) == ("xxs", 7, 1234, "tales")


@pytest.mark.parametrize("preset", N_PARAMS)
def test_it_says_how_large_its_models_are_without_building_them(preset):
    plan = DemoPlan(n_peers=3, minutes=3, preset=preset, seed=0, lone=True)

    _, model = spec_of(new_run_of(tomllib.loads(plan.spec_text(100))))

    assert sum(p.numel() for p in model.module.parameters()) == N_PARAMS[preset]


def test_it_learns_as_new_runs_do_by_default_with_muon_and_sparse_pushes():
    plan = DemoPlan(n_peers=3, minutes=3, preset="xxs", seed=0, lone=True)
    spec, default = new_run_of(tomllib.loads(plan.spec_text(1234))), new_run_of({"name": "any"})

    rounds = chosen_rounds(spec.rounds, spec.links)
    inner = chosen_inner(spec.inner, spec.links)

    usual = chosen_rounds(default.rounds, default.links)
    assert rounds == msgspec.structs.replace(usual, shard_elements=plan.shard_elements)
    assert (inner.optimizer, inner.learning_rate) == ("muon", chosen_inner(default.inner, default.links).learning_rate)
    third = N_PARAMS["xxs"] // 3
    load = Load(push_elements=2 * third, update_elements=2 * third)
    for step_s in (0.01, 0.05, 0.12):  # from fast machines to two cores
        now = Choice(rounds.push_codec, rounds.update_codec)
        choice, _ = paced(rounds, rounds.local_steps, rounds.max_local_steps, step_s, load, parse_rate(plan.upload), now)
        assert choice.push_codec.startswith("topk") and choice.update_codec.startswith("topk")


def test_its_sample_is_whole_stories():
    assert whole_stories("\n\nOne.\n\nTwo.\n\nThree.\n\nFo") == "One.\n\nTwo."
    assert whole_stories("\n\nOne.\n\nTw") == "One."
    assert whole_stories("\n\nOn") == "On"


def test_a_limit_is_a_rate_or_none(capsys):
    plan = DemoPlan(n_peers=3, minutes=3, preset="xxs", seed=0, lone=True)

    assert "--upload" in plan.link_options(1)
    assert "--upload" not in msgspec.structs.replace(plan, upload="").link_options(1)
    assert "--upload" not in msgspec.structs.replace(plan, netem="cable").link_options(1)
    assert run_app(demo.app, ["--upload", "fast"]) == 2
    assert "--upload" in capsys.readouterr().err


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")

    with pytest.raises(ConfigError, match="not empty"):
        new_folder(str(tmp_path), "demo")


def test_folders_are_numbered_and_never_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert [new_folder("", "demo").name for _ in range(3)] == ["demo-1", "demo-2", "demo-3"]


def test_a_preset_that_cannot_be_shown_is_refused_before_anything_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UsageError):
        demo.check_preset("gpt2")

    assert run_app(demo.app, ["--preset", "gpt2"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_child_does_what_it_is_told_and_ends_with_its_family(tmp_path):
    with ProcessGroup() as family:
        child = family.start("one", tmp_path / "log.txt", preload=False)
        _, loaded = family.inbox.get(timeout=PATIENCE_S)
        child.run("json.tool", ["--help"])
        heard = [family.inbox.get(timeout=PATIENCE_S)[1]]
        while heard[-1]["event"] != ENDED:
            heard.append(family.inbox.get(timeout=PATIENCE_S)[1])
        idle = family.start("two", tmp_path / "log.txt", preload=False)
        family.inbox.get(timeout=PATIENCE_S)

    assert loaded == {"event": "loaded"}
    assert heard[-1]["code"] == 0 and "usage" in heard[0]["text"]
    assert idle.popen.returncode == -signal.SIGTERM


@has_sigkill
def test_a_child_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_processes, "LEAVE_S", 0.2)
    (tmp_path / "deaf.py").write_text(
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        'print(\'{"event": "deaf"}\', flush=True)\n'
        "time.sleep(60)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with ProcessGroup() as family:
        child = family.start("deaf", tmp_path / "log.txt", preload=False)
        child.run("deaf", [])
        while family.inbox.get(timeout=PATIENCE_S)[1]["event"] != "deaf":
            pass

    assert child.popen.returncode == -signal.SIGKILL


def test_a_child_sees_no_variable_that_would_change_its_options(monkeypatch):
    monkeypatch.setenv("LEGION_CODEC", "fp32")

    assert not [name for name in demo_processes._environment() if name.startswith("LEGION_")]


@pytest.mark.parametrize("lone", [True, False])
def test_curves_are_drawn_with_and_without_a_lone_peer(tmp_path, lone):
    curves = {
        "swarm_validation": [(0, 5.5), (10, 3.0)],
        "lone_validation": [(0, 5.5), (10, 3.2)] if lone else [],
        "training": {"peer-1": [(1, 5.5), (20, 2.7)], "peer-2": []},
        "final": {"step": 20, "swarm": 2.6, "lone": 2.9 if lone else None},
    }

    draw_demo(json.loads(json.dumps(curves)), tmp_path / "curves.png", n_peers=2, n_params=252_384)

    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@has_sigkill
def test_no_order_is_lost_on_a_child_that_has_ended(tmp_path):
    with ProcessGroup() as family:
        child = family.start("one", Path(tmp_path / "log.txt"), preload=False)
        family.inbox.get(timeout=PATIENCE_S)
        child.signal(signal.SIGKILL)
        _, ended = family.inbox.get(timeout=PATIENCE_S)
        child.run("json.tool", [])

        with pytest.raises(queue.Empty):
            family.inbox.get(timeout=0.1)

    assert ended == {"event": ENDED, "code": -signal.SIGKILL}
