"""What a run is: a signed, immutable specification. Its content id is the run's id. It is data, never code."""

from typing import Annotated, Literal

import msgspec
import zstandard

from legion_p2p.core.admission import MAX_ADMINS, MAX_ADMITTED, Admits, check_admission
from legion_p2p.core.cids import MAX_CID_CHARS, Cid
from legion_p2p.core.identity import MAX_PEER_ID_CHARS, Identity, verify
from legion_p2p.core.model_config import MAX_CONFIG_CHARS, read_model_config
from legion_p2p.core.plan import MAX_PARAMS, FixedSpec, ParamSpec, ShardPlan, plan_for
from legion_p2p.core.round_spec import RENAMED_ROUND_FIELDS, NonNegative, Positive, RoundSpec, ShortText
from legion_p2p.errors import DecodeError, UsageError

MAX_SPEC_BYTES = (1 << 20) - (16 << 10)  # it travels in one control frame and is stored as one block, each of 1 MiB
MAX_SPEC_TEXT_BYTES = 8 << 20  # unpacked: 20,000 parameters with names of 300 characters
PACKED_FROM_BYTES = 64 << 10  # below, packing saves less than it costs to explain
MAX_RUN_NAME_CHARS = 100

RunName = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_RUN_NAME_CHARS, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*\Z")]
TargetCount = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
TargetLoss = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
_PeerId = Annotated[str, msgspec.Meta(max_length=MAX_PEER_ID_CHARS)]


InnerOptimizer = Literal["adamw", "muon", "onebit-adam"]


class InnerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How `legion-peer` trains between two pushes. A training loop of your own ignores it."""

    optimizer: InnerOptimizer = "adamw"
    """"muon": Muon for matrices, AdamW for the rest. "onebit-adam": AdamW until its variance settles, then 1-bit Adam."""
    learning_rate: Positive = 3e-3
    weight_decay: NonNegative = 0.1
    beta1: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.95
    warmup_steps: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 50
    decay_steps: Annotated[int, msgspec.Meta(ge=0, le=100_000_000)] = 0
    """Steps over which the rate falls to a tenth along a cosine; 0: see `anneal`."""
    anneal: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    """The last share of a run with a target in steps or tokens, over which a rate without `decay_steps` falls to 0. 0 keeps it
    constant."""
    clip: NonNegative = 1.0
    """Largest gradient norm; 0: no clipping."""
    batch: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 4
    """Windows per step."""
    context: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 0
    """Tokens in a window; 0: as many as the model can read."""


Sharding = Literal["none", "full"]
SHARDED_CODECS = ("fp32", "bf16", "int8")
SHARDED_OPTIMIZERS = ("adamw", "muon")


class RunSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One training job."""

    name: RunName
    creator: Annotated[str, msgspec.Meta(max_length=64)] = msgspec.field(name="founder")
    params: Annotated[tuple[ParamSpec, ...], msgspec.Meta(min_length=1, max_length=MAX_PARAMS)]
    round: RoundSpec = RoundSpec()
    inner: InnerSpec = InnerSpec()
    model: Annotated[dict[ShortText, int | float | str | bool], msgspec.Meta(max_length=64)] | None = None
    """The built-in model's configuration; None where members bring their own, or `transformers` says what it is."""
    transformers: Annotated[str, msgspec.Meta(max_length=MAX_CONFIG_CHARS)] = ""
    """The configuration of a model of the library transformers, as `legion_p2p.core.model_config` writes it; empty: none."""
    data: Annotated[str, msgspec.Meta(max_length=200)] = ""
    """What the run trains on, in words or the name of a built-in corpus."""
    dataset: Annotated[str, msgspec.Meta(max_length=MAX_CID_CHARS)] = ""
    """The id of the prepared data that all members train on (core/dataset.py); empty: each has text of its own."""
    tokenizer: Annotated[str, msgspec.Meta(max_length=MAX_CID_CHARS)] = ""
    """The CID of the tokenizer of that data; empty: tokens are bytes."""
    seed: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    admission: Admits = "open"
    """Who may take part: every peer, peers that show a token, or those on the list `admitted`. See
    `legion_p2p.core.admission`."""
    admins: Annotated[tuple[_PeerId, ...], msgspec.Meta(max_length=MAX_ADMINS)] = ()
    """Peers whose tokens count as the creator's do."""
    admitted: Annotated[tuple[_PeerId, ...], msgspec.Meta(max_length=MAX_ADMITTED)] = ()
    """The allow-list."""
    fixed: Annotated[tuple[FixedSpec, ...], msgspec.Meta(max_length=MAX_PARAMS)] = ()
    """What the creator's model has beside the parameters of the run, with digests: see `RoundSpec.untrained`."""
    sharding: Sharding = "none"
    """"full": the members are one group on a fast network and hold one model together, each unit at its owner and a standby, as
    ZeRO-3 does: see `legion_p2p.core.sharding.plan`. "none": every member holds the whole model."""
    nonce: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """Keeps two runs of one name and one content apart."""
    target_steps: TargetCount = 0
    """The run ends at this step of it; 0: no such end. See `legion_p2p.core.target`."""
    target_tokens: TargetCount = 0
    """It ends when its members have trained this many tokens together; 0: no such end."""
    target_loss: TargetLoss = 0.0
    """It ends when the median of its members' training losses stays at or below this; 0: no such end."""

    def check(self) -> None:
        """Raises: UsageError, where fields that are right by themselves do not fit together."""
        self.round.check()
        if self.sharding == "full":
            self._check_sharded()
        if self.transformers:
            if self.model is not None:
                raise UsageError("a run trains the built-in model or one of transformers, not both")
            try:
                read_model_config(self.transformers)
            except DecodeError as bad:
                raise UsageError(str(bad)) from bad
        for name in ("dataset", "tokenizer"):
            if getattr(self, name):
                try:
                    Cid.parse(getattr(self, name))
                except DecodeError as bad:
                    raise UsageError(f"{name}: {bad}") from bad
        check_admission(self.admission, self.admins, self.admitted)

    def _check_sharded(self) -> None:
        """Raises: UsageError, where a sharded run cannot do what is chosen."""
        for field in ("push_codec", "update_codec"):
            if getattr(self.round, field) not in SHARDED_CODECS:
                chosen, known = getattr(self.round, field), ", ".join(SHARDED_CODECS)
                raise UsageError(f"round.{field} {chosen!r}: in a sharded run weights and gradients travel in one of {known}")
        if self.inner.optimizer not in SHARDED_OPTIMIZERS:
            chosen, known = self.inner.optimizer, " or ".join(SHARDED_OPTIMIZERS)
            raise UsageError(f"inner.optimizer {chosen!r}: the owners of a sharded run run {known}")
        if self.round.untrained == "average":
            raise UsageError('round.untrained "average": in a sharded run nobody averages buffers; choose "same" or "own"')
        if self.round.sync_rule == "center":
            raise UsageError('round.sync_rule "center": no member of a sharded run holds a copy for all; choose "elastic"')
        if self.target_tokens:
            raise UsageError("target_tokens: nobody counts the tokens of a sharded run; give target_steps or target_loss")

    def plan(self) -> ShardPlan:
        return plan_for(sum(p.numel for p in self.params), self.round.shard_elements)


