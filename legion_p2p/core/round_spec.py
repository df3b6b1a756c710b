"""How the members of a run average: the part of its specification that concerns rounds, syncs and codecs."""

from typing import Annotated, Literal

import msgspec

from legion_p2p.core.placement import PlacementName
from legion_p2p.errors import UsageError

MAX_OUTER_DELAY = 10_000

ShortText = Annotated[str, msgspec.Meta(max_length=64)]
_Codec = ShortText
_Codecs = Annotated[tuple[_Codec, ...], msgspec.Meta(max_length=16)]
_Steps = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
NonNegative = Annotated[float, msgspec.Meta(ge=0, le=1e6)]

OuterRule = Literal["average", "sgd", "nesterov", "delayed-nesterov"]
SyncRule = Literal["elastic", "center", "nesterov"]
AggregationRule = Literal[
    "mean", "norm-cap", "trimmed-mean", "median", "krum", "multi-krum", "bulyan", "geometric-median", "centered-clip",
    "nearest-neighbours",
]  # fmt: skip
DISTANCE_RULES: tuple[AggregationRule, ...] = ("krum", "multi-krum", "geometric-median", "centered-clip", "nearest-neighbours")
COORDINATE_RULES: tuple[AggregationRule, ...] = ("trimmed-mean", "median", "bulyan")
DEFAULT_RULE: AggregationRule = "nearest-neighbours"
Untrained = Literal["same", "average", "own"]
Screening = Literal["none", "trend"]
SameNetwork = Literal["free", "bounded"]
Verify = Literal["none", "late", "strict"]


class RoundSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the members of a run average."""

    local_steps: _Steps = 10
    """Steps between two pushes of a peer of median speed; faster ones do more. More: fewer bytes, more drift between peers."""

    min_local_steps: _Steps = 1
    """No peer does fewer, however slow it is. Higher: fewer and better pushes of slow peers, which come late."""

    max_local_steps: _Steps = 120
    """No peer does more, however fast it is or however slow its link. Higher: fast peers are used better, and drift further.
    In a synchronous run every member does exactly `local_steps`."""

    ramp_from: _Steps = 1
    """Local steps at the start of the run, where `ramp_steps` is set: averaging matters most while all is changing."""

    ramp_steps: Annotated[int, msgspec.Meta(ge=0, le=100_000_000)] = 0
    """Steps of the run over which local steps grow from `ramp_from` to `local_steps`; 0: no ramp."""

    push_codec: _Codec = "int8"
    """Codec of what members send to owners."""

    push_codecs: _Codecs = ()
    """Codecs that a member may use instead, as its link allows."""

    update_codec: _Codec = "int8"
    """Codec of what owners send to members."""

    update_codecs: _Codecs = ()
    """Codecs that an owner may use instead, as its link allows."""

    warmup_codec: _Codec = ""
    """Codec of pushes, and of the updates made of them, while a member's inner optimizer says that it is warming up."""

    dense_codec: _Codec = "int8"
    """Codec of small and one-dimensional tensors where the others' bits are fewer, and of a member's last pushes where its link
    allows it; empty: no exception is made for them."""

    dense_below: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] = 4096
    """Tensors of fewer elements are small."""

    feedback_decay: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """What of the residual stays each round. Below 1 forgets stale leftovers; 1 loses nothing."""

    streaming: bool = True
    """Shards are pushed at staggered steps, so that traffic is even. False: all of them at once."""

    mixing: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    """How far local parameters move towards a new version, as a share of the way; their own training since the push is kept in
    any case."""

    restore_length: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """How much is given back of the length that the mean of pushes loses because they disagree (`tensor/mean_length.py`). 1: all,
    which suits optimizers that normalize their steps. 0: nothing, plain averaging."""

    outer: OuterRule = "average"
    """What the owner does with the averaged change: see `legion_p2p.tensor.outer`."""

    outer_learning_rate: Positive = 1.0
    """Factor on the averaged change, or on what momentum makes of it. 1 is plain averaging."""

    outer_momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    """Of the outer rules that have momentum."""

    outer_delay: Annotated[int, msgspec.Meta(ge=1, le=MAX_OUTER_DELAY)] = 4
    """Rounds between two changes of the momentum, for the delayed rule."""

    sync_every: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 2
    """Least rounds of a shard between two syncs of it with other regions. More: fewer bytes between regions, which drift further
    apart."""

    max_sync_every: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 64
    """Most rounds between two syncs, where the link between two owners carries little. More: slower links can take part, and
    their regions drift further."""

    sync_rule: SyncRule = "elastic"
    """How two regions that sync come closer: by the moving rate; each by it with a center variable; or by an outer step of
    DiLoCo over both: see `legion_p2p.tensor.sync_step`."""

    sync_codec: _Codec = "int8"
    """Codec of what regions send each other."""

    sync_codecs: _Codecs = ()
    """Codecs that they may use instead, as the link between two owners allows."""

    moving_rate: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = 0.5
    """Share of their difference by which each of two regions moves when they sync. Higher: closer together, and less
    exploration."""

    sync_reach: NonNegative = 1.5
    """A sync moves no region further than this many times what its own training did since the last one. Lower: safer, and two
    that trained apart come together more gently; at 1 or less they may not come together at all. 0: no limit."""

    aggregation: AggregationRule | Literal["auto"] = "auto"
    """How an owner combines the pushes of a round: see `legion_p2p.tensor.robust.rules`. mean: by tokens, exactly, where all
    members are trusted. auto: mean where the run is synchronous, and else DEFAULT_RULE."""

    norm_cap: NonNegative = 1.0
    """A push counts with at most this many times the median norm; not in mean. Lower: safer, and unfair to unusual data. 0: no
    cap."""

    weight_cap: Positive = 1.5
    """A push weighs at most this many times the median of the tokens claimed; not in mean. Higher: more of what fast members
    train counts, and a member that lies about its tokens counts for more."""

    hostile_share: Annotated[float, msgspec.Meta(ge=0, lt=0.5)] = 0.2
    """Share of hostile pushes in a round that the rule must withstand, for rules that need to know. Higher: safer, and fewer
    honest pushes count."""

    screening: Screening = "none"
    """Whether what a member's pushes weigh follows from earlier rounds. trend: a member whose pushes go against the others, round
    after round, weighs less, and in the end nothing: see `legion_p2p.tensor.robust.standing`. For rules that go by distances."""

    same_network: SameNetwork = "free"
    """bounded: the pushes that an owner gets from one network weigh no more than two usual ones together: see
    `legion_p2p.core.same_network`. Many keys of one host then count little, and so do the members of one large institution."""

    owner_rounds: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0
    """Rounds of a shard in which a member's pushes must have been until it may own, half of all rounds at most; and after
    which the shards are dealt out again. Higher: owning takes longer, for liars as for others. 0: at once, and never again.
    See `core.seniority`."""

    verify: Verify = "none"
    """How owners are watched, besides what every member checks of an update. late: they sign receipts for pushes, and the standby
    of a shard computes each update again and signs it, after it was applied; what is wrong, or is never signed, is taken back.
    Costs one more copy of each push, and the memory of one or two more copies of the model: see `core.shard.provisional`. strict:
    it does so before, and members apply nothing that no other member has signed. Costs a little of each round's time instead of
    the memory: see `core.cosigning`."""

    quorum: Annotated[float, msgspec.Meta(gt=0, le=1)] = 2 / 3
    """Share of the training members after which a round may close without the rest. 1: waits for all that live."""

    synchronous: bool = False
    """True: step() waits for the round, which waits for every member; all make the same number of steps, and their weights are
    not capped. For equivalence with data parallelism among members that trust each other, and for a LAN."""

    shard_elements: Annotated[int, msgspec.Meta(ge=0, le=1 << 23)] = 0
    """Elements per shard; 0 chooses sixteen shards, fewer for a small model."""

    placement: PlacementName = "rendezvous"
    """How the members' weights become ownership of shards: see `legion_p2p.core.placement`."""

    untrained: Untrained = "same"
    """What a model has beside its trained parameters, which are frozen parameters and buffers of floats. "same": whoever joins
    must have the same as the creator at the start; what a peer changes of them stays its own. "average": the same, but float
    buffers (such as BatchNorm's running statistics) are averaged like parameters. "own": they are not looked at."""

    def check(self) -> None:
        """Raises: UsageError, where fields that are right by themselves do not fit together."""
        sparse = next((name for name in self.allowed_push_codecs() if is_sparse(name)), None)
        if self.rule() in COORDINATE_RULES and sparse is not None:
            raise UsageError(
                f"round.aggregation {self.rule()!r} looks at each coordinate alone, where most pushes in {sparse!r} are zero: "
                "choose another rule, or codecs that are not sparse"
            )
        if self.screening != "none" and self.rule() not in DISTANCE_RULES:
            raise UsageError(
                f"round.screening {self.screening!r} needs a rule that compares pushes, {', '.join(DISTANCE_RULES)}, "
                f"not {self.rule()!r}"
            )

        if self.same_network != "free" and self.rule() == "mean":
            raise UsageError(
                f"round.same_network {self.same_network!r} needs a rule that limits weights: the rule 'mean' trusts all members"
            )

    def waits_for(self) -> float:
        """The share of the training members that a round waits for."""
        return 1.0 if self.synchronous else self.quorum

    def rule(self) -> AggregationRule:
        """How pushes are combined."""
        if self.aggregation != "auto":
            return self.aggregation
        return "mean" if self.synchronous else DEFAULT_RULE

    def allowed_push_codecs(self) -> tuple[str, ...]:
        return _distinct(self.push_codec, *self.push_codecs, self.warmup_codec, self.dense_codec)

    def allowed_update_codecs(self) -> tuple[str, ...]:
        return _distinct(self.update_codec, *self.update_codecs, self.warmup_codec)

    def allowed_sync_codecs(self) -> tuple[str, ...]:
        return _distinct(self.sync_codec, *self.sync_codecs)

    def codecs(self) -> tuple[str, ...]:
        """All that a member must know."""
        return _distinct(
            *self.allowed_push_codecs(), *self.allowed_update_codecs(), self.dense_codec, *self.allowed_sync_codecs()
        )


RENAMED_ROUND_FIELDS = {
    "cross_every": "sync_every",
    "max_cross_every": "max_sync_every",
    "cross_rule": "sync_rule",
    "cross_codec": "sync_codec",
    "cross_codecs": "sync_codecs",
    "cross_reach": "sync_reach",
}
"""Fields that specifications of an older version have, and their names now."""


def is_sparse(codec: str) -> bool:
    """Whether a push in this codec names only some of its coordinates."""
    return codec.startswith("topk")


def _distinct(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name))
