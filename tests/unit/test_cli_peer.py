"""legion-peer as a user meets it: what it makes of flags, variables and files, what it prints, and how it ends.

The trainer is replaced by a small one that behaves as the real one promises to; the end-to-end tests run the real one.
"""

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from legion_p2p.cli import peer as cli
from legion_p2p.cli import peer_view
from legion_p2p.cli.contacts import MAX_REMEMBERED, entering_text, listed_contacts
from legion_p2p.cli.failures import exit_code_of
from legion_p2p.cli.option_table import OPTIONS
from legion_p2p.cli.peer_view import PeerView
from legion_p2p.cli.running import run_app
from legion_p2p.config import Inner, Limits, Manners, NewRun, Peer, Rounds, RunChoice, Store, Training
from legion_p2p.config.new_run import chosen_inner, chosen_rounds
from legion_p2p.config.old_names import FLAGS
from legion_p2p.core.identity import Identity
from legion_p2p.core.known_peers import KnownPeer, bounded
from legion_p2p.core.run import InnerSpec
from legion_p2p.core.units import parse_rate
from legion_p2p.errors import (
    ConfigError,
    IncompatibleModelError,
    JoinError,
    LegionError,
    NetworkError,
    NoContactError,
    UnknownRunError,
    UsageError,
)
from legion_p2p.observe.events import HANDING_OVER, Event
from legion_p2p.observe.status import ControlStatus, Status
from legion_p2p.store.identity import load_or_create_identity
from legion_p2p.store.known_peers_file import KnownPeersFile
from tests.waiting import PATIENCE_S

try:
    import pty
    import termios
except ImportError:  # Windows
    pty = termios = None  # type: ignore[assignment]
has_terminals = pytest.mark.skipif(pty is None, reason="this system has no pseudo-terminals")
has_hangups = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")

ROOT = Path(__file__).resolve().parents[2]
PEER = Identity(b"1" * 32).peer_id
ADDRESS = f"/ip4/127.0.0.1/tcp/4710/p2p/{PEER}"
OTHER = f"/ip4/127.0.0.1/tcp/4711/p2p/{Identity(b'2' * 32).peer_id}"
ON_THIS_MACHINE = "/ip4/127.0.0.1/tcp/4712"

DRIVER = f"""
import sys, threading, time, types
import msgspec
from legion_p2p.errors import *
from legion_p2p.observe.status import *

class Outcome(msgspec.Struct):
    steps: int; tokens: int; val_loss: float | None; digest: str; reason: str; sent_bytes: int; received_bytes: int
    save_problem: str = ""; text_problem: str = ""; connected: tuple[str, ...] = ()
    memory_problem: str = ""; mfu: float | None = None; average_val_loss: float | None = None; average_saved_to: str = ""
    best_val_loss: float | None = None; best_saved_to: str = ""

class Plan(msgspec.Struct):
    run: str; n_params: int; n_shards: int; shard_elements: int; memory_bytes: int; push_bytes_per_round: int
    update_bytes_per_round: int; local_steps: int; tokens_per_step: int; push_codec: str; update_codec: str; traffic: tuple
    push_codecs: tuple = (); program_bytes: int = 415_000_000

class PlannedTraffic(msgspec.Struct):
    n_members: int; sent_bytes: int; received_bytes: int; most_sent_bytes: int; sent_bytes_per_token: float; send_s: float | None
    least_bps: float | None = None

def plan_job(entry, peer, training):
    traffic = PlannedTraffic(100, 1_600_000, 1_600_000, 2_400_000, 156.25, 1.28 if peer.limits.upload else None)
    return Plan(entry.name, 800_000, 16, 50_000, 12_800_000, 800_000, 800_000, 5, 1024, "int8", "int8", (traffic,))

def doing(control):
    return "training" if not control._kept else "told to " + type(control._kept[-1]).__name__.lower()

def run_job(entry, peer, training, *, events, control, on_status=None):
    name = entry.name
    if name == "unknown": raise UnknownRunError(name, 2)
    if name == "misfit": raise IncompatibleModelError("parameter 'wte.weight' is (256, 64) here and (256, 128) in the run")
    if name == "broken": raise RuntimeError("a bug")
    events.emit("run.joined", run="bafkrei", name=name, identity=peer.identity, status=peer.status)
    me = MemberStatus("{PEER}", "home", "ALIVE", 1, 10.0)
    other = MemberStatus("other", "home", "ALIVE", 1, 10.0, addresses=("{ON_THIS_MACHINE}",))
    step = 0
    while step < training.steps or not training.steps:
        step += 1  # at least one, also when it was stopped before: what is said at the end is then always the same
        on_status(Status("{PEER}", ("{ADDRESS}",), RunStatus("bafkrei", name), "home", doing(control), step, (me, other), (),
                         1000 * step, 2000, None, (), loss=2.5, target_steps=training.steps or None, uptime_s=step / 100))
        events.emit("step", step=step, loss=2.5)
        if control.leaving: break
        time.sleep(0.01)
    if name == "deaf":
        while True: sum(range(10**6))
    return Outcome(step, step * 1024, 2.25, "ab" * 32, "stopped" if control.leaving else "steps",
                   1000 * step, 2000, "the model is in /tmp/x" if name == "unsaved" else "", "cut off" if name == "cut" else "",
                   ("{PEER}",), "training on cuda:0 ran out of memory; less takes: --precision bf16" if name == "large" else "")

def run_helper(entry, peer, training, **how):
    outcome = run_job(entry, peer, training, **how)
    return msgspec.structs.replace(outcome, steps=0, tokens=0, reason="together" if training.finish_together else outcome.reason)

job, helper = types.ModuleType("legion_p2p.train.job"), types.ModuleType("legion_p2p.train.helper")
job.run_job, job.plan_job, helper.run_helper = run_job, plan_job, run_helper
sys.modules |= {{"legion_p2p.train.job": job, "legion_p2p.train.helper": helper}}
from legion_p2p.cli.peer import main
main()
"""


