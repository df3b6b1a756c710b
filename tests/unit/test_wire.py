"""Every message: there and back, as plain MessagePack, within bounds; and nothing but DecodeError for what is none."""

import ast
from contextlib import suppress

import msgpack
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from legion_p2p.core import wire
from legion_p2p.core.announcement import MAX_ANNOUNCEMENT_BYTES, Announcement, open_signed, sign
from legion_p2p.core.distance import MAX_RATE
from legion_p2p.core.identity import Identity
from legion_p2p.core.known_members import ROW_BYTES
from legion_p2p.core.manifest import MAX_BLOCK_BYTES
from legion_p2p.core.messages import base, blocks, members, regions, sharding, shards
from legion_p2p.core.messages.evidence import MAX_SHOWN_HEADER_BYTES
from legion_p2p.core.messages.regions import MAX_NAMED_BY_ENVOY
from legion_p2p.core.plan import MAX_SHARDS, ParamSpec
from legion_p2p.core.run import MAX_SPEC_BYTES, RunSpec, SignedSpec, open_spec, sign_spec
from legion_p2p.core.update_norms import MAX_KNOWN
from legion_p2p.core.wire import (
    MAX_BUSY_MS,
    MAX_CHECKPOINTS,
    MAX_COMPARED,
    MAX_EXCHANGED,
    MAX_GET_CIDS,
    MAX_HAS_CIDS,
    MAX_INCLUDED,
    MAX_KNOWN_MEMBERS,
    MAX_NORM,
    MAX_PAYLOAD_BYTES,
    MAX_REASON_CHARS,
    MAX_STEP_MEMBERS,
    MAX_UNIT_PARTS,
    MAX_UPDATES,
    OTHER,
    UNKNOWN,
    Accusation,
    AncestryQuery,
    AncestryReply,
    Answers,
    AppointUnit,
    AskNorms,
    AskUnit,
    Blocks,
    Busy,
    Checkpoints,
    Cosign,
    Cosigned,
    Done,
    Equivocation,
    Exchange,
    Exchanged,
    Failure,
    GetAnswers,
    GetBlocks,
    GetCheckpoints,
    GetInput,
    GetMarks,
    GetRepresentative,
    GetRuns,
    GetShard,
    GetSpec,
    GetUpdates,
    GetVersion,
    HandoverPart,
    HasBlocks,
    Held,
    HeldBlocks,
    Inclusion,
    InputPart,
    Made,
    MakeStep,
    Marks,
    Message,
    Miscount,
    NotOwner,
    Omission,
    Ping,
    PingFor,
    PullUnit,
    Push,
    PushClaim,
    Pushed,
    PushGradient,
    PutUnit,
    Receipt,
    RelayRequest,
    ReplicateMove,
    ReplicateStep,
    RepresentativeFound,
    RunsFound,
    RunSummary,
    ShardState,
    SignedHeader,
    SpecFound,
    State,
    SyncReply,
    SyncRequest,
    UnitElsewhere,
    UnitHeld,
    UnitNorms,
    UnitStepped,
    UnitWeights,
    Unknown,
    Update,
    UpdateHeader,
    Updates,
    UpdatesMade,
    decode_header,
    decode_request,
    encode,
    encode_checked,
)
from legion_p2p.errors import DecodeError, SelfCheckError
from tests import replies
from tests.package_trees import PACKAGE, trees
from tests.replies import decode_reply

