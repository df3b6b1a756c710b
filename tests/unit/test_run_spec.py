"""What a run is: signed, immutable, known by the id of its bytes."""

import base64
import hashlib
import math
import tracemalloc
from random import Random
from typing import get_args

import base58
import msgpack
import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from legion_p2p.core.admission import MAX_ADMINS, MAX_ADMITTED
from legion_p2p.core.identity import Identity
from legion_p2p.core.plan import MAX_PARAMS, ParamSpec
from legion_p2p.core.round_spec import COORDINATE_RULES, DEFAULT_RULE, RENAMED_ROUND_FIELDS, AggregationRule, RoundSpec
from legion_p2p.core.run import (
    MAX_RUN_NAME_CHARS,
    MAX_SPEC_BYTES,
    MAX_SPEC_TEXT_BYTES,
    InnerSpec,
    RunName,
    RunSpec,
    SignedSpec,
    announce_topic,
    looks_like_run_id,
    name_key,
    open_spec,
    run_id,
    run_key,
    sign_spec,
)
from legion_p2p.core.wire import SpecFound, encode_checked
from legion_p2p.errors import DecodeError, SignatureError, UsageError

FOUNDER, OTHER = Identity(b"f" * 32), Identity(b"o" * 32)
PARAMS = (ParamSpec("w", (3, 4)), ParamSpec("b", (4,)))


def spec_of(**changes: object) -> RunSpec:
    return msgspec.structs.replace(RunSpec("tiny", FOUNDER.peer_id, PARAMS, nonce="n"), **changes)


def signed_as_is(fields: dict, identity: Identity = FOUNDER) -> SignedSpec:
    """What a stranger may sign: anything."""
    body = msgpack.packb(fields)
    return SignedSpec(body, identity.sign(body))


def fields_of(spec: RunSpec) -> dict:
    return msgspec.to_builtins(spec)


@pytest.mark.parametrize(("old", "new"), sorted(RENAMED_ROUND_FIELDS.items()))
def test_a_specification_of_an_older_version_is_told_the_new_name_of_its_field(old: str, new: str) -> None:
    fields = fields_of(spec_of())
    fields["round"][old] = fields["round"].pop(new)

    with pytest.raises(DecodeError, match=f"{old} is called {new} now"):
        open_spec(signed_as_is(fields))


def test_it_opens_as_it_was_signed() -> None:
    spec = spec_of(round=RoundSpec(local_steps=3, push_codec="fp32"), model={"n_embd": 64, "bias": False})

    assert open_spec(sign_spec(spec, FOUNDER)) == spec


def test_a_sharded_run_has_no_target_in_tokens_because_nobody_counts_them() -> None:
    fields = {"sharding": "full", "inner": InnerSpec(clip=0.0), "round": RoundSpec(push_codec="fp32", update_codec="fp32")}

    sign_spec(spec_of(**fields, target_steps=10), FOUNDER)
    with pytest.raises(UsageError, match="target_tokens"):
        sign_spec(spec_of(**fields, target_tokens=10), FOUNDER)


def test_regions_of_a_sharded_run_have_no_center_because_no_member_holds_a_copy_for_all() -> None:
    rounds = RoundSpec(push_codec="fp32", update_codec="fp32", sync_rule="center")

    with pytest.raises(UsageError, match="sync_rule"):
        sign_spec(spec_of(sharding="full", round=rounds), FOUNDER)


def test_the_id_is_the_cid_of_the_bytes_and_stays_what_it_is() -> None:
    signed = sign_spec(spec_of(), FOUNDER)

    cid_v1_raw_sha256 = b"\x01\x55\x12\x20" + hashlib.sha256(signed.spec).digest()
    assert run_id(signed) == "b" + base64.b32encode(cid_v1_raw_sha256).decode().lower().rstrip("=")
    assert run_id(SignedSpec(b"", b"")) == "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"  # as in IPFS
    assert looks_like_run_id(run_id(signed))


def test_the_same_description_with_another_nonce_is_another_run() -> None:
    ids = {run_id(sign_spec(spec_of(nonce=nonce), FOUNDER)) for nonce in "ab"}

    assert len(ids) == 2


def test_the_id_does_not_depend_on_the_signature() -> None:
    signed = sign_spec(spec_of(), FOUNDER)

    assert run_id(SignedSpec(signed.spec, b"")) == run_id(signed)


def test_only_the_founder_signs() -> None:
    with pytest.raises(UsageError, match="only the creator"):
        sign_spec(spec_of(), OTHER)


def test_what_somebody_else_signed_is_refused() -> None:
    body = sign_spec(spec_of(), FOUNDER).spec

    for signature in (OTHER.sign(body), b"", b"x" * 64, b"x" * 63):
        with pytest.raises(SignatureError):
            open_spec(SignedSpec(body, signature))


def test_a_single_changed_byte_is_refused() -> None:
    signed = sign_spec(spec_of(), FOUNDER)

    for i in range(len(signed.spec)):
        changed = bytearray(signed.spec)
        changed[i] ^= 1
        with pytest.raises(DecodeError):
            open_spec(SignedSpec(bytes(changed), signed.signature))