def environment(tmp_path, **more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEGION_")}
    return {**kept, "PYTHONPATH": str(ROOT), "XDG_DATA_HOME": str(tmp_path / "data"), "TERM": "xterm", "COLUMNS": "80", **more}


def start(tmp_path, *words, code=DRIVER, popen=None, **kwargs):
    """A process that runs this code: a fork, if `popen` is not that of subprocess."""
    env = environment(tmp_path, **kwargs.pop("env", {}))
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | kwargs
    process = (popen or _popen)([sys.executable, "-c", code, *words], env=env, cwd=tmp_path, **pipes)
    _started.append(process)
    return process


_started: list[subprocess.Popen[str]] = []
_popen = subprocess.Popen


@pytest.fixture(autouse=True)
def forked(forks, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "_popen", forks.popen)


@pytest.fixture(autouse=True)
def none_goes_on():
    """A command that a failed test started does not slow the next tests down."""
    yield
    while _started:
        process = _started.pop()
        process.kill()
        process.wait()


def run(tmp_path, *words, **kwargs):
    process = start(tmp_path, *words, **kwargs)
    out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in list(os.environ):
        if name.startswith("LEGION_"):
            monkeypatch.delenv(name)


@pytest.fixture
def job_of(monkeypatch):
    """What the command would do with these words: the Job that it makes."""

    def parse(*words):
        made = []
        monkeypatch.setattr(cli, "_train", lambda job, output: made.append(job) or 0)
        assert run_app(cli.app, words) == 0
        return made[0]

    return parse


def failure_of(capsys, *words):
    code = run_app(cli.app, words)
    return code, capsys.readouterr().err


def test_help_is_grouped_and_needs_neither_torch_nor_libp2p(tmp_path):
    code = (
        "import sys; from legion_p2p.cli.peer import app; from legion_p2p.cli.running import run_app; run_app(app, ['--help']); "
        "print('LOADED', [m for m in ('torch', 'libp2p', 'numpy', 'trio', 'multiaddr') if m in sys.modules])"
    )

    returned, out, err = run(tmp_path, code=code, popen=subprocess.Popen)

    assert returned == 0 and err == "" and out.endswith("LOADED []\n")
    assert "legion-peer --run NAME --initial-peers /ip4/" in out
    assert [out.index(group) for group in ("Which run", "A new run", "Training", "This peer on the network", "Output")] == sorted(
        out.index(group) for group in ("Which run", "A new run", "Training", "This peer on the network", "Output")
    )
    assert max(map(len, out.splitlines())) <= 80


def test_every_option_of_the_job_can_be_given(job_of, tmp_path):
    job = job_of(
        "--run", "demo", "--initial-peers", ADDRESS, OTHER, "--data", "texts", "--steps", "5", "--minutes", "1.5", "--out", "o",
        "--no-status", "--seed", "7", "--device", "cpu", "--threads", "2", "--identity", "key",
        "--listen", "/ip4/127.0.0.1/tcp/0", "--announce", "/ip4/203.0.113.7/tcp/4710", "--weight", "0.5", "--volunteer-relay",
        "--wait-for-members", "3", "--finish-together", "--eval-every-s", "30", "--search-s", "3", "--store", "s",
        "--keep", "last=2", "--store-max-gb", "3", "--checkpoint-every-s", "9",
        "--upload", "10mbit", "--download", "50mbit", "--quiet-hours", "22:00-07:00=2mbit", "--netem", "cable,loss=1%",
    )  # fmt: skip

    entry, peer, training = job.entry, job.peer, job.training
    assert (entry.run, entry.new_run, entry.initial_peers, entry.create_or_join) == ("demo", None, (ADDRESS, OTHER), False)
    assert (training.data, training.steps, training.minutes, training.out, peer.status) == ("texts", 5, 1.5, "o", False)
    assert (training.seed, training.device, training.threads, peer.identity, peer.search_s) == (7, "cpu", 2, "key", 3.0)
    assert (peer.listen, peer.announce) == (("/ip4/127.0.0.1/tcp/0",), ("/ip4/203.0.113.7/tcp/4710",))
    assert (peer.weight, training.wait_for_members, training.finish_together, training.eval_every_s) == (0.5, 3, True, 30.0)
    assert peer.volunteer_relay and not job.picks_identity and not job.picks_store
    assert peer.limits == Limits("10mbit", "50mbit", "22:00-07:00=2mbit", "cable,loss=1%")
    assert peer.store == Store("s", "last=2", 3.0, 9.0)


def test_what_is_not_given_has_the_defaults_of_the_values(job_of):
    job = job_of("--run", "demo", "--initial-peers", ADDRESS)

    assert (job.entry, job.peer, job.training) == (RunChoice("demo", (ADDRESS,)), Peer(), Training())
    assert job.picks_identity and job.picks_store


def test_every_field_of_the_values_is_an_option_and_every_option_a_field(job_of):
    options = {(option.kind, option.field) for option in OPTIONS}

    fields = {
        (kind, field)
        for kind in (RunChoice, Training, Peer, Limits, Manners, Store, Rounds, Inner)
        for field in kind.__struct_fields__
    }
    new_run = {
        (NewRun, "preset"),
        (NewRun, "architecture"),
        (NewRun, "start_from"),
        (NewRun, "links"),
        (NewRun, "sharding"),
        (NewRun, "admission"),
        (NewRun, "target_steps"),
        (NewRun, "target_tokens"),
        (NewRun, "target_loss"),
    }  # the rest is in SPEC.toml, or of its name, --data and --seed
    assert options == (fields | new_run) - {(Peer, name) for name in ("limits", "manners", "store", "on_event")}
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)


