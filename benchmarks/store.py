"""The block store: write and verify rates, what byte planes save, and what an incremental checkpoint adds.

    python benchmarks/store.py --folder /tmp

Blocks of 256 KiB of noise are put one by one and in one call, then read, which verifies them; beside it, the same bytes as one
plain file that is synced at its end. Byte planes: weights of the built-in GPT after `--steps` steps on the standard library's
text, the optimizer's second moments, and Gaussian noise. Increments: that model goes on training, every `--local-steps` steps its
change is published as an update in each of the run's codecs, and a checkpoint is taken after each.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from legion_p2p.core.cids import Cid
from legion_p2p.core.identity import Identity
from legion_p2p.core.manifest import LEAF_ELEMENTS, Manifest, StoredShard
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec, sign_spec
from legion_p2p.core.shard_chunks import decode_chunk, encode_chunk, split
from legion_p2p.core.wire import Inclusion, Update, UpdateHeader, encode
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.checkpoints import publish, put_base, put_node, put_spec, put_update
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest, fp32_bytes
from legion_p2p.train.checkpoint import Checkpoint
from legion_p2p.train.corpus import open_text
from legion_p2p.train.gpt import GPT

BLOCK_BYTES = 256 << 10
BATCH = 4


def rates(folder: Path, n_mb: int) -> dict[str, float]:
    """MB/s (10^6) of each way."""
    noise = os.urandom(BLOCK_BYTES * (n_mb * 1_000_000 // BLOCK_BYTES))
    blocks = [noise[at : at + BLOCK_BYTES] for at in range(0, len(noise), BLOCK_BYTES)]
    named = [(Cid.of(block), block) for block in blocks]

    def plain() -> None:
        with open(folder / "plain", "wb") as file:
            file.write(noise)
            file.flush()
            os.fsync(file.fileno())

    def timed(work: Callable[[], object]) -> float:
        before = time.perf_counter()
        work()
        return round(len(noise) / 1e6 / (time.perf_counter() - before), 1)

    with BlockStore(folder / "one") as one, BlockStore(folder / "all") as together:
        row = {
            "plain_file": timed(plain),
            "put_one_by_one": timed(lambda: [one.put(block) for block in blocks]),
            "put_in_one_call": timed(lambda: together.put_all(named)),
            "read_and_verify": timed(lambda: [one.get(cid) for cid, _ in named]),
        }
    for name in ("one", "all"):
        shutil.rmtree(folder / name)
    return row


def train(model: GPT, optimizer: torch.optim.Optimizer, tokens: torch.Tensor, n_steps: int, generator: torch.Generator) -> float:
    """The mean loss of the last steps."""
    context, losses = model.config.context, []
    for _ in range(n_steps):
        starts = torch.randint(0, len(tokens) - context - 1, (BATCH, 1), generator=generator)
        window = tokens[starts + torch.arange(context + 1)].long()
        _, loss = model(window[:, :-1], window[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return statistics.mean(losses[-20:])


def flat_of(model: GPT) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def planes(name: str, values: torch.Tensor) -> list[dict[str, object]]:
    """What leaves of these values take of their plain bytes."""
    rows = []
    for kind, width in (("fp32", 4), ("bf16", 2)):
        data = bytes(fp32_bytes(values) if width == 4 else values.to(torch.bfloat16).view(torch.int16).numpy().tobytes())
        parts = list(split(data, width))
        before = time.perf_counter()
        leaves = [encode_chunk(part, width) for part in parts]
        between = time.perf_counter()
        for leaf, part in zip(leaves, parts, strict=True):
            decode_chunk(leaf, len(part) // width, width)
        after = time.perf_counter()
        rows.append({
            "values": name, "type": kind, "of_plain": round(sum(map(len, leaves)) / len(data), 4),
            "encode_MBps": round(len(data) / 1e6 / (between - before)), "decode_MBps": round(len(data) / 1e6 / (after - between)),
        })  # fmt: skip
    return rows


def increments(folder: Path, name: str, states: list[torch.Tensor], model: GPT) -> dict[str, object]:
    """Bytes that each checkpoint adds to the store; the last one is read back and compared."""
    me, used = Identity.generate(), codec.get(name)
    params = tuple(ParamSpec(key, tuple(p.shape)) for key, p in model.named_parameters())
    signed = sign_spec(RunSpec("store", me.peer_id, params, RoundSpec(update_codec=name)), me)
    plan = RunSpec("store", me.peer_id, params).plan()
    reference, residual = states[0].clone(), torch.zeros_like(states[0])
    shards = [slice(*plan.bounds(i)) for i in range(plan.n_shards)]
    included = [Inclusion(me.peer_id, 1)]
    with BlockStore(folder / "increments") as store:
        run = put_spec(store, signed)
        bases = [put_base(store, 0, included, fp32_bytes(reference[where].clone())) for where in shards]
        logs: list[list[tuple[Cid, ...]]] = [[] for _ in shards]
        parent, added = "", []
        for version, state in enumerate(states):
            before = store.used_bytes if version else 0
            for i, where in enumerate(shards if version else ()):
                change = reference[where] - state[where] + residual[where]
                payload = used.encode(change.contiguous())
                sent = used.decode(payload, plan.size(i))
                residual[where] = change - sent
                base_digest, after = digest(reference[where]), reference[where] - sent
                reference[where] = after
                header = encode(
                    UpdateHeader(str(run), i, version, base_digest, digest(after), me.peer_id, name, (*included,) * 4, (), 4, 1)
                )
                logs[i].append(put_update(store, encode(Update(header, me.sign(header), payload))))
            nodes = tuple(
                put_node(store, StoredShard(i, version, digest(reference[where].clone()), bases[i], tuple(logs[i])))
                for i, where in enumerate(shards)
            )
            root = publish(store, Manifest(run, signed.signature, version, nodes, me.peer_id, 0, parent), me)
            parent = str(root)
            added.append(store.used_bytes - before)
        exact = torch.equal(torch.cat(list(Checkpoint(store, root).shards())), reference)
    shutil.rmtree(folder / "increments")
    full, increment = 4 * plan.numel, statistics.mean(added[1:])
    return {
        "codec": name, "fp32_bytes": full, "first_bytes": added[0], "increment_bytes": round(increment),
        "last_increment_bytes": added[-1], "full_over_increment": round(full / increment, 1), "read_back_exactly": exact,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=None, help="where to write; otherwise the system's for temporary files")
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--preset", default="s")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--local-steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        rows = [rates(folder, args.mb) for _ in range(args.repeat)]
        generator = torch.Generator().manual_seed(0)
        model = GPT.from_preset(args.preset, generator)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        tokens = torch.from_numpy(open_text("stdlib", model.config.context).train.copy())
        loss = train(model, optimizer, tokens, args.steps, generator)
        moments = torch.cat([optimizer.state[p]["exp_avg_sq"].reshape(-1) for p in model.parameters()])
        found = planes("trained weights", flat_of(model)) + planes("second moments", moments)
        found += planes("Gaussian", 0.02 * torch.randn(16 * LEAF_ELEMENTS, generator=generator))
        states = [flat_of(model)]
        for _ in range(args.rounds):
            train(model, optimizer, tokens, args.local_steps, generator)
            states.append(flat_of(model))
        grown = [increments(folder, name, states, model) for name in codec.names()]
    finally:
        shutil.rmtree(folder)
    medians = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    print(json.dumps({"MBps": medians, "runs": rows, "loss": round(loss, 3), "planes": found, "increments": grown}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