def test_one_that_is_too_large_is_neither_signed_nor_packed_by_others() -> None:
    # names that cannot be packed: random ones
    random = Random(1)
    many = tuple(ParamSpec(f"{random.getrandbits(1100):0275x}", (1,)) for i in range(8_000))

    with pytest.raises(UsageError, match=f"at most {MAX_SPEC_BYTES}: shorten"):
        sign_spec(spec_of(params=many), FOUNDER)
    even_more = tuple(ParamSpec("p" * 290 + f"{i}", (1,)) for i in range(MAX_PARAMS))
    with pytest.raises(UsageError, match=r"at most (8388608|20000)"):
        sign_spec(spec_of(params=(*even_more, *even_more)), FOUNDER)


def test_nineteen_thousand_parameters_with_long_names_are_a_run() -> None:
    names = (
        f"model.layers.{i // 128:03}.mixture.experts.{i % 128:03}.{['gate', 'up', 'down'][i % 3]}.weight" for i in range(19_000)
    )
    spec = spec_of(params=tuple(ParamSpec(name.ljust(60, "_"), (256, 64)) for name in names))

    signed = sign_spec(spec, FOUNDER)

    assert len(msgpack.packb(fields_of(spec))) > 1_500_000
    assert len(signed.spec) < MAX_SPEC_BYTES
    assert open_spec(signed) == spec
    assert SignedSpec(bytes(signed.spec), signed.signature) == signed
    encode_checked(SpecFound(signed.spec, signed.signature))


@pytest.mark.parametrize(
    "packed",
    [
        zstandard.ZstdCompressor().compress(b"\0" * (MAX_SPEC_TEXT_BYTES + 1)),
        zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * (1 << 26)),
        zstandard.ZstdCompressor().compress(b"\0" * 1000)[:-3],
        zstandard.ZstdCompressor().compress(b"\0" * 1000) + b"more",
        zstandard.FRAME_HEADER,
    ],
)
def test_a_packed_one_takes_no_more_memory_than_a_specification_may(packed: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(DecodeError, match="run specification"):
        open_spec(SignedSpec(packed, FOUNDER.sign(packed)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2 * MAX_SPEC_TEXT_BYTES


@pytest.mark.parametrize(
    "changes",
    [
        {"round": RoundSpec(local_steps=10**9)},
        {"round": RoundSpec(quorum=math.nan)},
        {"seed": -1},
        {"data": "d" * 201},
        {"params": (ParamSpec("", (1,)),)},
        {"params": (ParamSpec("n" * 301, (1,)),)},
        {"name": "two words"},
    ],
)
def test_what_others_would_refuse_is_refused_before_it_is_signed(changes: dict) -> None:
    with pytest.raises(UsageError, match="run specification"):
        sign_spec(spec_of(**changes), FOUNDER)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "x" * (MAX_RUN_NAME_CHARS + 1)),
        ("name", "two words"),
        ("name", "-begins-with-a-dash"),
        ("name", "newline\n"),
        ("name", "b" + "afkrei" + "a" * 52),
        ("founder", "nobody"),
        ("founder", "x" * 65),
        ("params", []),
        ("params", [{"name": "w", "shape": [-1]}]),
        ("params", [{"name": "w", "shape": [1] * 9}]),
        ("params", [{"name": "w", "shape": [0]}]),
        ("params", [{"name": "", "shape": [1]}]),
        ("params", [{"name": "w", "shape": [1 << 40, 1 << 40]}]),
        ("params", [{"name": "w", "shape": [1], "dtype": "int"}]),
        ("round", {"quorum": 0}),
        ("round", {"quorum": float("nan")}),
        ("round", {"outer_learning_rate": float("nan")}),
        ("round", {"outer_learning_rate": float("inf")}),
        ("round", {"norm_cap": -1.0}),
        ("round", {"weight_cap": 0}),
        ("round", {"hostile_share": 0.5}),
        ("round", {"aggregation": "best"}),
        ("round", {"local_steps": 0}),
        ("round", {"shard_elements": (1 << 23) + 1}),
        ("round", {"surprise": 1}),
        ("inner", {"beta1": 1.0}),
        ("model", {"nested": {"a": 1}}),
        ("model", {str(i): i for i in range(65)}),
        ("seed", -1),
        ("nonce", "x" * 65),
        ("surprise", 1),
    ],
)
def test_what_does_not_fit_is_refused_though_it_is_signed(field: str, value: object) -> None:
    with pytest.raises(DecodeError):
        open_spec(signed_as_is({**fields_of(spec_of()), field: value}))