def test_nothing_can_be_left_out_on_purpose(job_of):
    job = job_of("--new-run", "demo", "--identity", "none", "--store", "none")

    assert (job.peer.identity, job.peer.store.path, job.picks_identity, job.picks_store) == ("", "", False, False)


def test_addresses_come_from_files_and_several_flags(job_of, tmp_path):
    (tmp_path / "peers.txt").write_text(f"# friends\n{ADDRESS}  # home\n\n{OTHER}\n")

    assert job_of("--run", "demo", "--initial-peers", f"@{tmp_path}/peers.txt").entry.initial_peers == (ADDRESS, OTHER)
    both = job_of("--initial-peers", OTHER, "--run", "demo", "--initial-peers", ADDRESS).entry.initial_peers
    assert both == (OTHER, ADDRESS)


def test_who_names_nobody_enters_through_those_of_the_file_in_this_folder(job_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bootstrap_peers.txt").write_text(f"# ours\n{ADDRESS}\n")

    joined, created, named = job_of("--run", "demo"), job_of("--new-run", "demo"), job_of("--run", "x", "--initial-peers", OTHER)

    assert joined.entry.initial_peers == created.entry.initial_peers == (ADDRESS,)
    assert named.entry.initial_peers == (OTHER,) and not named.picks_contacts
    assert job_of("--new-run", "demo", "--initial-peers", "none").entry.initial_peers == ()
    (tmp_path / "bootstrap_peers.txt").write_text("nonsense\n")
    with pytest.raises(UsageError, match=r"bootstrap_peers\.txt, line 1: 'nonsense' cannot be used"):
        listed_contacts()


def test_who_joins_also_enters_through_peers_of_the_last_time_and_a_new_run_does_not(job_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bootstrap_peers.txt").write_text(f"{ADDRESS}\n")
    peers = [KnownPeer(str(Identity(bytes([n]) * 32).peer_id), ("/ip4/8.8.8.8/tcp/1",), float(n)) for n in range(1, 20)]
    KnownPeersFile.beside(str(tmp_path / "my.key")).save(bounded(peers))
    words = ("--identity", str(tmp_path / "my.key"))

    joined, created = (cli.with_contacts(job_of(flag, "demo", *words)) for flag in ("--run", "--new-run"))

    last = [f"/ip4/8.8.8.8/tcp/1/p2p/{peer.id}" for peer in reversed(peers[-MAX_REMEMBERED:])]
    assert joined.entry.initial_peers == (ADDRESS, *last)
    assert created.entry.initial_peers == (ADDRESS,)
    assert cli.with_contacts(job_of("--run", "demo", "--initial-peers", OTHER, *words)).entry.initial_peers == (OTHER,)


def test_without_anybody_to_enter_through_and_without_a_store_it_says_what_is_missing(job_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = job_of("--run", "demo", "--identity", str(tmp_path / "my.key"), "--store", "none", "--lan", "no")

    with pytest.raises(UsageError, match="--run demo needs --initial-peers ADDR"):
        cli.with_contacts(job)
    (tmp_path / "my.peers.json").write_text("{")
    with pytest.raises(UsageError, match="--run demo needs --initial-peers ADDR"):
        cli.with_contacts(job)


def test_it_is_said_through_whom_a_peer_enters_that_was_named_nobody():
    assert entering_text(1, 0) == "entering through 1 address of bootstrap_peers.txt; --initial-peers none turns this off"
    assert "2 addresses of bootstrap_peers.txt and 1 peer of the last session" in entering_text(2, 1)


def test_a_run_is_created_from_a_file_and_flags_win_over_it(job_of, tmp_path):
    spec = tmp_path / "spec.toml"
    spec.write_text(
        'name = "stories"\npreset = "m"\n[rounds]\nlocal_steps = 40\nquorum = 1.0\npush_codec = "int4"\n'
        'update_codecs = ["int2"]\n[inner]\nbatch = 2\n'
    )

    job = job_of("--new-run", str(spec), "--local-steps", "7", "--codec", "fp16", "--lr", "0.01", "--sync-every", "3")

    assert job.entry.new_run == NewRun(
        "stories", preset="m", inner=Inner(batch=2, learning_rate=0.01),
        rounds=Rounds(local_steps=7, quorum=1.0, push_codec="fp16", sync_every=3),
    )  # fmt: skip
    other = job_of("--new-run", str(spec), "--push-codec", "topk64-2bit", "--update-codec", "int8").entry.new_run.rounds
    assert other == Rounds(local_steps=40, quorum=1.0, push_codec="topk64-2bit", update_codec="int8")


def test_a_run_is_created_from_flags_alone(job_of, tmp_path):
    job = job_of("--new-run", "mine", "--preset", "xxs", "--seed", "5", "--data", str(tmp_path))

    # the path itself means nothing to others
    assert job.entry.new_run == NewRun("mine", preset="xxs", seed=5, data=tmp_path.name)
    assert job.training.data == str(tmp_path)
    assert job_of("--run", "mine", "--new-run", "mine").entry.new_run == NewRun("mine")
    assert job_of("--new-run", "mine", "--create-or-join").entry.create_or_join


def test_what_is_not_said_of_a_new_run_follows_from_the_links_of_its_members(job_of, tmp_path):
    def chosen(*words):
        new_run = job_of("--new-run", *words).entry.new_run
        return chosen_rounds(new_run.rounds, new_run.links), chosen_inner(new_run.inner, new_run.links)

    cable, lan = (chosen("mine", "--links", links) for links in ("cable", "lan"))
    assert cable[0].push_codec.startswith("topk") and lan[0].push_codec == "int8"
    assert cable[1].optimizer == lan[1].optimizer == "muon"

    spec = tmp_path / "spec.toml"
    spec.write_text('name = "stories"\nlinks = "dsl"\n[rounds]\nlocal_steps = 40\n[inner]\noptimizer = "adamw"\n')
    rounds, inner = chosen(str(spec), "--codec", "fp16")
    assert (rounds.local_steps, rounds.push_codec, rounds.push_codecs) == (40, "fp16", ())
    assert rounds.feedback_decay == 0.95
    assert inner == InnerSpec()  # the rate of another optimizer is not taken


def test_flags_win_over_variables_and_variables_over_the_file(job_of, tmp_path, monkeypatch):
    config = tmp_path / "peer.toml"
    config.write_text(
        f'run = "from-file"\ninitial-peers = ["{ADDRESS}", "{OTHER}"]\nsteps = 1\nminutes = 1\nseed = 1\nstatus = false\n'
    )
    monkeypatch.setenv("LEGION_CONFIG", str(config))
    monkeypatch.setenv("LEGION_STEPS", "2")
    monkeypatch.setenv("LEGION_MINUTES", "2")
    monkeypatch.setenv("LEGION_INITIAL_PEERS", OTHER)
    monkeypatch.setenv("LEGION_UNRELATED", "x")

    job = job_of("--steps", "3")

    training = job.training
    assert (job.entry.run, training.steps, training.minutes, training.seed, job.peer.status) == ("from-file", 3, 2.0, 1, False)
    assert job.entry.initial_peers == (OTHER,)
    assert job_of("--status").peer.status


@pytest.mark.parametrize("value", ["", "  ", "tcp://10.96.0.7:4710"])
def test_a_variable_that_is_empty_or_comes_from_kubernetes_says_nothing(job_of, monkeypatch, value):
    for name in ("PORT", "STEPS", "UPLOAD", "INITIAL_PEERS", "CONFIG", "STATUS", "LOCAL_STEPS", "LISTEN"):
        monkeypatch.setenv(f"LEGION_{name}", value)

    job = job_of("--run", "demo", "--initial-peers", ADDRESS)

    assert (job.entry, job.peer, job.training) == (RunChoice("demo", (ADDRESS,)), Peer(), Training())


@pytest.mark.parametrize(("old", "new"), sorted(FLAGS.items()))
def test_an_option_that_has_another_name_now_says_so_wherever_it_stands(old, new, capsys, monkeypatch, tmp_path):
    key, path = old.removeprefix("--"), tmp_path / "peer.toml"
    path.write_text(f"{key} = 3\n")

    flag, file = failure_of(capsys, "--run", "x", old, "3"), failure_of(capsys, "--run", "x", "--config", str(path))
    monkeypatch.setenv("LEGION_" + key.replace("-", "_").upper(), "3")
    variable = failure_of(capsys, "--run", "x")

    assert flag[0] == file[0] == variable[0] == 2
    assert f"{old} is called {new} now" in flag[1]
    assert f"[{key}] in {path} is called {new.removeprefix('--')} now" in file[1]
    assert "is called LEGION_" + new.removeprefix("--").replace("-", "_").upper() in variable[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--run NAME joins one, --new-run SPEC.toml"),
        (("--run", "x", "--store", "none", "--lan", "no"), "--run x needs --initial-peers ADDR"),
        (("--run", "x", "--identity", "none", "--lan", "no"), "--run x needs --initial-peers ADDR"),
        (("--run", "x", "--create-or-join"), "--create-or-join: only with --new-run"),
        (("--run", "x", "--preset", "s", "--local-steps", "3"), "--preset, --local-steps: only for a new run"),
        (("--run", "a", "--new-run", "b"), "--new-run creates one named b: give one of them"),
        (
            ("--new-run", "no good"),
            "--new-run no good: NewRun(name=...): run name 'no good': allowed are letters, digits, and . _ / - after the first",
        ),
        (("--new-run", "x", "--region", "here and there"), "--region: 'here and there' is not allowed: give a label of letters"),
        (("--new-run", "missing.toml"), "missing.toml: there is no such file"),
        (("--run", "x", "--initial-peers", "/ip4/1.2.3.4/tcp/1"), "--initial-peers: '/ip4/1.2.3.4/tcp/1' cannot be used"),
        (("--run", "x", "--initial-peers", "@missing"), "--initial-peers: @missing: cannot read missing: there is no such file"),
        (("--new-run", "x", "--listen", "here"), "--listen: 'here' cannot be used"),
        (("--steps", "-1"), "--steps: '-1' is not allowed: give a whole number of at least 0"),
        (("--minutes", "nan"), "--minutes"),
        (("--weight", "inf"), "--weight"),
        (("--upload", "10"), "--upload: rate '10': allowed is a number and bit, kbit, mbit or gbit"),
        (("--netem", "cabel"), "--netem: link 'cabel': 'cabel' is not known; allowed is a profile (good, cellular"),
        (("--quiet-hours", "22-7"), "--quiet-hours: quiet hours '22-7': allowed is HH:MM-HH:MM"),
        (("--steps", "many"), "--steps: 'many' is not allowed: give a whole number of at least 0"),
        (("--links", "cabel"), "--links: 'cabel' is not allowed: give one of auto, cable, dsl, fibre, lan"),
        (("--sync-every", "0"), "--sync-every: '0' is not allowed: give a whole number from 1"),
        (("--peers", "x"), "unknown option: --peers; did you mean --initial-peers?"),
        (("stories", ADDRESS), f"'stories' '{ADDRESS}': did you mean --run stories --initial-peers {ADDRESS}?"),
        (("stories.toml",), "'stories.toml': did you mean --new-run stories.toml?"),
        (("--run", "x", ADDRESS), f"did you mean --initial-peers {ADDRESS}?"),
        (("—run", "x"), "'—run' begins with a character that is not the hyphen of options: write --run"),
        (("--stepps", "1"), "unknown option: --stepps. Did you mean --steps?"),
        (("--new-run", "x", "extra"), "no option takes 'extra'"),
    ],
)
def test_a_mistake_is_one_line_that_names_it_and_exit_code_2(words, told, capsys):
    code, err = failure_of(capsys, *words)

    assert code == 2 and told in err and err.startswith("legion-peer: error: ")
    assert len(err.splitlines()) <= 2 and "Traceback" not in err


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("LEGION_STEPS", "abc", "LEGION_STEPS in the environment: 'abc' is not allowed: give a whole number"),
        ("LEGION_STEPS", "-1", "LEGION_STEPS in the environment: '-1' is not allowed"),
        ("LEGION_STATUS", "perhaps", "LEGION_STATUS from env"),
        ("LEGION_UPLOAD", "fast", "LEGION_UPLOAD in the environment: rate 'fast'"),
        ("LEGION_INITIAL_PEERS", "nonsense", "LEGION_INITIAL_PEERS in the environment: 'nonsense'"),
        ("LEGION_CONFIG", "missing.toml", "missing.toml: there is no such file"),
    ],
)
def test_a_bad_variable_is_named(name, value, told, capsys, monkeypatch):
    monkeypatch.setenv(name, value)

    code, err = failure_of(capsys, "--run", "x")

    assert code == 2 and told in err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('steps = "abc"', "[steps] in {path}: 'abc' is not allowed: give a whole number"),
        ("steps = -1", "[steps] in {path}: '-1' is not allowed"),
        ("stepz = 1", '"[stepz]" from {path}'),
        ("steps = [", "{path}: Invalid value"),
        ('initial-peers = ["x"]', "[initial-peers] in {path}: 'x' cannot be used"),
    ],
)
def test_a_bad_value_in_the_file_is_named_with_the_file(content, told, capsys, tmp_path):
    path = tmp_path / "peer.toml"
    path.write_text(content)

    code, err = failure_of(capsys, "--run", "x", "--config", str(path))

    assert code == 2 and told.format(path=path) in err


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (UsageError("x"), 2), (ConfigError("x"), 2), (JoinError("x"), 3), (NoContactError({"a": "b"}), 3),
        (UnknownRunError("x", 1), 3), (NetworkError("x"), 3), (IncompatibleModelError("x"), 4), (LegionError("x"), 1),
    ],
)  # fmt: skip
def test_every_error_has_its_exit_code(bad, code):
    assert exit_code_of(bad) == code


