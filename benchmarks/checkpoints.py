"""What a checkpoint costs: bytes of an incremental one, and how fast a store writes, verifies and resumes.

    python benchmarks/checkpoints.py --elements 4194304 --record docs/records/checkpoints.md

Updates are of heavy-tailed values (a normal value cubed), in messages as owners broadcast them, with eight contributors each. A
checkpoint is made after every round, and after every ten; bases are written at the start and at the end only. MB/s are of fp32,
per second of wall time.
"""

import argparse
import datetime
import os
import platform
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from legion_p2p.core.evidence import sign_header
from legion_p2p.core.identity import Identity
from legion_p2p.core.plan import ParamSpec
from legion_p2p.core.retention import Retention
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.core.run import RunSpec, run_id, sign_spec
from legion_p2p.core.wire import Inclusion, Update, UpdateHeader, encode
from legion_p2p.store.archive import Archive
from legion_p2p.store.blocks import BlockStore
from legion_p2p.tensor import codec
from legion_p2p.tensor.flatten import digest, fp32_bytes
from legion_p2p.train.checkpoint import Checkpoint

ROUNDS = 20
AIM = 1 / 50  # of the weights in fp32: an incremental checkpoint with a sparse codec
CODECS = ("topk64-2bit", "topk128-4bit", "gauss4", "int8")


class Owner:
    """Makes updates of a run, as its owners would."""

    def __init__(self, name, numel):
        torch.manual_seed(0)
        self.identity = Identity(b"o" * 32)
        members = [Identity(bytes([i]) * 32).peer_id for i in range(1, 9)]
        self.included = tuple(Inclusion(peer, 1) for peer in members)
        self.codec = codec.get(name)
        spec = RunSpec("bench", self.identity.peer_id, (ParamSpec("w", (numel,)),), RoundSpec(update_codec=name, dense_codec=""))
        self.signed = sign_spec(spec, self.identity)
        self.plan = spec.plan()
        self.references = [torch.randn(self.plan.size(shard)) * 0.02 for shard in range(self.plan.n_shards)]
        self.version = 0

    def round(self):
        """One update of every shard."""
        self.version += 1
        made = []
        for shard, reference in enumerate(self.references):
            payload = self.codec.encode(1e-4 * torch.randn(len(reference)) ** 3)
            after = reference - self.codec.decode(payload, len(reference))
            header = UpdateHeader(
                run_id(self.signed), shard, self.version, digest(reference), digest(after), self.identity.peer_id,
                self.codec.name, self.included, (), 8, 8000,
            )  # fmt: skip
            raw = encode(header)
            made.append((header, Update(raw, sign_header(raw, self.identity), payload)))
            self.references[shard] = after
        return made

    def put_bases(self, archive):
        for shard, reference in enumerate(self.references):
            archive.put_base(shard, self.version, digest(reference), self.included, fp32_bytes(reference))

    def append_whole(self, archive):
        """As one that trains alone does after every round."""
        for shard, reference in enumerate(self.references):
            archive.append_whole(shard, self.version, digest(reference), self.included, fp32_bytes(reference))


def timed(work):
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def measure(name, numel, folder):
    owner = Owner(name, numel)
    full_bytes = 4 * numel
    with BlockStore(folder) as store:
        archive = Archive(store, owner.identity, Retention(last=100))
        archive.open(owner.signed)
        base_s, _ = timed(lambda: owner.put_bases(archive))
        archive.publish(0, 0, {})
        base_bytes = store.used_bytes
        append_s, single, tenfold = 0.0, [], []
        for round_ in range(1, 2 * ROUNDS + 1):
            updates = owner.round()
            append_s += timed(partial(archive.append, updates, round_))[0]
            if round_ <= ROUNDS or round_ % 10 == 0:
                before = store.used_bytes
                root = archive.publish(round_, round_, {})
                (single if round_ <= ROUNDS else tenfold).append((store.used_bytes - before) / full_bytes)
        verify_s, _ = timed(lambda: sum(len(shard) for shard in Checkpoint(store, root).shards()))
        began = time.process_time()
        owner.append_whole(archive)
        whole_cpu_s = time.process_time() - began
        archive.close()
    return {
        "name": name,
        "single": sum(single) / len(single),
        "tenfold": sum(tenfold) / len(tenfold),
        "base": base_bytes / full_bytes,
        "write": full_bytes / base_s / 1e6,
        "whole_cpu_s": whole_cpu_s,
        "append_ms": 1000 * append_s / (2 * ROUNDS),
        "verify_s": verify_s,
    }


def table(rows):
    lines = [
        "| update codec | checkpoint of 1 round | of 10 rounds | a base | base written, MB/s | append a round, ms "
        "| read back, 40 rounds, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['name']} | 1/{1 / row['single']:.0f} | 1/{1 / row['tenfold']:.1f} | {row['base']:.3f} "
            f"| {row['write']:.0f} | {row['append_ms']:.1f} | {row['verify_s']:.2f} |"
        )
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=1 << 22)
    parser.add_argument("--record", type=Path, help="replace the part of this file between the markers, or make it")
    args = parser.parse_args()
    rows = []
    for name in CODECS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, args.elements, Path(folder) / "store"))
            print(table(rows)[-1], flush=True)
    lines = table(rows)
    met = ", ".join(f"{row['name']} 1/{1 / row['single']:.0f}" for row in rows if row["single"] <= AIM)
    whole_cpu_s = min(row["whole_cpu_s"] for row in rows)
    lines += [
        "", f"At most 1/{1 / AIM:.0f} of the weights after one round: {met or 'none'}.",
        f"All shards appended whole, as by one that trains alone: {1000 * whole_cpu_s:.0f} ms of CPU.",
    ]  # fmt: skip
    print("\n".join(lines))
    if args.record:
        about = (
            f"{datetime.date.today()}, one thread, Python {platform.python_version()}, torch {torch.__version__}; "
            f"{args.elements} elements in 16 shards, on a machine with other load."
        )
        command = "python benchmarks/checkpoints.py " + " ".join(sys.argv[1:])
        head = f"# Checkpoints: bytes and speed\n\n```console\n$ {command}\n```\n\n{about}\n"
        args.record.write_text("\n".join([head, *lines, ""]))


if __name__ == "__main__":
    main()
