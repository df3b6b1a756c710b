"""What a user may set: read from TOML, refused with the field's name."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.config import MAX_CONFIG_BYTES, Job, NewRun, convert, new_run_of, read_toml
from legion_p2p.errors import ConfigError, UsageError


def written(folder: Path, text: str | bytes) -> str:
    path = folder / "job.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def test_a_job_is_read_from_toml(tmp_path: Path) -> None:
    path = written(tmp_path, 'run = "tiny"\nsteps = 7\ninitial_peers = ["/ip4/10.0.0.1/tcp/1/p2p/x"]\nminutes = 2\n')

    job = read_toml(path, Job)

    assert job == Job(run="tiny", steps=7, initial_peers=("/ip4/10.0.0.1/tcp/1/p2p/x",), minutes=2.0)


def test_a_new_run_is_read_with_its_tables(tmp_path: Path) -> None:
    path = written(tmp_path, 'name = "tiny"\n[model]\nn_embd = 32\n[round]\nlocal_steps = 3\n[inner]\nlearning_rate = 1e-3\n')

    new_run = read_toml(path, NewRun)

    assert (new_run.name, new_run.model, new_run.round.local_steps, new_run.inner.learning_rate) == (
        "tiny",
        {"n_embd": 32},
        3,
        1e-3,
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps = -1", r"steps"),
        ('steps = "many"', r"steps"),
        ("stepz = 1", r"stepz"),
        ("minutes = nan", r"minutes"),
        ("weight = inf", r"weight"),
        ("weight = 1.1e9", r"weight"),
        ('[new_run]\nname = "two words"', r"new_run.name"),
        ('[new_run]\nname = "tiny"\n[new_run.round]\nquorum = 0', r"new_run.round.quorum"),
        ("[new_run]", r"name"),
        ("steps = ", r"Invalid value"),
        (b"run = '\xff'", r"UTF-8"),
    ],
)
def test_what_is_not_allowed_is_refused_naming_the_file_and_the_field(text: str | bytes, told: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)

    with pytest.raises(ConfigError, match=told) as refused:
        read_toml(path, Job)

    assert str(refused.value).startswith(path)
    assert isinstance(refused.value, UsageError)


def test_a_file_that_is_not_there_or_too_large_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        read_toml(str(tmp_path / "none.toml"), Job)
    with pytest.raises(ConfigError, match=f"at most {MAX_CONFIG_BYTES}"):
        read_toml(written(tmp_path, "#" * (MAX_CONFIG_BYTES + 1)), Job)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_toml(str(tmp_path), Job)


def test_the_largest_file_is_read(tmp_path: Path) -> None:
    assert read_toml(written(tmp_path, "#" * MAX_CONFIG_BYTES), Job) == Job()


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert read_toml(written(tmp_path, ""), Job) == Job()


@given(st.binary(max_size=60))
def test_any_file_is_read_or_refused_with_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = written(tmp_path_factory.getbasetemp(), text)

    try:
        job = read_toml(path, Job)
    except ConfigError as refused:
        assert str(refused).startswith(path)
    else:
        assert isinstance(job, Job)


@given(
    st.dictionaries(
        st.sampled_from(Job.__struct_fields__), st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    )
)
def test_what_is_accepted_is_within_bounds(data: dict) -> None:
    try:
        job = convert(data, Job)
    except ConfigError:
        return

    assert job.steps >= 0 and job.seed <= 1 << 62
    assert 0 <= job.weight <= 1e9 and job.minutes >= 0 and not math.isnan(job.eval_every_s)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_file_that_an_editor_on_windows_saved_is_read(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path, "run = 'stories'\r\nsteps = 3\r\n".encode(encoding))

    assert read_toml(path, Job) == Job(run="stories", steps=3)


def test_a_configuration_is_read_from_the_home_folder_and_from_a_name_with_blanks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my job.toml").write_text("steps = 3")

    assert read_toml("~/my job.toml", Job).steps == 3


def test_a_rule_that_does_not_go_with_the_codecs_that_the_links_choose_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"round.aggregation 'median'.*'topk512-2bit'"):
        new_run_of({"name": "tiny", "links": "cable", "round": {"aggregation": "median"}})

    assert new_run_of({"name": "tiny", "links": "lan", "round": {"aggregation": "median"}}).round.rule() == "median"