def test_off_a_terminal_it_prints_plain_lines_and_a_farewell(tmp_path):
    code, out, err = run(
        tmp_path, "--run", "demo", "--initial-peers", ADDRESS, "--steps", "20", "--identity", "none", "--out", "o"
    )

    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert "run joined: run bafkrei, name demo" in lines[0] and "status" in lines[0] and "not status" not in lines[0]
    assert "step 1/20; loss 2.5000" in lines[1] and len(lines) == 9
    assert lines[2:] == [
        f"did its steps in run demo: 20 steps, 20.5k tokens in {lines[2].rpartition(' ')[2]}",
        "validation loss of the common model: 2.2500",
        "model FLOPs utilisation unknown (--peak-tflops says what the device can do)",
        f"common model {'ab' * 32}",
        "sent 20.0 kB, received 2.00 kB",
        "written to o",
        f"to come back: legion-peer --run bafkrei --initial-peers {ADDRESS}",
    ]


def test_json_is_one_event_a_line_and_nothing_else(tmp_path):
    code, out, err = run(tmp_path, "--new-run", "demo", "--steps", "3", "--json", "--identity", "none")

    events = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [event["event"] for event in events] == ["run.joined", *["step"] * 3, "peer.left"]
    assert events[-1]["run"] == "demo" and events[-1]["steps"] == 3 and events[-1]["val_loss"] == 2.25
    assert (events[-1]["sent_bytes"], events[-1]["reason"], events[0]["identity"]) == (3000, "steps", "")


