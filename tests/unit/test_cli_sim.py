"""legion-sim: what it prints and leaves, and what it says of mistakes."""

import json
import re

import pytest

from legion_p2p.cli.running import run_app
from legion_p2p.cli.sim import app
from legion_p2p.cli.sim_options import change_of
from legion_p2p.errors import UsageError
from legion_p2p.scenarios import search

VIOLATION = {"at_s": 3.0, "kind": "ended", "text": "a mistake"}
TINY = """
duration_s = 5
rounds = { local_steps = 2 }

[[peers]]
name = "a"
count = 3
step_s = 0.2
link = "good"

[[faults]]
kind = "slow"
at_s = 1
for_s = 2
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def test_a_run_leaves_a_report_that_needs_nothing_else(tiny, tmp_path, capsys):
    out = tmp_path / "out"

    assert run_app(app, ["run", str(tiny), "--out", str(out)]) == 0

    told = capsys.readouterr().out
    assert "tiny, seed 0: 3 peers" in told and "hash " in told and "report.html" in told
    names = {path.name for path in out.iterdir()}
    assert names >= {"report.html", "summary.json", "trace.jsonl", "scenario.toml", "loss.png", "peers.png", "bytes.png"}
    page = (out / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == len(list(out.glob("*.png")))
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "nothing is loaded from elsewhere"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["n_faults"] == 1 and summary["hash"] in page
    lines = [json.loads(line) for line in (out / "trace.jsonl").read_text().splitlines()]
    assert {"sim.sample", "sim.fault", "sim.peer", "run.joined", "round.closed"} <= {line["event"] for line in lines}


def test_without_a_report_none_is_promised(tiny, tmp_path, capsys):
    assert run_app(app, ["run", str(tiny), "--no-report", "--minutes", "0.03", "--out", str(tmp_path / "out")]) == 0

    assert "summary.json and the rest are there" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.html")) and not list((tmp_path / "out").glob("*.png"))


def test_what_a_run_left_can_be_run_again(tiny, tmp_path, capsys):
    how = ["--no-report", "--json", "--seed", "4"]
    assert run_app(app, ["run", str(tiny), *how, "--out", str(tmp_path / "1"), "--set", "peers.a.count=2", "duration_s=4"]) == 0
    first = json.loads(capsys.readouterr().out)

    assert run_app(app, ["run", str(tmp_path / "1" / "scenario.toml"), *how, "--out", str(tmp_path / "2")]) == 0

    again = json.loads(capsys.readouterr().out)
    assert (first["n_peers"], first["virtual_s"]) == (2, 4.0)
    assert again["hash"] == first["hash"]


def test_a_sweep_compares_every_combination(tiny, tmp_path, capsys):
    grid = ["rounds.local_steps=2,4", "peers.a.link=good,dsl"]

    assert run_app(app, ["sweep", str(tiny), *grid, "--out", str(tmp_path / "out"), "--minutes", "0.05"]) == 0

    told = capsys.readouterr().out
    assert "rounds.local_steps" in told and "loss last" in told and "dsl" in told
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [row["chosen"]["peers.a.link"] for row in rows] == ["good", "dsl", "good", "dsl"]
    assert rows[0]["figures"]["updates_per_shard"] > rows[2]["figures"]["updates_per_shard"] > 0


def test_a_search_that_finds_nothing_says_so(tiny, tmp_path, capsys):
    words = ["run", str(tiny), "--until-violation", "--seeds", "2", "--minutes", "0.03", "--out", str(tmp_path / "out")]

    assert run_app(app, words) == 0

    told = capsys.readouterr()
    assert "no violation in 2 seeds, 0 to 1" in told.out and "seed 1: nothing" in told.err


def test_all_seeds_are_looked_at_and_what_they_violate_is_listed(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search, "violations_of", lambda scenario, seed: [VIOLATION] if seed in (2, 4) else [])

    code = run_app(app, ["run", str(tiny), "--all-seeds", "--seeds", "6", "--out", str(tmp_path / "out")])

    told = capsys.readouterr()
    found = [json.loads(line) for line in (tmp_path / "out" / "violations.jsonl").read_text().splitlines()]
    assert code == 1 and [one["seed"] for one in found] == [2, 4] and found[0]["text"] == "a mistake"
    assert "2 of 6 seeds, 0 to 5, violate something: ended in 2" in told.out and "seed 4: ended: a mistake" in told.err


def test_the_list_names_each_scenario_with_what_it_shows(capsys):
    assert run_app(app, ["list", "--json"]) == 0

    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["thousand"]["peers"] == 1000 and all(one["about"] for one in found.values())


def test_a_scenario_that_is_shown_is_one(tmp_path, capsys):
    assert run_app(app, ["show", "churn"]) == 0
    shown = capsys.readouterr().out
    (tmp_path / "mine.toml").write_text(shown)

    assert run_app(app, ["show", str(tmp_path / "mine.toml")]) == 0

    assert 'kind = "exponential"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "nowhere.toml"], "nowhere.toml"),
        (["run", "nowhere"], "known are brownout"),
        (["run", "good", "--peers", "0"], "must be a number of at least 1"),
        (["run", "good", "--set", "peers.x.count=1"], "peers.x.count: x is none of home"),
        (["run", "good", "--set", "duration_s"], "the form is FIELD=VALUE"),
        (["sweep", "good", "rounds.local_steps"], "the form is FIELD=VALUE,VALUE"),
        (["sweep", "good", f"duration_s={','.join(map(str, range(1, 1002)))}"], "1001 combinations, at most 1000"),
        (["sweep", "good", "rounds.local_steps=5,none"], "rounds.local_steps: 'none' is not allowed"),
        (["run", "good", "--set", "rounds.quorum=2"], "rounds.quorum: 2 is not allowed: give a number above 0 and at most 1"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert run_app(app, words) == 2

    assert said in capsys.readouterr().err.splitlines()[0]
    assert not list(tmp_path.iterdir())


def test_a_change_is_a_field_and_a_value():
    assert change_of("a.b=3") == ("a.b", 3)
    assert change_of('a="x"') == ("a", "x")
    assert change_of("a=cable") == ("a", "cable")
    assert change_of("a=[1, 2]") == ("a", [1, 2])
    with pytest.raises(UsageError):
        change_of("=3")


def test_a_model_is_trained_along_the_graph_that_a_run_left(tiny, tmp_path, capsys):
    assert run_app(app, ["run", str(tiny), "--no-report", "--json", "--out", str(tmp_path / "ran")]) == 0
    ran = json.loads(capsys.readouterr().out)

    assert (
        run_app(app, ["train", str(tmp_path / "ran" / "graph.jsonl.gz"), "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    )

    told = capsys.readouterr().out
    trained = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "3 peers, " in told and " -> " in told and (tmp_path / "out" / "loss.png").exists()
    assert trained["loss_last"] == pytest.approx(ran["loss_last"], rel=1e-3) and len(trained["points"]) <= 50


def test_what_the_graph_has_already_cannot_be_changed(tiny, tmp_path, capsys):
    run_app(app, ["run", str(tiny), "--no-report", "--minutes", "0.05", "--out", str(tmp_path / "ran")])

    assert run_app(app, ["train", str(tmp_path / "ran" / "graph.jsonl.gz"), "--set", "peers.a.count=5"]) == 2

    assert "the graph has it already" in capsys.readouterr().err


def test_no_graph_is_left_where_none_is_wanted_or_liars_push(tiny, tmp_path):
    liars = tmp_path / "liars.toml"
    liars.write_text(TINY + '\n[[peers]]\nname = "b"\nstep_s = 0.2\nweight = 0\nattack = "flip"\n')

    for name, words in (("unwanted", [str(tiny), "--no-graph"]), ("lied", [str(liars)])):
        run_app(app, ["run", *words, "--no-report", "--minutes", "0.03", "--out", str(tmp_path / name)])

        assert (tmp_path / name / "summary.json").exists() and not (tmp_path / name / "graph.jsonl.gz").exists()
