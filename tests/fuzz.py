"""Feeds every decoder of tests/decoders.py with changed forms of what it reads, for as long as is wanted.

    python -m tests.fuzz --seconds 300 --jobs 14 --seed 1 --out fuzz.json

Whatever the bytes are, a decoder reads them or refuses them with an error of its own, soon and in little memory. What does
something else is written to OUT, with the bytes as base64, and the exit code is 1. An input that gets a decoder somewhere new (it
is read, or refused for a reason of another kind) is kept, and changed in its turn; with `--keep` the shortest ones go to
tests/decoder_corpus.json, from which the next run begins. Needs nothing but what the package itself needs.
"""

import argparse
import base64
import json
import multiprocessing
import os
import random
import re
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tests.decoders import CORPUS, DECODERS, MAX_PEAK_BYTES, REFUSALS, SEEDS, corpus

MAX_INPUT_BYTES = 1 << 16
MAX_KEPT = 400  # inputs of one decoder in memory
SLOW_S = 2.0  # of CPU, for some kilobytes: on a busy machine a process may stand still for longer
MEASURED = 1 / 64  # of the inputs, for their memory: measuring takes several times as long as decoding
LOOK_EVERY = 256  # inputs of one decoder, between two looks at the clock
N_WRITTEN = 8  # inputs of one decoder that stay in the corpus
SHORT_BYTES = 400
NUMBERS = (
    b"\0", b"\x7f", b"\x80", b"\xff", b"\xff\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0\0\0\0\0", b"\xff" * 8,
    b"\x91" * 40, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x9f", b"\x1b[",
    b"\xe2\x80\xae",
)  # fmt: skip


def changed(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """A form of it with some bytes other than before."""
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        how = rng.randrange(8)
        if how == 0 and data:
            at = rng.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif how == 1:
            data = data[:at] + rng.choice(NUMBERS) + data[at + rng.randrange(5) :]
        elif how == 2:
            data = data[:at] + data[end:]
        elif how == 3:
            data = data[:end] + data[at:end] * rng.randrange(1, 4) + data[end:]
        elif how == 4:
            data = data[:at] + rng.randbytes(rng.randrange(9)) + data[at:]
        elif how == 5:
            other = rng.choice(others)
            data = data[:at] + other[rng.randrange(len(other) + 1) :]
        elif how == 6:
            data = data[:end]
        else:
            data = data[:at] + rng.randbytes(end - at) + data[end:]
    return data[:MAX_INPUT_BYTES]


def outcome(decode: Callable[[bytes], Any], data: bytes) -> str:
    """What became of it: "read", or the kind of refusal. Raises: whatever is no refusal."""
    try:
        decode(data)
    except REFUSALS as refused:
        return f"{type(refused).__name__}: " + re.sub(r"\d+|'[^']*'|\"[^\"]*\"|`[^`]*`", "#", str(refused))[:80]
    return "read"


class FindingError(Exception):
    """A decoder did something else than it may."""


def tried(decode: Callable[[bytes], Any], data: bytes, *, measure: bool) -> str:
    """`outcome`. Raises: FindingError."""
    if measure:
        tracemalloc.start()
    began = time.process_time()
    try:
        found = outcome(decode, data)
        peak = tracemalloc.get_traced_memory()[1] if measure else 0
    except Exception as bad:
        raise FindingError(f"{type(bad).__name__}: {bad}") from bad
    finally:
        if measure:
            tracemalloc.stop()
    if peak > MAX_PEAK_BYTES:
        raise FindingError(f"{peak} bytes of memory for {len(data)}")
    took_s = time.process_time() - began
    if took_s > SLOW_S:
        raise FindingError(f"{took_s:.1f} s for {len(data)} bytes")
    return found


def work(job: tuple[int, int, float]) -> dict[str, Any]:
    """What one process finds until the time is over."""
    number, seed, until = job
    torch.set_num_threads(1)
    rng = random.Random(f"{seed} {number}")
    kept = {name: [valid, *SEEDS.get(name, ()), *corpus().get(name, ())] for name, (_, valid) in DECODERS.items()}
    seen: dict[str, set[str]] = {name: set() for name in DECODERS}
    tries: Counter[str] = Counter()
    findings: dict[tuple[str, str], bytes] = {}
    names = list(DECODERS)
    rng.shuffle(names)
    while time.time() < until:
        for name in names:
            decode, inputs = DECODERS[name][0], kept[name]
            for _ in range(LOOK_EVERY):
                data = changed(rng.choice(inputs), inputs, rng)
                tries[name] += 1
                try:
                    found = tried(decode, data, measure=rng.random() < MEASURED)
                except FindingError as finding:
                    findings.setdefault((name, str(finding)[:200]), data)
                    continue
                if found not in seen[name]:
                    seen[name].add(found)
                    if len(inputs) < MAX_KEPT:
                        inputs.append(data)
            if time.time() >= until:
                break
    return {
        "tries": dict(tries),
        "outcomes": {name: sorted(found) for name, found in seen.items()},
        "findings": [
            {"decoder": name, "what": what, "data": base64.b64encode(data).decode()} for (name, what), data in findings.items()
        ],
        "kept": {name: [base64.b64encode(x).decode() for x in inputs if len(x) <= SHORT_BYTES] for name, inputs in kept.items()},
        "cpu_s": time.process_time(),
    }


def shortest_of_each_kind(results: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """For the corpus: of each outcome of a decoder the shortest input that led there."""
    chosen = {}
    for name, (decode, _) in DECODERS.items():
        best: dict[str, bytes] = {}
        for text in {text for result in results for text in result["kept"][name]}:
            data = base64.b64decode(text)
            found = outcome(decode, data)
            if found not in best or (len(data), data) < (len(best[found]), best[found]):
                best[found] = data
        inputs = sorted(best.values(), key=lambda data: (len(data), data))[:N_WRITTEN]
        chosen[name] = [base64.b64encode(data).decode() for data in inputs]
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("fuzz.json"))
    parser.add_argument("--keep", action="store_true", help="write what was kept to the corpus")
    args = parser.parse_args()
    until = time.time() + args.seconds
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        results = pool.map(work, [(number, args.seed, until) for number in range(args.jobs)], chunksize=1)
    findings = [finding for result in results for finding in result["findings"]]
    tries = sum((Counter(result["tries"]) for result in results), Counter())
    cpu_s = sum(result["cpu_s"] for result in results)
    kinds = {name: len({o for result in results for o in result["outcomes"][name]}) for name in DECODERS}
    args.out.write_text(json.dumps({"cpu_s": cpu_s, "tries": tries, "kinds": kinds, "findings": findings}, indent=1))
    if args.keep:
        CORPUS.write_text(json.dumps(shortest_of_each_kind(results), indent=0) + "\n")
    for name in DECODERS:
        print(f"{name}: {tries[name]} inputs, {kinds[name]} kinds of outcome")
    for finding in findings:
        print(f"FOUND {finding['decoder']}: {finding['what']}")
    print(f"{sum(tries.values())} inputs in {cpu_s:.0f} CPU s, {len(findings)} findings, in {args.out}")
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