def test_quiet_prints_nothing(tmp_path):
    assert run(tmp_path, "--new-run", "demo", "--steps", "3", "--quiet", "--identity", "none") == (0, "", "")


def test_a_founder_who_leaves_is_told_whom_to_come_back_to(tmp_path):
    _, out, _ = run(tmp_path, "--new-run", "demo", "--steps", "3", "--identity", "none")

    assert out.splitlines()[-1] == f"to come back: legion-peer --run bafkrei --initial-peers {ON_THIS_MACHINE}/p2p/other"


@pytest.mark.parametrize(
    ("name", "code", "told"), [("unknown", 3, "no peer knows a run named 'unknown'"), ("misfit", 4, "parameter 'wte.weight' is")]
)
def test_what_the_trainer_refuses_ends_with_its_own_code_and_no_traceback(name, code, told, tmp_path):
    words = ("--run", name, "--initial-peers", ADDRESS, "--identity", "none")

    returned, out, err = run(tmp_path, *words)
    _, as_json, _ = run(tmp_path, *words, "--json")

    assert returned == code and out == "" and err.startswith("legion-peer: error: ") and told in err and "Traceback" not in err
    assert json.loads(as_json)["event"] == "peer.failed" and json.loads(as_json)["error"]


def test_a_bug_shows_its_traceback_and_ends_with_1(tmp_path):
    code, _, err = run(tmp_path, "--new-run", "broken", "--identity", "none")

    assert code == 1 and "RuntimeError: a bug" in err


