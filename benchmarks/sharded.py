"""Sharded runs beside torch's FSDP2: tokens a second, CPU, bytes and memory, on the same model in the same run.

    python benchmarks/sharded.py --plain --preset m --members 2 4 --steps 6
    python benchmarks/sharded.py --preset l --members 2 --steps 3 --kinds bf16 --netem up=1gbit,down=1gbit,rtt=0.4ms

Each row trains the built-in GPT with AdamW on random tokens, every member on a batch of its own: `plain` is one process,
`fsdp` is fully_shard over gloo on loopback, `sharded` is `run.shard` over libp2p and bulk lanes with TLS on loopback. Bytes are
what one member sends in a step, on the average; of gloo they are what the algorithm needs. CPU is that of all threads of all
members for a step, which other work on the machine hardly changes. Memory is the most that a process held (VmHWM) above what it
held before it made its model. One thread of torch for each process. `--netem` emulates a link of each member of a sharded run;
gloo knows none.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

MIB = 1 << 20
WARM = 2  # steps that are not counted


def main() -> None:
    options = parsed()
    if options.role:
        print(json.dumps(ROLES[options.role](options)), flush=True)
        return
    print(f"| {options.preset} | members | tokens/s | step, s | CPU-s/step | sent/step, MB | peak memory, MiB |")
    print("|---|---|---|---|---|---|---|")
    rows = [("plain", "fp32", 1)] if options.plain else []
    for n in options.members:
        rows += [(kind if kind == "fsdp" else "sharded", "fp32" if kind == "fsdp" else kind, n) for kind in options.kinds]
    for kind, codec, n in rows:
        show(kind, codec, run_all(options, kind, codec, n))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="m", help="size of the built-in GPT")
    parser.add_argument("--members", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4, help="windows of each member in a step")
    kinds = ("fsdp", "fp32", "bf16", "int8")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds[:3], help="FSDP2, and codecs of sharded runs")
    parser.add_argument("--netem", default="", help="link to emulate for each member of a sharded run, as legion-peer takes it")
    parser.add_argument("--plain", action="store_true", help="one process without others as well")
    parser.add_argument("--keep", action="store_true", help="weights stay from the forward to the backward pass, in both")
    for hidden in ("--role", "--codec", "--rank", "--n", "--folder"):
        parser.add_argument(hidden, default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_all(options: argparse.Namespace, kind: str, codec: str, n: int) -> list[dict[str, float]]:
    """The results of all members."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        words = [
            sys.executable,
            __file__,
            "--preset",
            options.preset,
            "--steps",
            str(options.steps),
            "--batch",
            str(options.batch),
        ]
        words += ["--role", kind, "--codec", codec, "--n", str(n), "--folder", folder, *(["--keep"] if options.keep else [])]
        words += ["--netem", options.netem]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        members = [
            subprocess.Popen([*words, "--rank", str(rank)], stdout=subprocess.PIPE, text=True, env=env) for rank in range(n)
        ]
        said = [member.communicate(timeout=600)[0] for member in members]
    return [json.loads(one.strip().splitlines()[-1]) for one in said]


def show(kind: str, codec: str, results: list[dict[str, float]]) -> None:
    step_s = max(result["step_s"] for result in results)
    tokens = sum(result["tokens"] for result in results)
    sent = statistics.mean(result["sent"] for result in results) / 1e6
    peak = max(result["peak"] for result in results) / MIB
    cpu_s = sum(result["cpu_s"] for result in results)
    name = kind if kind != "sharded" else f"sharded, {codec}"
    print(
        f"| {name} | {len(results)} | {tokens / step_s:,.0f} | {step_s:.3f} | {cpu_s:.2f} | {sent:.1f} | {peak:.0f} |", flush=True
    )


# what a member does


def held() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def parts(options: argparse.Namespace):
    """The model, and batches of one member."""
    import torch

    from legion_p2p.train.gpt import GPT

    torch.set_num_threads(1)
    model = GPT.from_preset(options.preset)
    generator = torch.Generator().manual_seed(int(options.rank or 0))
    shape = (options.batch, model.config.context + 1)

    def batch():
        tokens = torch.randint(0, model.config.vocab_size, shape, generator=generator)
        return tokens[:, :-1], tokens[:, 1:]

    return model, batch


