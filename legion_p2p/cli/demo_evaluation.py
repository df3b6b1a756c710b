"""What comes of a demo: is the model the same at every peer, how good is it, what does it write, and at what cost?"""

import hashlib
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from legion_p2p.cli.common import version_text
from legion_p2p.cli.demo_plan import ALONE, RUN_NAME, Contestants, DemoPeer, DemoPlan

SAMPLE_CHARS = 1200  # two stories, and room for a long one
SAMPLE_STORIES = 2
SAMPLE_TEMPERATURE, SAMPLE_TOP_K = 0.5, 10  # below 1 a model says what it is sure of


def judge(plan: DemoPlan, contestants: Contestants, lost: list[str], out: Path, began: float) -> dict[str, Any]:
    """Compare, evaluate, draw; write curves.json, curves.png and summary.json into `out`; what stands in the last."""
    peers, lone, lone_all_text, killed, joined = contestants
    done = [p for p in peers if p.finished is not None]
    regions = {p.label: str((p.finished or {}).get("region", "")) for p in done}
    model = judged_model(out / "SPEC.toml", [(regions[p.label], out / p.label / "model.safetensors") for p in done], plan.seed)
    digests = {p.label: str((p.finished or {}).get("digest", "")) for p in done}
    one_each = len({(regions[label], digest) for label, digest in digests.items()}) == len(set(regions.values()))
    equal = one_each and model.same_bytes and len(done) >= min(2, plan.n_peers)
    ids = {p.label: p.status.peer_id if p.status else p.label for p in done}
    finished = [p.finished for p in done if p.finished]
    starts = [p.step_times[0] for p in done if p.step_times]
    ends = [p.step_times[-1] for p in done if p.step_times]
    train_s = max(ends, default=0.0) - min(starts, default=0.0)
    alone = lone.finished if lone and lone.finished else None
    alone_all_text = lone_all_text.finished if lone_all_text and lone_all_text.finished else None
    n_rounds, period_s = _rounds(done)
    n_steps = max((f["step"] for f in finished), default=0)
    lone_note = (
        f"The lone peer ran beside the swarm on this machine: plain torch, the same model and first weights, "
        f"{plan.batch} windows a step from the same text, the same schedule, and as many steps as each peer. "
        f"The second one read {plan.n_peers} times as much in each of its steps, about as much text as all peers together."
    )
    lone_evals = lone.evals if lone else []
    curves = {
        "swarm_validation": [  # before the first step the two are the same model
            *lone_evals[:1],
            *_evals(done),
            *([(n_steps, model.curve_loss)] if model.curve_loss is not None else []),
        ],
        "lone_validation": lone_evals,
        "training": {p.label: p.losses for p in done} | ({ALONE: lone.losses} if lone else {}),
        "final": {"step": n_steps, "swarm": model.val_loss, "lone": alone["val_loss"] if alone else None},
        "windows": {"curves": model.n_curve_windows, "final": model.n_windows},
    }
    where = f"in each of {len(set(regions.values()))} regions" if plan.n_regions > 1 else f"at all {len(done)}"
    verdict = f"equal {where}, and their files are the same bit for bit"
    summary = {
        "run": RUN_NAME,
        "n_peers": plan.n_peers,
        "local_steps": n_steps,
        "tokens": sum(f["tokens"] for f in finished),
        "swarm_val_loss": model.val_loss,
        "lone_val_loss": alone["val_loss"] if alone else None,
        "killed": killed,
        "joined": joined,
        "lone_tokens": alone["tokens"] if alone else None,
        "lone_all_text_val_loss": alone_all_text["val_loss"] if alone_all_text else None,
        "lone_all_text_tokens": alone_all_text["tokens"] if alone_all_text else None,
        "lone_note": lone_note if alone else "no lone peer was trained",
        "digests": {ids[label]: digest for label, digest in digests.items()},
        "digests_equal": equal,
        "verdict": verdict if equal else "NOT EQUAL: this is a bug, please report it with the folder",
        "peers": ids,
        "regions": {region: sorted(ids[p] for p in regions if regions[p] == region) for region in sorted(set(regions.values()))},
        "bytes_in_region": sum(f["bytes_in_region"] for f in finished),
        "bytes_across": sum(f["bytes_across"] for f in finished),
        "lost": lost,
        "store": plan.store,
        "checkpoint": next((p.checkpoint for p in peers if p.checkpoint), ""),
        "rounds": n_rounds,
        "round_period_s": round(period_s, 4),
        "averaged_fraction": _mean(f for p in done for f in p.averaged),
        "swarm_tokens_per_s": round(sum(f["tokens"] for f in finished) / train_s, 1) if train_s else 0.0,
        "lone_tokens_per_s": alone["tokens_per_s"] if alone else None,
        "swarm_train_s": round(train_s, 2),
        "lone_train_s": alone["train_s"] if alone else None,
        "blocked_fraction": _mean(f["blocked_fraction"] for f in finished),
        "sent_bytes": sum(f["sent_bytes"] for f in finished),
        "received_bytes": sum(f["received_bytes"] for f in finished),
        "sample": model.sample,
        "settings": msgspec.to_builtins(plan),
        "n_params": model.n_params,
        "legion_p2p": version_text().removeprefix("legion_p2p "),
        "python": platform.python_version(),
        "torch": model.torch_version,
        "machine": {"system": platform.system(), "cores": _n_cores()},
    }
    (out / "curves.json").write_bytes(msgspec.json.encode(curves))
    from legion_p2p.dashboard.plot import draw_demo

    draw_demo(curves, out / "curves.png", n_peers=plan.n_peers, n_params=model.n_params)
    summary["wall_s"] = round(time.monotonic() - began, 2)
    (out / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    return summary


class Evaluation(msgspec.Struct, frozen=True):
    """`same_bytes`: every file of one region holds the same tensors, bit for bit."""

    val_loss: float | None
    same_bytes: bool
    sample: str
    n_params: int
    n_windows: int
    """Windows of held-out text behind `val_loss`."""
    n_curve_windows: int
    curve_loss: float | None
    """The loss on the fewer windows that the curves are made of, for which there is time while training."""
    torch_version: str


def judged_model(spec: Path, files: list[tuple[str, Path]], seed: int) -> Evaluation:
    """Load what the peers have left, with their regions; compare within these, and evaluate the first of them.

    On FINAL_EVAL_WINDOWS windows of the held-out text.
    """
    import torch
    from safetensors.torch import load_file

    from legion_p2p.config import read_new_run
    from legion_p2p.train.corpus import open_text
    from legion_p2p.train.described import spec_of
    from legion_p2p.train.evaluation import EVAL_WINDOWS, FINAL_EVAL_WINDOWS, evaluate, sample_text
    from legion_p2p.train.gpt import GPT
    from legion_p2p.train.parameters import trainable
    from legion_p2p.train.tales import SEPARATOR

    torch.set_num_threads(1)  # with more, they wait for each other where the machine is busy: minutes instead of seconds
    new_run = read_new_run(str(spec))
    described, model = spec_of(new_run)
    gpt = model.module
    assert isinstance(gpt, GPT)  # what the demo trains
    there = [(region, load_file(path)) for region, path in files if path.exists()]
    if not there:
        return Evaluation(None, False, "", gpt.n_params, FINAL_EVAL_WINDOWS, EVAL_WINDOWS, None, str(torch.__version__))
    hashes = set()
    for region, tensors in there:
        sha256 = hashlib.sha256()
        for name in sorted(tensors):
            sha256.update(name.encode() + b"\0" + tensors[name].contiguous().numpy().tobytes())
        hashes.add((region, sha256.digest()))
    with torch.no_grad():
        for name, parameter in trainable(gpt):
            parameter.copy_(there[0][1][name])
    corpus = open_text(described.data, model.context)
    val_loss = evaluate(model, corpus, FINAL_EVAL_WINDOWS)
    curve_loss = evaluate(model, corpus, EVAL_WINDOWS)
    gpt.eval()
    same = len(hashes) == len({region for region, _ in hashes}) and len(there) == len(files)
    sample = whole_stories(sample_text(gpt, seed, SEPARATOR, SAMPLE_CHARS, SAMPLE_TEMPERATURE, SAMPLE_TOP_K))
    return Evaluation(val_loss, same, sample, gpt.n_params, FINAL_EVAL_WINDOWS, EVAL_WINDOWS, curve_loss, str(torch.__version__))


def whole_stories(text: str) -> str:
    """The first few stories of what a model wrote; where there is not one whole, all of it."""
    stories = [story.strip() for story in text.strip().split("\n\n")]
    return "\n\n".join(stories[:-1][:SAMPLE_STORIES] or stories)


def _evals(peers: list[DemoPeer]) -> list[tuple[int, float]]:
    return next((p.evals for p in peers if p.evals), [])


def _rounds(peers: list[DemoPeer]) -> tuple[int, float]:
    """Rounds in all, each of every shard, and the mean time from one to the next."""
    seen = sorted(r for p in peers for r in p.rounds)
    if len(seen) < 2:
        return len(seen), 0.0
    n_rounds = seen[-1][0]
    times = [at for _, at in seen]
    return n_rounds, (max(times) - min(times)) / max(1, n_rounds - seen[0][0])


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return round(sum(known) / len(known), 5) if known else None


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