@pytest.mark.parametrize("rule", COORDINATE_RULES)
@pytest.mark.parametrize(
    "codecs", [{"push_codec": "topk64-2bit"}, {"push_codecs": ("int4", "topk128-2bit")}, {"warmup_codec": "topk8-8bit"}]
)
def test_a_rule_that_looks_at_coordinates_is_refused_where_pushes_may_be_sparse(rule: str, codecs: dict) -> None:
    spec = spec_of(round=RoundSpec(aggregation=rule, **codecs))

    with pytest.raises(UsageError, match=rf"round.aggregation '{rule}' looks at each coordinate alone.*topk"):
        sign_spec(spec, FOUNDER)
    with pytest.raises(DecodeError, match=f"'{rule}'"):
        open_spec(signed_as_is(fields_of(spec)))


@pytest.mark.parametrize("rule", get_args(AggregationRule))
def test_every_rule_goes_with_dense_pushes_and_sparse_updates(rule: str) -> None:
    spec = spec_of(round=RoundSpec(aggregation=rule, push_codec="int4", update_codec="topk64-2bit"))

    assert open_spec(sign_spec(spec, FOUNDER)).round.rule() == rule


def test_unless_it_says_otherwise_a_synchronous_run_averages_exactly_and_others_are_on_their_guard() -> None:
    assert RoundSpec(synchronous=True).rule() == "mean"
    assert RoundSpec(synchronous=True, aggregation="krum").rule() == "krum"
    assert RoundSpec().rule() == DEFAULT_RULE != "mean"


@pytest.mark.parametrize(
    "fields",
    [
        {"admission": "allow-list"},
        {"admitted": (OTHER.peer_id,)},
        {"admins": (OTHER.peer_id,)},
        {"admission": "token", "admitted": (OTHER.peer_id,)},
        {"admission": "token", "admins": ("nobody",)},
        {"admission": "allow-list", "admitted": (OTHER.peer_id, "nobody")},
    ],
)
def test_who_may_take_part_is_said_without_contradiction(fields: dict) -> None:
    spec = spec_of(**fields)

    with pytest.raises(UsageError, match=r"admi|nobody"):
        sign_spec(spec, FOUNDER)
    with pytest.raises(DecodeError, match=r"admi|nobody"):
        open_spec(signed_as_is(fields_of(spec)))


def test_lists_of_peers_are_bounded() -> None:
    for field, most in (("admins", MAX_ADMINS), ("admitted", MAX_ADMITTED)):
        with pytest.raises(DecodeError, match="length"):
            open_spec(signed_as_is({**fields_of(spec_of()), field: ["x"] * (most + 1)}))


def test_a_private_run_opens_as_it_was_signed() -> None:
    for fields in ({"admission": "token", "admins": (OTHER.peer_id,)}, {"admission": "allow-list", "admitted": (OTHER.peer_id,)}):
        spec = spec_of(**fields)

        assert open_spec(sign_spec(spec, FOUNDER)) == spec


@pytest.mark.parametrize("missing", ["name", "founder", "params"])
def test_a_missing_field_is_refused(missing: str) -> None:
    fields = fields_of(spec_of())
    del fields[missing]

    with pytest.raises(DecodeError):
        open_spec(signed_as_is(fields))


def test_text_that_is_not_unicode_is_refused() -> None:
    body = sign_spec(spec_of(), FOUNDER).spec.replace(b"\xa4tiny", b"\xa4ti\xff\xfe")

    with pytest.raises(DecodeError):
        open_spec(SignedSpec(body, FOUNDER.sign(body)))


def test_a_name_that_looks_like_an_id_is_not_signed_either() -> None:
    taken = run_id(sign_spec(spec_of(), FOUNDER))

    with pytest.raises(UsageError, match="looks like"):
        sign_spec(spec_of(name=taken), FOUNDER)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,20}", fullmatch=True))
def test_ordinary_names_are_allowed_and_never_look_like_an_id(name: str) -> None:
    assert msgspec.convert(name, RunName) == name
    assert not looks_like_run_id(name)


@given(st.text(max_size=30))
def test_a_name_that_is_allowed_is_plain_ascii_without_blanks(name: str) -> None:
    try:
        msgspec.convert(name, RunName)
    except msgspec.ValidationError:
        return
    assert name.isascii() and name and not any(c.isspace() or not c.isprintable() for c in name)


def test_keys_and_topic_of_two_runs_differ() -> None:
    assert len({key(run) for key in (name_key, run_key, announce_topic) for run in ("a", "b")}) == 6


@given(st.binary(max_size=300), st.binary(max_size=70))
def test_random_bytes_never_raise_anything_else_than_decode_error(body: bytes, signature: bytes) -> None:
    with pytest.raises(DecodeError):
        open_spec(SignedSpec(body, signature))


def test_one_key_has_one_peer_id() -> None:
    """base58 reads over blanks at the end: were they allowed, one key could be any number of founders and members."""
    assert base58.b58decode(FOUNDER.peer_id + " ") == base58.b58decode(FOUNDER.peer_id)

    for alias in (FOUNDER.peer_id + " ", FOUNDER.peer_id + "\n", "1" + FOUNDER.peer_id):
        with pytest.raises(DecodeError, match="peer id"):
            open_spec(signed_as_is({**fields_of(spec_of()), "founder": alias}))