class SignedSpec(msgspec.Struct, frozen=True):
    """A specification as it travels: the very bytes that were signed. A long one is packed with Zstandard."""

    spec: Annotated[bytes, msgspec.Meta(max_length=MAX_SPEC_BYTES)]
    signature: Annotated[bytes, msgspec.Meta(max_length=64)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(RunSpec)


def sign_spec(spec: RunSpec, identity: Identity) -> SignedSpec:
    """The creator's signature. Raises: UsageError, if `identity` is not the creator or the specification too large."""
    if spec.creator != identity.peer_id:
        raise UsageError(f"only the creator {spec.creator} can sign this run, not {identity.peer_id}")
    spec.check()
    if looks_like_run_id(spec.name):
        raise UsageError(f"the name {spec.name!r} looks like a run's id: choose another")
    text = _encoder.encode(spec)
    if len(text) > MAX_SPEC_TEXT_BYTES:
        raise UsageError(f"run specification of {len(text)} bytes, at most {MAX_SPEC_TEXT_BYTES}")
    body = text if len(text) < PACKED_FROM_BYTES else zstandard.ZstdCompressor(level=19).compress(text)
    if len(body) > MAX_SPEC_BYTES:
        raise UsageError(f"run specification of {len(body)} bytes, packed, at most {MAX_SPEC_BYTES}: shorten parameters' names")
    signed = SignedSpec(body, identity.sign(body))
    try:
        open_spec(signed)  # every peer that joins opens it like this: refuse here what they would refuse
    except DecodeError as bad:
        raise UsageError(str(bad)) from bad
    return signed


def open_spec(signed: SignedSpec) -> RunSpec:
    """Check and read a specification that came from a stranger.

    Raises: DecodeError; SignatureError.
    """
    try:
        spec = _decoder.decode(_unpacked(signed.spec))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as bad:
        renamed = [f"; {old} is called {new} now" for old, new in RENAMED_ROUND_FIELDS.items() if f"`{old}`" in str(bad)]
        raise DecodeError(f"run specification: {bad}{''.join(renamed)}") from bad
    if looks_like_run_id(spec.name):
        raise DecodeError(f"run specification: the name {spec.name!r} looks like a run's id")
    verify(spec.creator, signed.spec, signed.signature)
    try:
        spec.check()
        spec.plan()
    except UsageError as bad:
        raise DecodeError(f"run specification: {bad}") from bad
    return spec


def _unpacked(body: bytes) -> bytes:
    """Raises: DecodeError."""
    if not body.startswith(zstandard.FRAME_HEADER):
        return body
    try:
        size = zstandard.frame_content_size(body)
        if not 0 <= size <= MAX_SPEC_TEXT_BYTES:
            raise DecodeError(f"run specification of {size} bytes, unpacked, at most {MAX_SPEC_TEXT_BYTES}")
        return zstandard.ZstdDecompressor(max_window_size=MAX_SPEC_TEXT_BYTES).decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as bad:
        raise DecodeError(f"run specification: {bad}") from bad


def run_id(signed: SignedSpec) -> str:
    """The CIDv1 (raw, sha2-256, base32) of the specification's bytes."""
    return str(Cid.of(signed.spec))


def name_key(name: str) -> str:
    """The key under which members of any run of this name are found."""
    return f"legion/run-name/{name}"


def run_key(run: str) -> str:
    """The key under which members of the run of this id are found."""
    return f"legion/run/{run}"


def announce_topic(run: str) -> str:
    """The gossip topic of what a run's regions tell each other."""
    return f"legion/announce/{run}"


def region_topic(run: str, region: str) -> str:
    """The gossip topic of the announcements of one region's members."""
    return f"legion/announce/{run}/{region}"


def looks_like_run_id(text: str) -> bool:
    """True for the form that `run_id` gives; no run name is allowed to look like it."""
    return len(text) == 59 and text.startswith("bafkrei")
