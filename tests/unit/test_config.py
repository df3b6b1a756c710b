"""What a user may set: one way for all values, refused with the field's name; and what a new run comes to."""

import math
import typing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.config import (
    MAX_CONFIG_BYTES,
    Inner,
    Limits,
    Manners,
    NewRun,
    Peer,
    Rounds,
    RunChoice,
    Store,
    Training,
    new_run_of,
    read_new_run,
    read_table,
)
from legion_p2p.config.fields import docs_of, field_value, hints_of, struct_of
from legion_p2p.config.forms import MAX_SHOWN_CHARS, in_short
from legion_p2p.config.new_run import chosen_inner, chosen_rounds
from legion_p2p.core.identity import Identity
from legion_p2p.core.presets import DEFAULT_LINKS, LINKS
from legion_p2p.core.round_spec import RoundSpec, is_sparse
from legion_p2p.core.run import InnerSpec
from legion_p2p.errors import ConfigError, UsageError

PUBLIC = (Peer, Limits, Manners, Store, NewRun, Rounds, Inner, RunChoice, Training)
ADDRESS = f"/ip4/10.0.0.1/tcp/1/p2p/{Identity(b'1' * 32).peer_id}"


def written(folder: Path, text: str | bytes) -> str:
    path = folder / "spec.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