def test_a_dry_run_says_what_the_job_takes_and_starts_nothing(tmp_path):
    code, out, err = run(tmp_path, "--new-run", "demo", "--dry-run", "--out", "o")
    _, limited, _ = run(tmp_path, "--new-run", "demo", "--dry-run", "--upload", "10mbit")
    _, as_json, _ = run(tmp_path, "--new-run", "demo", "--dry-run", "--json")

    assert (code, err) == (0, "")
    assert "parameters              800,000" in out and "memory                  12.8 MB" in out and "nothing was started" in out
    assert "    100          1.60 MB   2.40 MB   1.60 MB           156 B" in out and "sending takes" not in out
    assert "1.60 MB           156 B         1.28 s" in limited
    assert json.loads(as_json)["n_params"] == 800_000 and json.loads(as_json)["traffic"][0]["n_members"] == 100
    assert "of which 415 MB for the program itself" in out and "disk                    up to 20.0 GB for checkpoints" in out
    assert not (tmp_path / "o").exists() and not (tmp_path / "data").exists()


def test_the_live_view_says_how_long_leaving_takes(monkeypatch):
    monkeypatch.setattr(peer_view, "can_draw", lambda stream: True)
    shown = PeerView(cli.Output(), io.StringIO())
    shown.on_status(Status("me", (), None, "", "training", 3, (), (), 0, 0, None, ()))

    shown.on_event(Event(HANDING_OVER, 0.0, {"n_shards": 3, "left_bytes": 12_300_000, "remaining_s": 11.7}))

    stream = io.StringIO()
    Console(file=stream, width=100).print(shown._view.render(100, 24, False))
    assert "handing over 3 shards, 12.3 MB, about 12 s; Ctrl+C leaves at once" in stream.getvalue()


