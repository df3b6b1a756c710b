"""What a job would take, as `legion-peer --dry-run` and `legion-ctl plan --sharding full` print it."""

from typing import TYPE_CHECKING

from legion_p2p.config import Store
from legion_p2p.core.sharding.cost import MAX_STEP_S
from legion_p2p.observe import human

if TYPE_CHECKING:
    from legion_p2p.train.job_plan import Plan


def disk_text(store: Store | None) -> str:
    """What checkpoints may take of the disk."""
    if store is None:
        return "nothing: no checkpoints are kept"
    return f"up to {human.bytes_text(store.max_gb * 1e9)} for checkpoints" if store.max_gb else "no limit on checkpoints"


def plan_lines(plan: "Plan", disk: str = "") -> list[str]:
    """What a job would need, without a last line. `disk`: what checkpoints may take; empty: that is not known."""
    bytes_text, whole_text = human.bytes_text, human.whole_text
    facts = [
        ("run", human.clean(plan.run)),
        ("parameters", whole_text(plan.n_params)),
        ("shards", f"{plan.n_shards} of {whole_text(plan.shard_elements)} elements"),
        ("memory", f"{bytes_text(plan.memory_bytes)}, of which {bytes_text(plan.program_bytes)} for the program itself"),
        *([("disk", disk)] if disk else []),
        ("local steps per round", whole_text(plan.local_steps)),
        ("tokens per step", whole_text(plan.tokens_per_step)),
        ("pushes", f"{bytes_text(plan.push_bytes_per_round)} for all shards, as {human.clean(plan.push_codec, 64)}"),
        *([("", f"down to {human.clean(plan.push_codecs[-1], 64)} where a connection carries less")] if plan.push_codecs else []),
        ("updates", f"{bytes_text(plan.update_bytes_per_round)} for all shards, as {human.clean(plan.update_codec, 64)}"),
    ]
    columns = [
        ("members", [whole_text(row.n_members) for row in plan.traffic]),
        ("sent each round", [bytes_text(row.sent_bytes) for row in plan.traffic]),
        ("at most", [bytes_text(row.most_sent_bytes) for row in plan.traffic]),
        ("received", [bytes_text(row.received_bytes) for row in plan.traffic]),
        ("sent per token", [bytes_text(row.sent_bytes_per_token) for row in plan.traffic]),
        ("sending takes", [human.duration_text(row.send_s) for row in plan.traffic if row.send_s is not None]),
        ("must carry", [human.rate_text(row.least_bps) for row in plan.traffic if row.least_bps is not None]),
    ]
    rows = zip(*([title, *cells] for title, cells in columns if cells), strict=True)
    return [
        *(f"{name:<22}  {value}" for name, value in facts),
        "",
        *("  ".join(f"{cell:>{width}}" for cell, width in zip(row, (7, 15, 8, 8, 14, 13, 11), strict=False)) for row in rows),
        "",
        *_told(plan),
    ]


def _told(plan: "Plan") -> list[str]:
    """What the table means."""
    if all(row.least_bps is None for row in plan.traffic):
        return ["each is the mean over peers; at most: the peer that owns most shards"]
    slow = [row for row in plan.traffic if row.send_s is not None and row.send_s > MAX_STEP_S]
    return [
        "a round is a step here; must carry: over less, a step takes too long, and a peer that joins is refused",
        *(
            f"too slow for {row.n_members} members: the bytes of one step take {row.send_s:.1f} s, {MAX_STEP_S:.0f} s are allowed"
            for row in slow
        ),
    ]