PEER = Identity(b"p" * 32)
DIGEST = b"d" * 32
ONE_UPDATE = Update(b"header", b"s" * 64, b"payload")
REQUESTS: list[Message] = [
    GetSpec("run"),
    GetRuns(),
    GetAnswers("run", DIGEST, 3),
    Exchange("run", (b"one", b"two")),
    Ping("run"),
    PingFor("run", "peer"),
    Accusation("run", "peer", 3),
    Push("run", 1, 2, 3, 4, 5, "int8", b"payload"),
    Push("run", 1, 2, 3, 4, 5, "int8", b"payload", b"s" * 64),
    Miscount("run", SignedHeader(b"one", b"s" * 64), "accuser", b"s" * 64),
    GetInput("run", 1, DIGEST, 4),
    ONE_UPDATE,
    Update(b"header", b"s" * 64, b"payload", "cosigner", b"s" * 64),
    Cosign("run", 1, b"header", b"s" * 64),
    GetUpdates("run", 1, 2, DIGEST, True),
    GetVersion("run", 1),
    GetMarks("run", b"\x03", b"abcd", 1 << 60),
    UpdatesMade("run", (Made(1, 2, 3), Made(2, 3, 4))),
    GetShard("run", 1),
    HandoverPart("run", 1, 2, DIGEST, b"payload"),
    Equivocation("run", SignedHeader(b"one", b"s" * 64), SignedHeader(b"other", b"s" * 64)),
    Omission("run", Receipt("run", 1, "owner", "peer", 3, 2, DIGEST), b"s" * 64, SignedHeader(b"one", b"s" * 64)),
    GetRepresentative("run", "west", 1),
    SyncRequest("run", 1, "west", 3, DIGEST, 0.5, 2.5, False, "int8", b"payload"),
    SyncRequest("run", 1, "west", 3, b"", 0.5, None, True, "bf16", b"payload"),
    RelayRequest("run", 1, 3, "int8", b"payload"),
    HasBlocks((b"c" * 36,)),
    GetCheckpoints("run"),
    AncestryQuery("run", (State(0, 1, b"d" * 32),)),
    GetBlocks((b"c" * 36, b"d" * 36)),
    PullUnit("run", 1, 2, True, "first"),
    PushGradient("run", 1, 2, 3, b"payload"),
    ReplicateMove("run", 1, 2, 3, b"payload"),
    ReplicateStep("run", 1, 2, 3, ("a", "b"), b"payload", True, True),
    MakeStep("run", 1, 2, 3, 0.5),
    AskNorms("run", 1, (2, 3)),
    PutUnit("run", 1, 2, 3, ("a",), 0, 2, b"payload"),
    AppointUnit("run", 1, 2, 3, "owner"),
    AskUnit("run", 1),
]
REPLIES: list[Message] = [
    UnitNorms((0.5, None)),
    RunsFound((RunSummary("stories", "b" * 59, 3),)),
    SpecFound(b"spec", b"s" * 64),
    Exchanged((b"one",)),
    Done(),
    Pushed(7, True),
    Pushed(7, False, DIGEST, b"s" * 64),
    Cosigned(b"s" * 64),
    NotOwner("peer", b"announcement"),
    Held(7, DIGEST),
    Marks(b"r" * 20),
    Updates((ONE_UPDATE, ONE_UPDATE), 7),
    ShardState(1, 2, DIGEST, (Inclusion("peer", 3),), b"payload", True),
    InputPart(b"payload", PushClaim("run", 1, "peer", 2, 3, 4, "int8", DIGEST), b"s" * 64, 2),
    SyncReply(b"payload"),
    Answers(3, 300, b"\x04\x00"),
    SyncReply(b"payload", 0.01),
    Unknown(),
    RepresentativeFound((b"one", b"two"), 0.25),
    HeldBlocks((5, 0)),
    Checkpoints((b"c" * 36,)),
    AncestryReply((0, UNKNOWN, OTHER)),
    Busy(1500),
    Blocks((b"block", b"")),
    UnitHeld("owner", 1, 2, DIGEST, "peer"),
    UnitElsewhere("peer"),
    UnitWeights(1, b"payload"),
    UnitStepped(1, True),
]
HEADER = UpdateHeader("run", 1, 2, DIGEST, DIGEST, "owner", "int8", (Inclusion("a", 1),), (Failure("b", "late"),), 2, 99)
MESSAGES = [*REQUESTS, *REPLIES]


def decode(data: bytes, like: object) -> object:
    if isinstance(like, UpdateHeader):
        return decode_header(data)
    return decode_request(data) if like in REQUESTS else decode_reply(data)


def fields_of(message: object) -> dict:
    return msgpack.unpackb(encode(message))


def name(message: object) -> str:
    return type(message).__name__


