"""legion-ctl plan: what it takes, what it shows, what it refuses; and the plan of legion-peer --dry-run."""

import io
import json

import pytest
from rich.console import Console

from legion_p2p.cli import ctl
from legion_p2p.cli.running import run_app
from legion_p2p.config import Limits, NewRun, Peer, Rounds, RunChoice, Training
from legion_p2p.core.sharding.cost import MAX_STEP_S
from legion_p2p.dashboard.forecast import render_forecast
from legion_p2p.errors import ConfigError
from legion_p2p.observe import human
from legion_p2p.train.described import described
from legion_p2p.train.job import plan_job
from legion_p2p.train.sizing import Connection, Forecast, forecast


def shown(made: Forecast, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(render_forecast(made, "xxs", width=width))
    return console.file.getvalue()


WORDS = ["plan", "--model", "124m", "--peers", "10", "--up", "10mbit"]


def planned(capsys, *more: str) -> dict:
    given = WORDS if "--model" not in more else [word for word in WORDS if word not in ("--model", "124m")]
    assert run_app(ctl.app, [*given, *more, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_it_says_bytes_seconds_and_shares(capsys) -> None:
    record = planned(
        capsys,
        "--down",
        "100mbit",
        "--codec",
        "int8",
        "topk64-2bit",
        "--local-steps",
        "10",
        "--tokens-per-step",
        "1000",
        "--step-s",
        "2",
    )

    mean = record["initial"][1]
    assert (record["n_members"], record["step_s"], record["tokens_per_step"]) == (10, 2.0, 1000)
    assert mean["traffic"]["sent_bytes"] == pytest.approx(2 * 0.9 * 8.125 / 8 * record["n_params"], rel=0.01)
    assert mean["sync_s"] == pytest.approx(8 * mean["traffic"]["sent_bytes"] / 10e6 + 0.05)
    assert mean["sync_share"] == pytest.approx(mean["sync_s"] / (mean["sync_s"] + 20))
    assert record["adapted"][1]["push_codec"] == record["adapted"][1]["update_codec"] == "topk64-2bit"


def test_codecs_and_local_steps_are_those_of_a_new_run_unless_they_are_given(capsys) -> None:
    by_links, given = (
        planned(capsys, "--links", "lan", *more)["initial"][1] for more in ([], ["--local-steps", "7", "--update-codec", "int4"])
    )

    assert [by_links[key] for key in ("push_codec", "update_codec", "local_steps")] == ["int8", "int8", 2]
    assert [given[key] for key in ("push_codec", "update_codec", "local_steps")] == ["int8", "int4", 7]


def test_without_seconds_of_a_step_they_follow_from_the_arithmetic(capsys) -> None:
    record = planned(capsys, "--tflops", "10")

    assert record["tokens_per_step"] == 4096
    assert record["step_s"] == pytest.approx(6 * record["n_params"] * 4096 / 10e12)


def test_what_is_shown_fits_its_width_and_is_plain_in_a_pipe(capsys) -> None:
    assert run_app(ctl.app, [*WORDS, "--codec", "int8", "topk64-2bit", "--update-codec", "int4"]) == 0

    out = capsys.readouterr().out
    assert "\x1b" not in out and max(map(len, out.splitlines())) <= 120
    for shown in ("124M parameters in 16 shards", "as the run begins", "as peers adapt", "topk64-2bit", "int4", "keeps up"):
        assert shown in out


def test_models_of_transformers_are_planned_by_family_and_by_file(tmp_path, capsys) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 128,'
        '"max_position_embeddings": 512, "vocab_size": 1000}'
    )
    by_family, by_file, dry = (
        planned(capsys, "--model", "hf:gpt2"),
        planned(capsys, "--model", f"hf:{tmp_path}", "--tokens-per-step", "4096"),
        plan_job(RunChoice(new_run=NewRun("same", architecture="hf:gpt2")), Peer(), Training()),
    )

    assert by_family["n_params"] == 124_439_808 and by_family["tokens_per_step"] == 4 * 1024
    assert by_family["memory_bytes"] == dry.memory_bytes
    assert by_file["n_params"] == 2 * 1000 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64
    assert by_file["tokens_per_step"] == 4096


def test_memory_grows_with_what_is_computed_at_once(capsys) -> None:
    few, many = (planned(capsys, "--tokens-per-step", n)["memory_bytes"] for n in ("1024", "8192"))

    per_token = 4 * (17 * 12 * 768 + 2 * 50257)  # numbers of 12 layers of width 768, and of the tokens' scores
    assert many - few == pytest.approx(7 * 1024 * per_token, rel=0.01)


def test_of_a_sharded_run_it_says_what_a_connection_must_carry_and_whether_it_does(capsys) -> None:
    words = ["plan", "--model", "gpt2", "--peers", "4", "--sharding", "full", "--up"]
    assert run_app(ctl.app, [*words, "1gbit"]) == 0
    fast = capsys.readouterr().out
    assert run_app(ctl.app, [*words, "100mbit"]) == 0
    slow = capsys.readouterr().out
    assert run_app(ctl.app, [*words, "100mbit", "--codec", "int8", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["traffic"][0]

    assert "must carry" in fast and "133 Mbit/s" in fast and "too slow" not in fast
    assert "too slow for 4 members: the bytes of one step take 39.8 s, 30 s are allowed" in slow
    assert row["least_bps"] * MAX_STEP_S == pytest.approx(8 * row["sent_bytes"]) and row["least_bps"] < 100e6


def test_where_nothing_adapts_there_is_one_table() -> None:
    spec = described(NewRun("one", preset="xxs", rounds=Rounds(push_codec="int8", update_codec="int8")))
    made = forecast(spec, 4, Connection(1e9, 1e9, 0.01), 1.0, 256)

    text = shown(made, 80)

    assert "as peers adapt" not in text and text.count("shards owned") == 1


def test_on_a_narrow_terminal_the_mean_peer_stays_and_nothing_is_cut_off() -> None:
    spec = described(NewRun("one", preset="xxs", rounds=Rounds(push_codec="topk64-2bit", update_codec="topk64-2bit")))

    text = shown(forecast(spec, 4, Connection(1e6, 1e6, 0.01), 1.0, 256), 42)

    assert max(map(len, text.splitlines())) <= 42
    assert "on average" in text and "owns most" not in text and "topk64-2bit" in text and "cent)." in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "70b"], "a run holds at most 34.4b: 4,096 shards of 8,388,608 parameters"),
        (["--model", "7x"], "must be a preset, a size such as 124m or 7b, or hf:NAME, hf:CONFIG.json or hf:FOLDER"),
        (["--model", "hf:nothing-here"], "no such file or folder, and no family; these are gpt2, "),
        (["--model", "1e9b"], "must be a preset"),
        (["--model", "²b"], "must be a preset"),
        (["--model", "1m"], "at least 10000000"),
        (["--peers", "0"], "at least 1"),
        (["--peers", "10001"], "allowed are 1 to 10000"),
        (["--up", "10"], "--up: rate '10': allowed is a number and bit"),
        (["--rtt", "1h"], "--rtt: duration '1h'"),
        (["--step-s", "nan"], "must be a number"),
        (["--codec", "int9"], "unknown codec 'int9'"),
        (["--local-steps", "1000000"], "local_steps: 1000000 is not allowed: give a whole number from 1 to 100,000"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], told: str, capsys) -> None:
    given = dict(zip(WORDS[1::2], WORDS[2::2], strict=True)) | dict(zip(words[::2], words[1::2], strict=True))

    code = run_app(ctl.app, ["plan", *(word for pair in given.items() for word in pair)])

    assert code == 2 and told in capsys.readouterr().err


def test_a_run_with_an_unknown_codec_is_not_described() -> None:
    with pytest.raises(ConfigError, match="unknown codec 'int9'"):
        described(NewRun("one", preset="xxs", rounds=Rounds(push_codec="int9")))


def test_a_job_is_planned_for_the_members_that_it_waits_for_and_the_upload_that_it_may_use() -> None:
    new_run = NewRun("planned", preset="xxs", rounds=Rounds(push_codec="topk64-2bit", update_codec="int8", local_steps=10))

    free = plan_job(RunChoice(new_run=new_run), Peer(), Training())
    limited = plan_job(RunChoice(new_run=new_run), Peer(limits=Limits(upload="1mbit")), Training(wait_for_members=5))

    assert [row.n_members for row in free.traffic] == [2, 10, 100] and free.traffic[0].send_s is None
    (row,) = limited.traffic
    assert row.n_members == 5 and row.send_s == pytest.approx(8 * row.sent_bytes / 1e6)
    assert row.sent_bytes_per_token == pytest.approx(row.sent_bytes / (10 * 4 * 64))
    assert row.sent_bytes == pytest.approx(0.8 * (limited.push_bytes_per_round + limited.update_bytes_per_round), rel=0.05)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.05, "50 ms"),
        (1.2, "1.20 s"),
        (100, "100 s"),
        (754, "12.6 min"),
        (11_376, "3.16 h"),
        (1e7, "116 days"),
        (float("inf"), "-"),
    ],
)
def test_durations_are_told_in_their_unit(seconds: float, text: str) -> None:
    assert human.duration_text(seconds) == text