def timed(options: argparse.Namespace, before: int, step, sent, n_tokens: int) -> dict[str, float]:
    """Step by step; the mean counts."""
    took = []
    cpu_before = 0.0
    for i in range(WARM + options.steps):
        if i == WARM:
            sent_before, cpu_before = sent(), time.process_time()
        began = time.perf_counter()
        step()
        took.append(time.perf_counter() - began)
    step_s = sum(took[WARM:]) / options.steps
    cpu_s = (time.process_time() - cpu_before) / options.steps
    sent_bytes = (sent() - sent_before) / options.steps
    return {
        "step_s": step_s,
        "cpu_s": cpu_s,
        "tokens": n_tokens,
        "sent": sent_bytes,
        "peak": held() - before,
    }


def plain(options: argparse.Namespace) -> dict[str, float]:
    import torch

    warm_imports()
    before = held()
    model, batch = parts(options)
    inner = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        inner.zero_grad()
        model(*batch())[1].backward()
        inner.step()

    return timed(options, before, step, lambda: 0, options.batch * model.config.context)


def fsdp(options: argparse.Namespace) -> dict[str, float]:
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    warm_imports()
    n, rank = int(options.n), int(options.rank)
    dist.init_process_group("gloo", init_method=f"file://{options.folder}/meeting", rank=rank, world_size=n)
    before = held()
    model, batch = parts(options)
    for block in model.blocks:
        fully_shard(block, reshard_after_forward=not options.keep)
    fully_shard(model, reshard_after_forward=not options.keep)
    inner = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        inner.zero_grad()
        model(*batch())[1].backward()
        inner.step()

    passes = 2 if options.keep else 3  # one or two all-gathers, and a reduce-scatter: each sends (n - 1) / n of the model
    per_step = 4 * passes * (n - 1) / n * sum(p.numel() for p in parts(options)[0].parameters())
    steps_made = 0

    def counted() -> None:
        nonlocal steps_made
        step()
        steps_made += 1

    result = timed(options, before, counted, lambda: per_step * steps_made, options.batch * model.config.context)
    dist.barrier()
    dist.destroy_process_group()
    return result


def sharded(options: argparse.Namespace) -> dict[str, float]:
    import legion_p2p as legion

    warm_imports()
    n, rank, folder = int(options.n), int(options.rank), Path(options.folder)
    limits = legion.Limits(netem=options.netem)
    peer = legion.Peer(listen="/ip4/127.0.0.1/tcp/0", lan=False, status=False, limits=limits)
    before = held()
    model, batch = parts(options)
    if rank == 0:
        rounds = legion.Rounds(push_codec=options.codec, update_codec=options.codec, quorum=1.0)
        run = legion.create(legion.NewRun("bench", sharding="full", rounds=rounds), model, peer=peer)
        (folder / "writing").write_text(" ".join(run.addresses()), encoding="utf-8")
        (folder / "writing").rename(folder / "addresses")
    else:
        while not (folder / "addresses").exists():
            time.sleep(0.1)
        run = legion.join("bench", initial_peers=(folder / "addresses").read_text(encoding="utf-8").split(), peer=peer)
    with run:
        while len(run.members()) < n:
            time.sleep(0.1)
        time.sleep(3)  # units go to their owners
        shard = run.shard(model, keep=options.keep)
        shard.wait_for_members(n)

        def step() -> None:
            model(*batch())[1].backward()
            shard.step()

        def sent() -> int:
            return run.status().sent_bytes

        result = timed(options, before, step, sent, options.batch * model.config.context)
        run.finish(together=True)
    return result


def warm_imports() -> None:
    """Everything that a row needs beside its model, so that memory is that of training."""
    import torch

    import legion_p2p.peer
    import legion_p2p.train.run  # noqa: F401

    torch.set_num_threads(1)
    torch.nn.Linear(8, 8)(torch.randn(8, 8)).sum().backward()


ROLES = {"plain": plain, "fsdp": fsdp, "sharded": sharded}

if __name__ == "__main__":
    main()