def test_all_messages_are_tried_here() -> None:
    defined = {kind for kind in vars(wire).values() if isinstance(kind, type) and issubclass(kind, Message)}
    for module in (base, blocks, members, regions, sharding, shards):
        assert {kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Message)} <= defined

    assert {type(message) for message in MESSAGES} == defined - {Message, wire.Request}
    assert {type(message) for message in REQUESTS} == set(wire.REQUESTS)
    assert {type(message) for message in REPLIES} == set(replies.REPLIES)


@pytest.mark.parametrize("message", [*MESSAGES, HEADER], ids=name)
def test_it_comes_back_as_it_was(message: object) -> None:
    assert decode(encode(message), message) == message


@pytest.mark.parametrize("message", MESSAGES, ids=name)
def test_it_is_a_plain_messagepack_map_with_a_type_and_the_declared_fields(message: Message) -> None:
    read = msgpack.unpackb(encode(message))

    assert read.pop("type") == message.__struct_config__.tag
    assert list(read) == list(message.__struct_fields__)
    assert {"type": message.__struct_config__.tag, **read} == _plain(message)


def _plain(value: object) -> object:
    """A message as a person would write it down."""
    if isinstance(value, msgspec.Struct):
        left_out = {
            f.name
            for f in msgspec.structs.fields(value)
            if value.__struct_config__.omit_defaults and f.default == getattr(value, f.name)
        }
        fields = {field: _plain(getattr(value, field)) for field in value.__struct_fields__ if field not in left_out}
        tag = value.__struct_config__.tag
        return {"type": tag, **fields} if tag and not isinstance(value, (Inclusion, Failure)) else fields
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("message", [*MESSAGES, HEADER], ids=name)
def test_one_that_messagepack_made_is_accepted(message: object) -> None:
    assert decode(msgpack.packb(_plain(message)), message) == message


@pytest.mark.parametrize("message", MESSAGES, ids=name)
def test_a_field_of_a_later_version_is_read_over(message: Message) -> None:
    made = msgpack.packb({**_plain(message), "later": {"nested": [1, b"x", None, 1.5]}})

    assert decode(made, message) == message


OPTIONAL = {
    (Exchange, "known"): b"",
    (Exchange, "region"): "",
    (GetUpdates, "log_only"): False,
    (GetCheckpoints, "with_bytes"): False,
    (Checkpoints, "n_bytes"): (),
    (HandoverPart, "part"): "residual",
    (HandoverPart, "n_recent"): 0,
    (HandoverPart, "codec"): "fp32",
    (HandoverPart, "header"): b"",
    (HandoverPart, "signature"): b"",
    (ShardState, "norms"): (),
    (ShardState, "salt"): b"",
    (ShardState, "made_by"): None,
    (Updates, "norms"): (),
    (Push, "signature"): b"",
    (UpdateHeader, "account"): None,
    (InputPart, "claim"): None,
    (InputPart, "signature"): b"",
    (InputPart, "n_recent"): 0,
    (Update, "cosigner"): "",
    (Update, "cosignature"): b"",
    (Pushed, "digest"): b"",
    (Pushed, "signature"): b"",
    (SyncReply, "slowed_to"): None,
    (PullUnit, "exact"): False,
    (PullUnit, "part"): "weights",
    (UnitElsewhere, "waits"): False,
    (UnitWeights, "n_steps"): 0,
    (ReplicateStep, "is_moved"): False,
    (ReplicateStep, "waits"): False,
    (UnitHeld, "digest"): b"",
    (UnitHeld, "standby"): "",
}


@pytest.mark.parametrize("message", MESSAGES, ids=name)
def test_a_missing_field_is_refused(message: Message) -> None:
    for field in message.__struct_fields__:
        without = {k: v for k, v in fields_of(message).items() if k != field}
        if (type(message), field) in OPTIONAL:
            assert getattr(decode(msgpack.packb(without), message), field) == OPTIONAL[type(message), field]
            continue
        with pytest.raises(DecodeError):
            decode(msgpack.packb(without), message)


def test_a_reply_is_no_request_and_a_request_no_reply() -> None:
    for message in REQUESTS:
        with pytest.raises(DecodeError):
            decode_reply(encode(message))
    for message in REPLIES:
        with pytest.raises(DecodeError):
            decode_request(encode(message))