def test_two_keys_lower_and_raise_the_upload_limit_from_what_sending_reaches(monkeypatch):
    class FakeControl:
        status = ControlStatus()

        def limits(self, *, upload: str) -> None:
            self.status = ControlStatus(upload_bps=None if upload == "none" else parse_rate(upload))

    monkeypatch.setattr(peer_view, "can_draw", lambda stream: True)
    shown, control, held = PeerView(cli.Output(), io.StringIO()), FakeControl(), []
    shown.on_status(Status("me", (), None, "", "training", 3, (), (), 0, 0, None, (), upload_bps=7e6))

    with contextlib.ExitStack() as open_things:
        shown.listen(open_things, control)
        for key in "--++++":
            shown._keys.pressed(key)
            held.append(control.status.upload_bps)

    assert held == [5e6, 2e6, 5e6, 10e6, 20e6, 50e6]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), pytest.param("SIGHUP", 129, marks=has_hangups)])
def test_the_first_signal_leaves_in_order(name, code, tmp_path):
    process = start(tmp_path, "--run", "demo", "--initial-peers", ADDRESS, "--identity", "none")
    process.stdout.readline()

    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == code
    assert "left run demo: " in out and "to come back: " in out
    assert err == "legion-peer: leaving the run; Ctrl+C again leaves at once\n"


@has_hangups
def test_under_nohup_it_survives_the_terminal_and_still_leaves_in_order_when_interrupted(tmp_path):
    def as_nohup_and_an_ampersand_do():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = start(tmp_path, "--new-run", "demo", "--identity", "none", preexec_fn=as_nohup_and_an_ampersand_do)
    process.stdout.readline()

    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    went_on = process.poll() is None and select.select([process.stderr], [], [], 0)[0] == []
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE_S)

    assert went_on
    assert process.returncode == 130 and "left run demo" in out


def test_a_second_signal_leaves_at_once_even_from_a_trainer_that_does_not_listen(tmp_path):
    process = start(tmp_path, "--new-run", "deaf", "--identity", "none", "--json")
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.stderr.readline()
    time.sleep(0.2)
    assert process.poll() is None

    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)  # by itself it would never end

    assert process.returncode == 143


def test_before_there_is_a_run_to_leave_one_signal_is_enough(tmp_path):
    slow = DRIVER.replace('sys.modules |= {"legion_p2p.train.job": job, "legion_p2p.train.helper": helper}',
         """
class Finder:  # stands for torch, which takes seconds to import
    def find_spec(self, name, path=None, target=None):
        if name == "legion_p2p.train.job": print("importing", flush=True); time.sleep(1000)
sys.meta_path.insert(0, Finder())""")  # fmt: skip
    process = start(tmp_path, "--new-run", "demo", "--identity", "none", code=slow, popen=subprocess.Popen)
    assert process.stdout.readline() == "importing\n"

    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 130


def test_a_signal_that_arrives_twice_at_the_same_moment_counts_once(tmp_path):
    process = start(tmp_path, "--new-run", "demo", "--identity", "none")
    process.stdout.readline()

    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode in (130, 143) and "left run demo" in out


def test_peers_of_one_user_get_an_identity_each_even_when_they_start_together(tmp_path):
    load = 'events.emit("run.joined"'
    real = DRIVER.replace(load, f"from legion_p2p.store.identity import load_or_create_identity\n"
                                f"    held = load_or_create_identity(peer.identity); {load}")  # fmt: skip
    peers = [start(tmp_path, "--new-run", "demo", "--json", code=real) for _ in range(3)]

    used = {Path(json.loads(process.stdout.readline())["identity"]).name for process in peers}
    for process in peers:
        process.send_signal(signal.SIGTERM)
    codes = [process.communicate(timeout=PATIENCE_S) and process.returncode for process in peers]

    assert used == {"peer.key", "peer-2.key", "peer-3.key"} and codes == [143] * 3


def test_the_identity_slots_are_taken_in_order_and_come_free_again(tmp_path, monkeypatch):
    first = load_or_create_identity(cli.pick_identity_slot(tmp_path))
    second = load_or_create_identity(cli.pick_identity_slot(tmp_path))
    first.release()

    assert cli.pick_identity_slot(tmp_path).name == "peer.key"
    first = load_or_create_identity(tmp_path / "peer.key")
    monkeypatch.setattr(cli, "MAX_IDENTITY_SLOTS", 2)
    with pytest.raises(UsageError, match="none of 2 identities"):
        cli.pick_identity_slot(tmp_path)
    first.release()
    second.release()


