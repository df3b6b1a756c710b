"""How many bytes a run's messages have, and what a round of a member moves."""

import msgspec

from legion_p2p.core.announcement import Announcement, Mark, pack_marks, sign
from legion_p2p.core.identity import Identity
from legion_p2p.core.marks import shown
from legion_p2p.core.run import RunSpec
from legion_p2p.core.wire import Held, Inclusion, Message, Push, Pushed, Update, UpdateHeader, encode
from legion_p2p.net import envelope
from legion_p2p.net.envelope import Envelope, FrameKind
from legion_p2p.services.shards.codecs import shard_codec
from legion_p2p.tensor.body import HEADER
from legion_p2p.tensor.mixed import Mixed

LATER = 1000  # versions, sequence numbers and request ids of a run that has been going on for a while
_SOMEBODY = Identity(b"somebody in the middle of a run.")
_RUN_ID = "b" * 59
_PROBE = bytes(1 << 16)


class Frames(msgspec.Struct, frozen=True):
    """Bytes of frames: one push of every shard, one update of every shard, and one reply to each."""

    n_shards: int
    pushes: int
    updates: int
    pushed: int
    held: int


class RoundTraffic(msgspec.Struct, frozen=True):
    """Bytes of one peer in one round."""

    push_bytes: int
    update_bytes: int
    reply_bytes: int
    sent_bytes: int
    """All three."""
    received_bytes: int


def frames_of(spec: RunSpec, n_members: int, push_codec: str, update_codec: str) -> Frames:
    """The sizes of a run's messages. Raises: CodecError, if there is no such codec."""
    plan = spec.plan()
    push = Push(_RUN_ID, 0, LATER, LATER, 1 << 20, spec.round.local_steps, push_codec, _PROBE)
    included = tuple(Inclusion(_SOMEBODY.peer_id, LATER) for _ in range(n_members))
    header = encode(
        UpdateHeader(_RUN_ID, 0, LATER, bytes(32), bytes(32), _SOMEBODY.peer_id, update_codec, included, (), n_members, 1 << 20)
    )
    update = Update(header, _SOMEBODY.sign(header), _PROBE)
    bodies = {name: sum(_body_bytes(spec, shard, name) for shard in range(plan.n_shards)) for name in {push_codec, update_codec}}
    return Frames(
        n_shards=plan.n_shards,
        pushes=bodies[push_codec] + plan.n_shards * (_frame_bytes(push, FrameKind.REQUEST) - len(_PROBE)),
        updates=bodies[update_codec] + plan.n_shards * (_frame_bytes(update, FrameKind.REQUEST) - len(_PROBE)),
        pushed=_frame_bytes(Pushed(LATER, False), FrameKind.REPLY),
        held=_frame_bytes(Held(LATER, bytes(32)), FrameKind.REPLY),
    )


def traffic_of(frames: Frames, n_members: int, owned_shards: float, *, trains: bool = True) -> RoundTraffic:
    """One round of a member that owns this many shards, and pushes to the owners of the others if it `trains`."""
    others = n_members - 1
    if not others:
        return RoundTraffic(0, 0, 0, 0, 0)
    share = owned_shards / frames.n_shards
    not_owned = frames.n_shards - owned_shards
    pushes, updates = trains * (1 - share) * frames.pushes, share * frames.updates * others
    replies = owned_shards * others * frames.pushed + not_owned * frames.held
    received = share * frames.pushes * others + (1 - share) * frames.updates
    received += trains * not_owned * frames.pushed + owned_shards * others * frames.held
    return RoundTraffic(round(pushes), round(updates), round(replies), round(pushes + updates + replies), round(received))


def announcement_bytes(n_shards: int) -> int:
    """What a member says of itself every few seconds, signed."""
    marks = shown(pack_marks([Mark(LATER, 1 << 31)] * n_shards))
    return len(
        sign(
            Announcement(
                _SOMEBODY.peer_id, _RUN_ID, 1 << 40, LATER, ("/ip4/203.0.113.107/tcp/47101",), "home", ready=True, training=True,
                step=LATER, tokens=1 << 40, tokens_per_s=1e4, step_s=1.5, loss=3.0, sent_bytes=1 << 40, received_bytes=1 << 40,
                upload_bps=1e7, download_bps=1e7, marks=marks.marks, marks_digest=marks.digest, version=marks.version,
            ),
            _SOMEBODY,
        )
    )  # fmt: skip


def _body_bytes(spec: RunSpec, shard: int, name: str) -> int:
    codec = shard_codec(spec, shard, name)
    heads = 3 * HEADER.size + 4 if isinstance(codec, Mixed) else HEADER.size
    return heads + round(spec.plan().size(shard) * codec.bits_per_element / 8)


def _frame_bytes(message: Message, kind: FrameKind) -> int:
    body = encode(message)
    return len(envelope.encode(Envelope(envelope.VERSION, LATER, kind), len(body))) + len(body)