@pytest.mark.parametrize("tag", ["pong", "", "PING", "x" * 10_000, 1, None, ["ping"]])
def test_an_unknown_type_is_refused(tag: object) -> None:
    with pytest.raises(DecodeError):
        decode_request(msgpack.packb({"type": tag, "run": "run"}))


@pytest.mark.parametrize("message", [*MESSAGES, HEADER], ids=name)
def test_one_cut_short_or_with_something_behind_it_is_refused(message: object) -> None:
    data = encode(message)

    for cut in [*(data[:n] for n in range(len(data))), data + b"\x00", data + data]:
        with pytest.raises(DecodeError):
            decode(cut, message)


UINT32 = 0xFFFFFFFF
COUNT = 1 << 62
ABOUT_UNIT = (PullUnit, PushGradient, ReplicateMove, ReplicateStep, MakeStep, PutUnit, AppointUnit, AskUnit)


def _made(shard: int, n_bytes: int = 1) -> dict[str, int]:
    return {"shard": shard, "version": 1, "n_bytes": n_bytes}


STATE = {"shard": 0, "version": 1, "digest": DIGEST}
LIMITS = [
    (
        "run",
        (GetSpec, Exchange, Ping, PingFor, Accusation, Push, GetUpdates, GetShard, HandoverPart, UpdateHeader),
        "r" * 100,
        "r" * 101,
    ),
    ("run", (Ping, Push, UpdateHeader), "r", ""),
    ("run", (UpdatesMade, GetVersion, GetMarks), "r" * 100, "r" * 101),
    ("made", (UpdatesMade,), [_made(0)] * MAX_SHARDS, [_made(0)] * (MAX_SHARDS + 1)),
    ("made", (UpdatesMade,), [_made(MAX_SHARDS - 1)], [_made(MAX_SHARDS)]),
    ("made", (UpdatesMade,), [_made(0, MAX_PAYLOAD_BYTES)], [_made(0, MAX_PAYLOAD_BYTES + 1)]),
    ("shard", (GetVersion,), MAX_SHARDS - 1, MAX_SHARDS),
    ("shards", (GetMarks,), bytes(MAX_SHARDS // 8), bytes(MAX_SHARDS // 8 + 1)),
    ("checks", (GetMarks,), bytes(2 * MAX_SHARDS), bytes(2 * MAX_SHARDS + 1)),
    ("salt", (GetMarks,), 1 << 62, (1 << 62) + 1),
    ("rows", (Marks,), bytes(10 * MAX_SHARDS), bytes(10 * MAX_SHARDS + 1)),
    ("payload", (UpdateHeader,), DIGEST, DIGEST + b"d"),
    ("run", (*ABOUT_UNIT, AskNorms), "r" * 100, "r" * 101),
    ("unit", ABOUT_UNIT, MAX_SHARDS - 1, MAX_SHARDS),
    ("unit", ABOUT_UNIT, 0, -1),
    ("step", (PullUnit, PushGradient, ReplicateMove, ReplicateStep, MakeStep, AskNorms), 0xFFFFFFFF, 1 << 32),
    ("version", (PutUnit, AppointUnit, UnitHeld, UnitWeights, UnitStepped), 0xFFFFFFFF, 1 << 32),
    ("term", (ReplicateMove, ReplicateStep, MakeStep, PutUnit, AppointUnit, UnitHeld), 1 << 62, (1 << 62) + 1),
    ("tokens", (PushGradient,), 1, 0),
    ("factor", (MakeStep,), 1.0, 1.001),
    ("factor", (MakeStep,), 0.0, -0.001),
    ("units", (AskNorms,), [0] * MAX_SHARDS, [0] * (MAX_SHARDS + 1)),
    ("units", (AskNorms,), [MAX_SHARDS - 1], [MAX_SHARDS]),
    ("squares", (UnitNorms,), [None] * MAX_SHARDS, [None] * (MAX_SHARDS + 1)),
    ("squares", (UnitNorms,), [0.0], [-0.001]),
    ("included", (ReplicateStep, PutUnit), ["p" * 64] * MAX_STEP_MEMBERS, ["p" * 64] * (MAX_STEP_MEMBERS + 1)),
    ("included", (ReplicateStep, PutUnit), ["p" * 64], ["p" * 65]),
    ("part", (PutUnit,), MAX_UNIT_PARTS - 1, MAX_UNIT_PARTS),
    ("n_parts", (PutUnit,), MAX_UNIT_PARTS, MAX_UNIT_PARTS + 1),
    ("n_parts", (PutUnit,), 1, 0),
    ("role", (AppointUnit, UnitHeld), "none", "king"),
    ("part", (PullUnit,), "second", "third"),
    ("n_steps", (UnitWeights,), 1 << 62, (1 << 62) + 1),
    ("standby", (UnitHeld,), "p" * 64, "p" * 65),
    ("digest", (UnitHeld,), DIGEST, DIGEST + b"d"),
    ("owner", (UnitElsewhere,), "p" * 64, "p" * 65),
    (
        "payload",
        (PushGradient, ReplicateMove, ReplicateStep, PutUnit, UnitWeights),
        b"p" * MAX_PAYLOAD_BYTES,
        b"p" * (MAX_PAYLOAD_BYTES + 1),
    ),
    ("peer", (PingFor, Accusation), "p" * 64, "p" * 65),
    ("owner", (NotOwner, UpdateHeader), "p" * 64, "p" * 65),
    ("share", (RepresentativeFound,), 1.0, 1.001),
    ("announcements", (RepresentativeFound,), [b"x"] * MAX_NAMED_BY_ENVOY, [b"x"] * (MAX_NAMED_BY_ENVOY + 1)),
    ("rate", (SyncRequest,), MAX_RATE, 1.001 * MAX_RATE),
    ("rate", (SyncRequest,), 1e-9, 0.0),
    ("rate", (SyncRequest,), 0.1, float("nan")),
    ("limit", (SyncRequest,), MAX_NORM, 1.001 * MAX_NORM),
    ("limit", (SyncRequest,), 0.0, -1e-9),
    ("limit", (SyncRequest,), None, float("nan")),
    ("slowed_to", (SyncReply,), MAX_RATE, 1.001 * MAX_RATE),
    ("slowed_to", (SyncReply,), 0.0, -1e-9),
    ("number", (RelayRequest,), COUNT, COUNT + 1),
    ("exchange", (SyncRequest,), COUNT, COUNT + 1),
    ("region", (SyncRequest,), "r" * 64, "r" * 65),
    ("codec", (SyncRequest, RelayRequest), "c" * 64, "c" * 65),
    ("payload", (SyncRequest, SyncReply, RelayRequest), b"p" * MAX_PAYLOAD_BYTES, b"p" * (MAX_PAYLOAD_BYTES + 1)),
    ("at_version", (Updates,), UINT32, UINT32 + 1),
    ("at_version", (Updates,), None, -1),
    ("shard", (Push, GetUpdates, GetShard, HandoverPart, ShardState, UpdateHeader), MAX_SHARDS - 1, MAX_SHARDS),
    ("shard", (Push, GetUpdates, GetShard, HandoverPart, ShardState, UpdateHeader), 0, -1),
    ("version", (Push, Pushed, Held, GetUpdates, HandoverPart, ShardState, UpdateHeader), UINT32, UINT32 + 1),
    ("version", (Push, Pushed, Held, GetUpdates, HandoverPart, ShardState, UpdateHeader), 0, -1),
    ("seq", (Push,), COUNT, COUNT + 1),
    ("seq", (Push,), 0, -1),
    ("tokens", (Push, UpdateHeader), COUNT, COUNT + 1),
    ("tokens", (Push,), 1, 0),
    ("tokens", (UpdateHeader,), 0, -1),
    ("local_steps", (Push,), COUNT, COUNT + 1),
    ("incarnation", (Accusation,), COUNT, COUNT + 1),
    ("incarnation", (Accusation,), 0, -1),
    ("codec", (Push, HandoverPart, UpdateHeader), "c" * 64, "c" * 65),
    ("digest", (Held, GetUpdates, HandoverPart, ShardState, UpdateHeader), DIGEST, DIGEST + b"d"),
    ("digest", (Held, GetUpdates, HandoverPart, ShardState, UpdateHeader), DIGEST, DIGEST[:-1]),
    ("base_digest", (UpdateHeader,), DIGEST, DIGEST + b"d"),
    ("payload", (Push, Update, HandoverPart, ShardState), b"x" * MAX_PAYLOAD_BYTES, b"x" * (MAX_PAYLOAD_BYTES + 1)),
    ("announcements", (Exchange, Exchanged), [b"x"] * MAX_EXCHANGED, [b"x"] * (MAX_EXCHANGED + 1)),
    ("known", (Exchange,), bytes(MAX_KNOWN_MEMBERS * ROW_BYTES), bytes(MAX_KNOWN_MEMBERS * ROW_BYTES + 1)),
    (
        "announcements",
        (Exchange, Exchanged),
        [b"x" * (MAX_ANNOUNCEMENT_BYTES + 200)],
        [b"x" * (MAX_ANNOUNCEMENT_BYTES + 201)],
    ),
    ("announcement", (NotOwner,), b"x" * (MAX_ANNOUNCEMENT_BYTES + 200), b"x" * (MAX_ANNOUNCEMENT_BYTES + 201)),
    ("spec", (SpecFound,), b"x" * MAX_SPEC_BYTES, b"x" * (MAX_SPEC_BYTES + 1)),
    ("signature", (SpecFound, Update, HandoverPart), b"s" * 64, b"s" * 65),
    ("header", (Update, HandoverPart), b"h" * (1 << 20), b"h" * ((1 << 20) + 1)),
    ("updates", (Updates,), [_plain(ONE_UPDATE)] * MAX_UPDATES, [_plain(ONE_UPDATE)] * (MAX_UPDATES + 1)),
    (
        "included",
        (ShardState, UpdateHeader),
        [{"peer": "p", "seq": 1}] * MAX_INCLUDED,
        [{"peer": "p", "seq": 1}] * (MAX_INCLUDED + 1),
    ),
    ("included", (ShardState, UpdateHeader), [{"peer": "p", "seq": COUNT}], [{"peer": "p", "seq": COUNT + 1}]),
    ("included", (ShardState, UpdateHeader), [{"peer": "p" * 64, "seq": 0}], [{"peer": "p" * 65, "seq": 0}]),
    (
        "failed",
        (UpdateHeader,),
        [{"peer": "p", "reason": "r" * MAX_REASON_CHARS}],
        [{"peer": "p", "reason": "r" * (MAX_REASON_CHARS + 1)}],
    ),
    (
        "failed",
        (UpdateHeader,),
        [{"peer": "p", "reason": "r"}] * MAX_INCLUDED,
        [{"peer": "p", "reason": "r"}] * (MAX_INCLUDED + 1),
    ),
    ("norms", (Updates, ShardState), [1.0] * MAX_KNOWN, [1.0] * (MAX_KNOWN + 1)),
    ("norms", (Updates, ShardState), [1e38], [1.1e38]),
    ("norms", (Updates, ShardState), [1e-38], [0.0]),
    ("norms", (Updates, ShardState), [1.0], [float("nan")]),
    (
        "first",
        (Equivocation,),
        {"header": b"h" * MAX_SHOWN_HEADER_BYTES, "signature": b"s" * 64},
        {"header": b"h" * (MAX_SHOWN_HEADER_BYTES + 1), "signature": b"s" * 64},
    ),
    ("second", (Equivocation,), {"header": b"h", "signature": b"s" * 64}, {"header": b"h", "signature": b"s" * 65}),
    ("expected", (UpdateHeader,), MAX_INCLUDED, MAX_INCLUDED + 1),
    ("expected", (UpdateHeader,), 0, -1),
    ("cids", (HasBlocks,), [b"c" * 36] * MAX_HAS_CIDS, [b"c" * 36] * (MAX_HAS_CIDS + 1)),
    ("cids", (GetBlocks,), [b"c" * 36] * MAX_GET_CIDS, [b"c" * 36] * (MAX_GET_CIDS + 1)),
    ("cids", (HasBlocks, GetBlocks), [b"c" * 36], [b"c" * 37]),
    ("sizes", (HeldBlocks,), [0] * MAX_HAS_CIDS, [0] * (MAX_HAS_CIDS + 1)),
    ("sizes", (HeldBlocks,), [MAX_BLOCK_BYTES], [MAX_BLOCK_BYTES + 1]),
    ("sizes", (HeldBlocks,), [0], [-1]),
    ("cids", (Checkpoints,), [b"c" * 36] * MAX_CHECKPOINTS, [b"c" * 36] * (MAX_CHECKPOINTS + 1)),
    ("states", (AncestryQuery,), [STATE] * MAX_COMPARED, [STATE] * (MAX_COMPARED + 1)),
    ("states", (AncestryQuery,), [{**STATE, "shard": MAX_SHARDS - 1}], [{**STATE, "shard": MAX_SHARDS}]),
    ("since", (AncestryReply,), [-2] * MAX_COMPARED, [-2] * (MAX_COMPARED + 1)),
    ("since", (AncestryReply,), [OTHER], [OTHER - 1]),
    ("retry_ms", (Busy,), MAX_BUSY_MS, MAX_BUSY_MS + 1),
    ("retry_ms", (Busy,), 0, -1),
    ("blocks", (Blocks,), [b"b" * MAX_BLOCK_BYTES], [b"b" * (MAX_BLOCK_BYTES + 1)]),
    ("blocks", (Blocks,), [b""] * MAX_GET_CIDS, [b""] * (MAX_GET_CIDS + 1)),
]


@pytest.mark.parametrize(
    ("field", "kind", "largest", "beyond"),
    [(field, kind, largest, beyond) for field, kinds, largest, beyond in LIMITS for kind in kinds],
    ids=lambda value: value.__name__ if isinstance(value, type) else value if isinstance(value, str) and len(value) < 20 else "",
)
def test_a_bound_is_reached_and_not_exceeded(field: str, kind: type, largest: object, beyond: object) -> None:
    message = next(m for m in [*MESSAGES, HEADER] if type(m) is kind)
    fields = fields_of(message)

    decode(msgpack.packb({**fields, field: largest}), message)
    with pytest.raises(DecodeError, match=field):
        decode(msgpack.packb({**fields, field: beyond}), message)


MAY_BE_NONE = {
    (InputPart, "claim"),
    (ShardState, "made_by"),
    (UpdateHeader, "account"),
    (UpdateHeader, "agreement"),
    (Updates, "at_version"),
    (SyncRequest, "limit"),
    (SyncReply, "slowed_to"),
}
FRACTIONS = {(SyncRequest, "limit")}


@pytest.mark.parametrize("message", [*MESSAGES, HEADER], ids=name)
def test_a_field_of_another_type_is_refused(message: object) -> None:
    fields = fields_of(message)
    for field, value in fields.items():
        nothing = () if (type(message), field) in MAY_BE_NONE else (None,)
        fraction = () if (type(message), field) in FRACTIONS else (1.5,)
        for other in (*nothing, *fraction, {"a": 1}, "text" if not isinstance(value, str) else 7, [[]]):
            with pytest.raises(DecodeError):
                decode(msgpack.packb({**fields, field: other}), message)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"], ids=["arrays", "maps"])
def test_nesting_without_end_is_refused(opening: bytes) -> None:
    deep = opening * 200_000 + b"\xc0"
    ping = encode(Ping("run"))

    for data in (deep, b"\x83" + ping[1:] + b"\xa1x" + deep):
        for read in (decode_request, decode_reply, decode_header):
            with pytest.raises(DecodeError):
                read(data)


@pytest.mark.parametrize("field", [b"\xa3run\xa2\xff\xfe", b"\xa3run\xa3\xed\xa0\x80"], ids=["no utf-8", "a lone surrogate"])
def test_text_that_is_not_unicode_is_refused(field: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_request(b"\x82\xa4type\xa4ping" + field)
    with pytest.raises(DecodeError):
        decode_request(b"\x82\xa4type\xa4\xff\xff\xff\xff\xa3run\xa1r")


@pytest.mark.parametrize(
    "length", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"]
)
def test_a_length_that_is_only_claimed_takes_no_memory(length: bytes) -> None:
    exchange = b"\x83\xa4type\xa8exchange\xa3run\xa1r\xadannouncements" + length

    with pytest.raises(DecodeError):
        decode_request(exchange)
    with pytest.raises(DecodeError):
        decode_request(b"\x83\xa4type\xa4ping\xa3run\xa1r\xa1x" + length)


def test_the_fraction_that_was_averaged_counts_what_was_used_of_what_was_expected() -> None:
    some = msgspec.structs.replace(HEADER, included=(Inclusion("a", 1),) * 3, expected=4)

    assert some.averaged_fraction == 0.75
    assert msgspec.structs.replace(some, expected=0).averaged_fraction == 1.0
    assert msgspec.structs.replace(some, included=(), expected=0).averaged_fraction == 0.0


# what strangers send

SPEC = sign_spec(RunSpec("tiny", PEER.peer_id, (ParamSpec("w", (3,)),)), PEER)
SIGNED = sign(Announcement(PEER.peer_id, "run", region="home", loss=1.0), PEER)
READERS = [decode_request, decode_reply, decode_header, open_signed, lambda data: open_spec(SignedSpec(data, SPEC.signature))]
VALID = [*map(encode, MESSAGES), encode(HEADER), SIGNED, SPEC.spec]


SCALARS = st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=9)
NONSENSE = st.recursive(
    SCALARS | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=10,
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid message in which some bytes were changed, cut out, or put in."""
    data = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        removed, put = draw(st.integers(0, 4)), draw(st.binary(max_size=6))
        data[at : at + removed] = put
    return bytes(data)


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=200), mutated()))
@example(b"\x82\xa4type\xa4ping\xa3run\xa2\xff\xfe")
def test_whatever_comes_is_read_or_refused_with_a_decode_error(data: bytes) -> None:
    for read in READERS:
        with suppress(DecodeError):
            read(data)


@settings(max_examples=200)
@given(NONSENSE, st.sampled_from([*MESSAGES, HEADER]), st.data())
def test_well_formed_nonsense_in_any_field_is_read_or_refused_with_a_decode_error(
    value: object, message: object, data: st.DataObject
) -> None:
    fields = fields_of(message)
    fields[data.draw(st.sampled_from(sorted(fields)))] = value

    for read in READERS:
        with suppress(DecodeError):
            read(msgpack.packb(fields))


@pytest.mark.parametrize(
    "message",
    [
        Push("run", 0, 1, 1, 0, 1, "int8", b""),
        Push("run", 0, 1, 1, 1 << 63, 1, "int8", b""),
        Push("run", MAX_SHARDS, 1, 1, 1, 1, "int8", b""),
        Ping("r" * 101),
        SpecFound(b"s" * (MAX_SPEC_BYTES + 1), b""),
        msgspec.structs.replace(HEADER, shard=MAX_SHARDS),
        msgspec.structs.replace(HEADER, tokens=-1),
    ],
)
def test_what_its_receiver_would_refuse_is_not_sent(message: object) -> None:
    with pytest.raises(SelfCheckError, match=f"{type(message).__name__} that its receiver would refuse"):
        encode_checked(message)  # type: ignore[arg-type]
    encode(message)  # type: ignore[arg-type]  # is for whoever wants to know what others do about it


UNCHECKED = {
    "core/wire.py",  # its definition
    "services/run/build_shards.py",  # updates that came from others, about to be replayed here
    "sim/attackers.py",  # what liars send
    "store/archive.py",  # updates that came from others or were checked as requests, on their way to the disk
    "train/round_traffic.py",  # only counts bytes
}
"""Modules that make bytes of a message without the check, and why."""


def test_whatever_is_sent_passes_the_check() -> None:
    named = {
        path.relative_to(PACKAGE).as_posix()
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.module == "legion_p2p.core.wire"
        and any(a.name == "encode" for a in node.names)
    }

    assert named | {"core/wire.py"} == UNCHECKED