# values


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Limits(upload=10_000_000), "Limits(upload=...): 10000000 is not allowed: give a number and bit, kbit"),
        (lambda: Limits(upload="10"), "Limits(upload=...): rate '10': allowed is a number and bit, kbit, mbit or gbit"),
        (lambda: Limits(download=None), "Limits(download=...): None is not allowed"),
        (lambda: Limits(quiet_hours="22-7"), "Limits(quiet_hours=...): quiet hours '22-7': allowed is HH:MM-HH:MM"),
        (lambda: Limits(netem="cabel"), "Limits(netem=...): link 'cabel': 'cabel' is not known"),
        (lambda: Store(3), "Store(path=...): 3 is not allowed: give the path of a folder"),
        (lambda: Store(keep="all"), "Store(keep=...): 'all' is no policy"),
        (lambda: Store(max_gb=-1), "Store(max_gb=...): -1 is not allowed: give a number from 0"),
        (lambda: Store(checkpoint_every_s=0), "Store(checkpoint_every_s=...): 0 is not allowed"),
        (lambda: Peer(identity=b"key"), "Peer(identity=...): b'key' is not allowed: give the path of a key file"),
        (lambda: Peer(listen="here"), "Peer(listen=...): 'here' cannot be used"),
        (lambda: Peer(listen=None), "Peer(listen=...): None is not allowed: give addresses such as /ip4/0.0.0.0/tcp/4710"),
        (lambda: Peer(announce=[4710]), "Peer(announce=...): [4710] is not allowed"),
        (lambda: Peer(weight=math.nan), "Peer(weight=...): nan is not allowed: give a number from 0 to 1,000,000,000 or auto"),
        (lambda: Peer(weight="heavy"), "Peer(weight=...): 'heavy' is not allowed"),
        (lambda: Peer(region="here and there"), "Peer(region=...): 'here and there' is not allowed: give a label of letters"),
        (lambda: Peer(region="r" * 65), "at most 64"),
        (lambda: Peer(status="yes"), "Peer(status=...): 'yes' is not allowed: give true or false"),
        (lambda: Peer(limits="10mbit"), "Peer(limits=...): '10mbit' is not allowed: give a Limits(...)"),
        (lambda: Peer(store="checkpoints"), "Peer(store=...): 'checkpoints' is not allowed: give a Store(...)"),
        (lambda: Peer(on_event=3), "Peer(on_event=...): 3 is not allowed: give a function that takes an Event"),
        (lambda: NewRun("my run"), "NewRun(name=...): run name 'my run': allowed are letters, digits, and . _ / -"),
        (lambda: NewRun("bafkrei" + "a" * 52), "looks like a run's id"),
        (
            lambda: NewRun("x", links="cabel"),
            "NewRun(links=...): 'cabel' is not allowed: give one of auto, cable, dsl, fibre, lan",
        ),
        (lambda: NewRun("x", rounds={"local_steps": 3}), "NewRun(rounds=...): {'local_steps': 3} is not allowed: give a Rounds"),
        (lambda: Rounds(local_steps=0), "Rounds(local_steps=...): 0 is not allowed: give a whole number from 1 to 100,000"),
        (lambda: Rounds(local_steps="5"), "Rounds(local_steps=...): '5' is not allowed"),
        (lambda: Rounds(quorum=2), "Rounds(quorum=...): 2 is not allowed: give a number above 0 and at most 1"),
        (lambda: Rounds(push_codecs="int4"), "Rounds(push_codecs=...): 'int4' is not allowed: give a list"),
        (lambda: Inner(learning_rate=-1.0), "Inner(learning_rate=...): -1.0 is not allowed"),
        (lambda: RunChoice("x", initial_peers=None), "RunChoice(initial_peers=...): None is not allowed: give addresses such as"),
        (lambda: RunChoice("x", ["/ip4/10.0.0.1/tcp/1"]), "the peer id is missing"),
        (lambda: RunChoice(3), "RunChoice(run=...): 3 is not allowed: give the name or id of a run"),
        (lambda: RunChoice(), "give either the run to join or the one to create"),
        (lambda: Training(steps=True), "Training(steps=...): True is not allowed: give a whole number of at least 0"),
        (lambda: Training(minutes=math.inf), "Training(minutes=...): inf is not allowed"),
    ],
)
def test_a_wrong_value_is_refused_in_the_line_that_has_it(make: Any, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        make()

    assert told in str(refused.value)


def test_what_people_write_instead_of_a_value_is_taken_where_it_is_clear(tmp_path: Path) -> None:
    assert Peer(listen="/ip4/127.0.0.1/tcp/0").listen == ("/ip4/127.0.0.1/tcp/0",)
    assert Peer(listen=["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0"]).listen == ("/ip4/127.0.0.1/tcp/0",)
    assert RunChoice("x", ADDRESS).initial_peers == (ADDRESS,)
    assert RunChoice("x", (address for address in [ADDRESS])).initial_peers == (ADDRESS,)
    assert Store(tmp_path).path == str(tmp_path) and Store("none").path == ""
    assert Peer(identity=tmp_path / "key").identity == str(tmp_path / "key") and Peer(identity="none").identity == ""
    assert Rounds(push_codecs=["int4"]).push_codecs == ("int4",)
    assert Rounds(local_steps=np.int64(3)).local_steps == 3 and type(Rounds(local_steps=np.int64(3)).local_steps) is int
    assert Peer(weight=torch.tensor(0.5)).weight == 0.5
    key = Identity.generate()
    assert Peer(identity=key).identity is key


def test_a_value_that_is_changed_is_checked_again() -> None:
    with pytest.raises(UsageError, match="upload"):
        msgspec.structs.replace(Limits(), upload="fast")


@pytest.mark.parametrize("kind", PUBLIC)
def test_every_field_says_what_it_is_for(kind: type[msgspec.Struct]) -> None:
    docs = docs_of(kind)

    assert set(docs) == set(kind.__struct_fields__)
    assert all(doc[0].isupper() or doc.startswith("step()") for doc in docs.values())
    assert all(doc.endswith((".", "]")) for doc in docs.values())


@pytest.mark.parametrize(("choices", "spec"), [(Rounds, RoundSpec), (Inner, InnerSpec)])
def test_what_can_be_chosen_of_a_run_is_what_its_specification_has(choices: Any, spec: Any) -> None:
    assert set(choices.__struct_fields__) == set(spec.__struct_fields__)
    assert all(getattr(choices(), field) is None for field in choices.__struct_fields__)
    for field in choices.__struct_fields__:
        assert hints_of(choices)[field] == typing.get_type_hints(spec)[field] | None


@pytest.mark.parametrize(
    "given", [b"x" * 10**6, [1.5] * 10**6, {i: i for i in range(10**5)}, torch.zeros(10**6), "x" * 10**6, int, object()]
)
def test_a_message_shows_a_value_in_short(given: object) -> None:
    assert len(in_short(given)) <= MAX_SHOWN_CHARS + 3


@given(
    st.sampled_from([(kind, field) for kind in PUBLIC for field in kind.__struct_fields__]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
    | st.lists(st.integers() | st.text(max_size=3), max_size=3) | st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.booleans(),
)  # fmt: skip
def test_anything_is_taken_or_refused_with_a_usage_error_that_shows_it(
    where: tuple[type[msgspec.Struct], str], value: object, is_text: bool
) -> None:
    try:
        taken = field_value(*where, value, is_text=is_text)
    except UsageError as refused:
        assert len(str(refused)) < 2000
    else:
        assert taken == field_value(*where, taken)  # what was taken once is taken again, unchanged


# files


def test_a_new_run_is_read_with_its_tables(tmp_path: Path) -> None:
    path = written(tmp_path, 'name = "tiny"\n[model]\nn_embd = 32\n[rounds]\nlocal_steps = 3\n[inner]\nlearning_rate = 1e-3\n')

    assert read_new_run(path) == NewRun(
        "tiny", model={"n_embd": 32}, rounds=Rounds(local_steps=3), inner=Inner(learning_rate=1e-3)
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('name = "x"\nseed = -1', r"seed: -1 is not allowed: give a whole number from 0"),
        ('name = "x"\nseed = "many"', r"seed: 'many' is not allowed"),
        ('name = "x"\nsead = 1', r"sead: nothing of this name can be set; did you mean seed\?"),
        ('name = "two words"', r"name: run name 'two words'"),
        ('name = "x"\n[rounds]\nquorum = 0', r"rounds.quorum: 0 is not allowed"),
        ('name = "x"\n[rounds]\nnorm_cap = nan', r"rounds.norm_cap: nan is not allowed"),
        ('name = "x"\nrounds = 3', r"rounds: 3 stands where a table must be"),
        ('name = "x"\n[round]\nquorum = 1', r"round: this is called rounds now"),
        ('name = "x"\n[rounds]\ncross_every = 1', r"rounds.cross_every: this is called sync_every now"),
        ('name = "x"\n[model]\nn_embd = []', r"model: .* is not allowed: give a table"),
        ("seed = 1", r"name is missing"),
        ("seed = ", r"Invalid value"),
        (b"name = '\xff'", r"UTF-8"),
    ],
)
def test_what_is_not_allowed_is_refused_naming_the_file_and_the_field(text: str | bytes, told: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)

    with pytest.raises(ConfigError, match=told) as refused:
        read_new_run(path)

    assert path in str(refused.value)


def test_a_file_that_is_not_there_or_too_large_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        read_table(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match=r"spec\.toml.*at most"):
        read_table(written(tmp_path, "#" * (MAX_CONFIG_BYTES + 1)))
    with pytest.raises(ConfigError, match=str(tmp_path)):
        read_table(str(tmp_path))


def test_the_largest_file_is_read(tmp_path: Path) -> None:
    assert read_table(written(tmp_path, "#" * MAX_CONFIG_BYTES)) == {}


@given(st.binary(max_size=60))
def test_any_file_is_read_or_refused_with_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    path = written(tmp_path_factory.getbasetemp(), text)

    try:
        new_run = read_new_run(path)
    except ConfigError as refused:
        assert path in str(refused)
    else:
        assert isinstance(new_run, NewRun)


@given(
    st.dictionaries(
        st.sampled_from(Training.__struct_fields__), st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    )
)
def test_what_is_accepted_is_within_bounds(data: dict) -> None:
    try:
        training = struct_of(Training, data)
    except ConfigError:
        return

    assert training.steps >= 0 and 0 <= training.seed <= 1 << 62
    assert 0 <= training.minutes < math.inf and 0 <= training.eval_every_s < math.inf


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_file_that_an_editor_on_windows_saved_is_read(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path, "name = 'stories'\r\nseed = 3\r\n".encode(encoding))

    assert read_new_run(path) == NewRun("stories", seed=3)


def test_a_configuration_is_read_from_the_home_folder_and_from_a_name_with_blanks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my job.toml").write_text("steps = 3")

    assert read_table("~/my job.toml") == {"steps": 3}


# what a new run comes to


def test_what_is_left_open_follows_from_the_links() -> None:
    cable = chosen_rounds(Rounds(local_steps=7), "cable")

    assert cable.local_steps == 7 and cable.push_codec == LINKS["cable"]["round"]["push_codec"]


def test_a_run_of_which_nothing_is_said_is_the_same_from_python_and_from_the_command() -> None:
    said_nothing = chosen_rounds(Rounds(), NewRun("x").links)

    assert NewRun("x").links == DEFAULT_LINKS == "auto"
    assert (said_nothing.push_codec, said_nothing.update_codec, said_nothing.restore_length) == ("int8", "int8", 1.0)
    assert said_nothing.ramp_from < said_nothing.local_steps and said_nothing.ramp_steps > 0
    assert any(is_sparse(name) for name in said_nothing.push_codecs)  # for connections that carry no dense push


def test_a_synchronous_run_is_data_parallelism_unless_more_is_said() -> None:
    plain = chosen_rounds(Rounds(synchronous=True), "auto")
    lengthened = chosen_rounds(Rounds(synchronous=True, restore_length=1.0), "auto")

    assert (plain.restore_length, plain.ramp_steps) == (0.0, 0)
    assert lengthened.restore_length == 1.0


def test_local_steps_that_are_given_hold_from_the_start_and_an_outer_step_that_is_given_is_the_only_one() -> None:
    assert chosen_rounds(Rounds(local_steps=50), "auto").ramp_steps == 0
    assert chosen_rounds(Rounds(local_steps=50, ramp_steps=100), "auto").ramp_steps == 100
    assert chosen_rounds(Rounds(outer="nesterov", outer_learning_rate=0.7), "auto").restore_length == 0.0


def test_a_rule_for_dense_pushes_takes_the_dense_codecs_of_the_default() -> None:
    chosen = chosen_rounds(Rounds(aggregation="median"), "auto")

    assert chosen.rule() == "median" and chosen.push_codecs == ("int4",)


def test_a_push_codec_that_is_given_is_the_only_one_and_is_meant_for_updates_too() -> None:
    alone = chosen_rounds(Rounds(push_codec="fp16"), "cable")
    both = chosen_rounds(Rounds(push_codec="fp16", update_codec="int4", push_codecs=("int8",)), "cable")
    updates = chosen_rounds(Rounds(update_codec="int4"), "cable")

    assert (alone.push_codec, alone.push_codecs, alone.update_codec, alone.update_codecs) == ("fp16", (), "fp16", ())
    assert (both.push_codec, both.push_codecs, both.update_codec, both.update_codecs) == ("fp16", ("int8",), "int4", ())
    assert (updates.update_codec, updates.update_codecs) == ("int4", ())
    assert updates.push_codecs == tuple(LINKS["cable"]["round"]["push_codecs"])


def test_the_rates_of_one_optimizer_are_not_taken_for_another() -> None:
    assert chosen_inner(Inner(), "cable").optimizer == "muon"
    assert chosen_inner(Inner(batch=2), "cable").learning_rate == LINKS["cable"]["inner"]["learning_rate"]
    assert chosen_inner(Inner(optimizer="adamw"), "cable") == InnerSpec()


def test_a_rule_that_does_not_go_with_the_codecs_that_the_links_choose_is_refused() -> None:
    new_run = new_run_of({"name": "tiny", "links": "cable", "rounds": {"aggregation": "median"}})

    with pytest.raises(UsageError, match=r"aggregation 'median'.*'topk512-2bit'"):
        chosen_rounds(new_run.rounds, new_run.links)

    assert chosen_rounds(new_run.rounds, "lan").rule() == "median"


def test_the_best_model_cannot_be_kept_where_none_is_evaluated() -> None:
    with pytest.raises(UsageError, match="keep_best: say with eval_every_s"):
        Training(keep_best=True)

    assert Training(keep_best=True, eval_every_s=60).keep_best