@has_terminals
def test_on_a_terminal_it_draws_the_view_and_gives_the_cursor_back(tmp_path):
    shown, code = on_a_terminal(tmp_path, "--run", "demo", "--initial-peers", ADDRESS, "--steps", "120", "--identity", "none")

    assert code == 0
    assert "step 120/120" in shown and "other" in shown and "did its steps in run demo: 120 steps" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1


@has_terminals
def test_keys_tell_the_peer_what_to_do_and_the_terminal_is_as_it_was_before(tmp_path):
    words = [sys.executable, "-c", DRIVER, "--run", "demo", "--initial-peers", ADDRESS, "--identity", "none"]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, words, environment(tmp_path))
    shown, modes = b"", termios.tcgetattr(terminal)

    for awaited, typed in ((b"keys: p pause", b"x"), (b"training", b"P"), (b"told to pause", b"q"), (b"left run demo", b"")):
        while awaited not in shown:
            shown += os.read(terminal, 65536)  # EIO, which fails the test, once the peer has ended without it
        os.write(terminal, typed)
    after = termios.tcgetattr(terminal)
    _, how = os.waitpid(child, 0)
    os.close(terminal)

    assert os.waitstatus_to_exitcode(how) == 0
    assert after == modes and modes[3] & termios.ICANON


@has_terminals
def test_a_dumb_terminal_gets_lines(tmp_path):
    shown, code = on_a_terminal(tmp_path, "--new-run", "demo", "--steps", "5", "--identity", "none", env={"TERM": "dumb"})

    assert code == 0 and "\x1b" not in shown and "run joined" in shown


@has_terminals
def test_a_terminal_that_is_closed_lets_the_peer_leave_in_order(tmp_path):
    done = tmp_path / "done"
    code = DRIVER.replace(
        "    return Outcome(step", f"    open({str(done)!r}, 'w').write(str(control.leaving))\n    return Outcome(step"
    )
    words = [sys.executable, "-c", code, "--new-run", "demo", "--identity", "none"]
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, words, environment(tmp_path))
    assert os.read(terminal, 65536)
    time.sleep(0.8)

    os.close(terminal)
    _, how = os.waitpid(child, 0)

    assert done.read_text() == "True" and os.waitstatus_to_exitcode(how) == 128 + signal.SIGHUP


@pytest.mark.parametrize("mode", [(), ("--json",)])
def test_a_reader_that_goes_away_does_not_end_the_training(mode, tmp_path):
    process = start(tmp_path, "--new-run", "demo", "--steps", "100", "--identity", "none", *mode)
    process.stdout.readline()

    process.stdout.close()
    err = process.stderr.read()

    assert process.wait(timeout=PATIENCE_S) == 0
    told = "legion-peer: stdout has no reader any more; training goes on, and Ctrl+C ends it\n"
    assert err == told or (err == "" and not mode)  # lines come every ten seconds, so that a short run may not notice


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("unsaved", 5, "error: the model is in /tmp/x"),
        ("cut", 1, "error: cut off"),
        ("large", 4, "error: training on cuda:0 ran out of memory; less takes: --precision bf16"),
    ],
)
def test_what_went_wrong_at_the_end_is_said_after_the_farewell(name, code, told, tmp_path):
    process = start(tmp_path, "--new-run", name, "--steps", "2", "--identity", "none", "--out", "o")

    out, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == code and told in err
    assert "did its steps" in out and ("written to o" in out) == (name != "unsaved")


def on_a_terminal(tmp_path, *words, **kwargs):
    """Everything that a terminal of 80 x 24 receives, and the exit code."""
    ours, theirs = pty.openpty()
    process = start(tmp_path, *words, stdout=theirs, stderr=theirs, stdin=theirs, popen=subprocess.Popen, **kwargs)
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux says so when the last process has closed the other end
                break
            if not piece:
                break
            shown += piece
    os.close(ours)
    return shown.decode(), process.wait(timeout=PATIENCE_S)


def test_a_helper_says_how_long_it_helped_and_comes_back_as_one(tmp_path):
    words = ("--run", "demo", "--role", "helper", "--initial-peers", ADDRESS, "--identity", "none", "--store", "none")
    process = start(tmp_path, *words)
    process.stdout.readline()

    process.send_signal(signal.SIGINT)

    out, _ = process.communicate(timeout=PATIENCE_S)

    assert "left run demo: helped for 0:0" in out
    assert f"to come back: legion-peer --run bafkrei --role helper --initial-peers {ADDRESS}" in out


def test_a_role_that_there_is_not_is_refused_with_those_that_there_are(tmp_path):
    code, _, err = run(tmp_path, "--run", "demo", "--role", "master", "--initial-peers", ADDRESS)

    assert code == 2 and "--role" in err and all(role in err for role in ("auto", "trainer", "client", "helper"))


def test_options_are_read_alike_in_a_process_that_has_imported_pydantic(job_of):
    pytest.importorskip("pydantic")  # which some libraries import, and cyclopts then checks defaults and values by it

    job = job_of("--run", "demo", "--lan", "no", "--report-to", "none")

    assert (job.entry.run, job.peer.lan, job.peer.port_mapping, job.training.report_to) == ("demo", False, True, ())
