"""`Rounds` and `Inner`: what the creator of a run may choose of it. What is left open (None) follows from the links.

Each field has the bounds of the same field of `RoundSpec` (core/round_spec.py) or `InnerSpec` (core/run.py), which are signed and
leave nothing open. tests/unit/test_config.py checks that both have the same fields.
"""

from typing import ClassVar, Literal

import msgspec

from legion_p2p.config.fields import settle
from legion_p2p.core.placement import PlacementName
from legion_p2p.core.round_spec import (
    AggregationRule,
    OuterRule,
    RoundSpec,
    SameNetwork,
    Screening,
    SyncRule,
    Untrained,
    Verify,
)
from legion_p2p.core.run import InnerOptimizer, InnerSpec


class Rounds(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """How the members of a new run average."""

    BOUNDS: ClassVar[type[msgspec.Struct]] = RoundSpec

    local_steps: int | None = None
    """Steps between two pushes of a peer of median speed; faster ones do more. More: fewer bytes, more drift between peers."""

    push_codec: str | None = None
    """How changes are compressed on their way: fp32, fp16, bf16; int8, int4, int3, int2; gauss4, gauss3, gauss2, sign; or, far
    smaller, the largest few, as topk64-2bit or any other topk<k>-<bits>bit. Where update_codec is left open, it is this one."""

    update_codec: str | None = None
    """The same for what comes back from owners to all members. Each update goes to every member, so its bits count most."""

    push_codecs: tuple[str, ...] | None = None
    """Codecs that a member may use instead, as its link allows. A push_codec that is given alone is the only one."""

    update_codecs: tuple[str, ...] | None = None
    """Codecs that an owner may use instead, as its link allows."""

    placement: PlacementName | None = None
    """Who owns which shards: the strongest claim by weight, only the heaviest members, or a stable matching."""

    synchronous: bool | None = None
    """step() waits for the round: as exact as data parallelism, and as slow as the slowest member. For a LAN."""

    quorum: float | None = None
    """Share of the training members after which a round may close without the rest. 1: waits for all that live."""

    min_local_steps: int | None = None
    """No peer does fewer, however slow it is. Higher: fewer and better pushes of slow peers, which come late."""

    max_local_steps: int | None = None
    """No peer does more, however fast it is or however slow its link. Higher: fast peers are used better, and drift further.
    In a synchronous run every member does exactly local_steps."""

    ramp_from: int | None = None
    """Local steps at the start of the run, where ramp_steps is set: averaging matters most while everything is changing."""

    ramp_steps: int | None = None
    """Steps of the run over which local steps grow from ramp_from to local_steps; 0: no ramp."""

    warmup_codec: str | None = None
    """Codec of pushes, and of the updates made of them, while a member's inner optimizer says that it is warming up."""

    dense_codec: str | None = None
    """Codec of small and one-dimensional tensors where the others' bits are fewer, and of a member's last pushes where its link
    allows it; empty: no exception is made for them."""

    dense_below: int | None = None
    """Tensors of fewer elements are small."""

    feedback_decay: float | None = None
    """How much of the residual is kept each round. Below 1 forgets stale residuals; 1 loses nothing."""

    streaming: bool | None = None
    """Shards are pushed at staggered steps, so that traffic is even. False: all of them at once."""

    mixing: float | None = None
    """How far local parameters move towards a new version, as a share of the way; their own training since the push is kept in
    any case."""

    restore_length: float | None = None
    """How much of the length that the mean of pushes loses, because they disagree, is restored. 1: as long as the pushes, which
    suits optimizers that normalize their steps (Adam, Muon). 0: nothing, plain averaging."""

    outer: OuterRule | None = None
    """What the owner does with the averaged change: add it, or take an outer step with or without momentum."""

    outer_learning_rate: float | None = None
    """Factor on the averaged change, or on what momentum makes of it. 1 is plain averaging."""

    outer_momentum: float | None = None
    """Momentum of the outer rules that have one. Higher: smoother, and slower to turn."""

    outer_delay: int | None = None
    """Rounds between two changes of the momentum, for the delayed rule."""

    sync_every: int | None = None
    """Least rounds of a shard between two syncs of it with other regions. More: fewer bytes between regions, which drift further
    apart."""

    max_sync_every: int | None = None
    """Most rounds between two syncs, where the link between two owners carries little. More: slower links can take part, and
    their regions drift further."""

    sync_rule: SyncRule | None = None
    """How two regions that sync come closer: by the moving rate; each by it with a center variable; or by an outer step of
    DiLoCo over both."""

    sync_codec: str | None = None
    """Codec of what regions send each other."""

    sync_codecs: tuple[str, ...] | None = None
    """Codecs that they may use instead, as the link between two owners allows."""

    moving_rate: float | None = None
    """Share of their difference by which each of two regions moves when they sync. Higher: closer together, and less
    exploration."""

    sync_reach: float | None = None
    """A sync moves no region further than this many times what its own training did since the last one. Lower: safer, and two
    that trained apart come together more gently; at 1 or less they may not come together at all. 0: no limit."""

    aggregation: AggregationRule | Literal["auto"] | None = None
    """How an owner combines the pushes of a round. mean: by tokens, exactly, where all members are trusted. auto: mean where the
    run is synchronous, and else nearest-neighbours."""

    norm_cap: float | None = None
    """A push counts with at most this many times the median norm; not in mean. Lower: safer, and unfair to unusual data. 0: no
    cap."""

    weight_cap: float | None = None
    """A push weighs at most this many times the median of the tokens claimed; not in mean. Higher: more of what fast members
    train counts, and a member that lies about its tokens counts for more."""

    hostile_share: float | None = None
    """Share of hostile pushes in a round that the rule must withstand, for rules that need to know. Higher: safer, and fewer
    honest pushes count."""

    screening: Screening | None = None
    """Whether what a member's pushes weigh follows from earlier rounds. none: each round is looked at alone. trend: a member
    whose pushes go against the others, round after round, weighs less, and in the end nothing."""

    same_network: SameNetwork | None = None
    """What pushes from one network weigh together, as owners see the other end of each connection: the /24 of an IPv4 address,
    the /48 of an IPv6 one, or that of the relay. free: each counts alone. bounded: no more than two usual ones, so that many keys
    of one host count little, and so do members of one large institution. Private addresses are not told apart."""

    owner_rounds: int | None = None
    """Rounds in which a member must have taken part until it may own shards, half of all rounds at most; and after which the
    shards are dealt out again, by what nobody can foresee. 0: at once, and never again."""

    verify: Verify | None = None
    """How owners are watched. none: members check that an update leads to the digest that its owner signed. late: owners sign
    receipts for pushes, and the standby of a shard computes each update again. An owner that publishes a wrong update is
    excluded, and the update is taken back. Each push then goes over the network twice, and members hold one or two more copies of
    the model. strict: the standby does so first, and members apply only what it has signed, so that a wrong update does nothing.
    Each round then takes a little longer."""

    shard_elements: int | None = None
    """Elements per shard; 0 chooses sixteen shards, fewer for a small model. Fewer: more messages, work is shared more evenly."""

    untrained: Untrained | None = None
    """What a model has beside its trained parameters, which are frozen parameters and buffers of floats. same: a peer that joins
    must have what the creator had at the start; what it changes of them stays its own. average: the same, but float buffers (such
    as BatchNorm's running statistics) are averaged like parameters. own: they are not compared."""

    def __post_init__(self) -> None:
        settle(self)


class Inner(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """How `legion-peer` trains between two pushes. A training loop of your own brings its own optimizer instead."""

    BOUNDS: ClassVar[type[msgspec.Struct]] = InnerSpec

    optimizer: InnerOptimizer | None = None
    """What makes the local steps: AdamW; Muon for matrices and AdamW for the rest; or 1-bit Adam, which is AdamW until its
    variance settles."""

    learning_rate: float | None = None
    """Of the local optimizer. Higher: faster at first, and peers drift further apart between rounds."""

    batch: int | None = None
    """Windows of text per step."""

    context: int | None = None
    """Tokens in a window; 0: as many as the model can read. [a model of transformers: at most 1024]"""

    weight_decay: float | None = None
    """Share of the weights that each step takes away, times the learning rate."""

    beta1: float | None = None
    """Decay of the mean of gradients."""

    beta2: float | None = None
    """Decay of the mean of squared gradients."""

    warmup_steps: int | None = None
    """Steps of each peer over which its learning rate rises from 0, while the moments of its optimizer are still cold."""

    decay_steps: int | None = None
    """Steps of the run over which the rate falls to a tenth along a cosine; 0: it stays, but for the end."""

    anneal: float | None = None
    """The last share of a run that has a target in steps or tokens, over which the rate falls to 0, unless decay_steps says how
    it falls. More: it learns less in the middle, and ends calmer. 0: never."""

    clip: float | None = None
    """Largest gradient norm; 0: no clipping."""

    def __post_init__(self) -> None:
        settle(self)
