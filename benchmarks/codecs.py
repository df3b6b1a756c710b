"""Every ready-made codec: bits per element, squared error, and speed of one core.

    python benchmarks/codecs.py --elements 4194304 --record docs/records/codecs.md

Normal values, and heavy-tailed ones (a normal value cubed: kurtosis 46). The squared error is
relative to that of sending nothing. MB/s are of fp32, per second of CPU time, the best of several tries.
"""

import argparse
import datetime
import os
import platform
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from legion_p2p.tensor import codec

KNOWN = {"sign": 0.3634, "gauss2": 0.1175, "gauss3": 0.0345, "gauss4": 0.0095}
"""Max 1960, table I: what the best levels for normal values leave."""


def best_s(work, tries):
    times = []
    for _ in range(tries):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def measure(one, normal, heavy, tries):
    n = normal.numel()
    body = one.encode(normal)

    def error(x):
        left = (one.decode(one.encode(x), n) - x).double().square().sum()
        return float(left / x.double().square().sum())

    return {
        "name": one.name,
        "bits": 8 * len(body) / n,
        "normal": error(normal),
        "heavy": error(heavy),
        "encode": 4 * n / best_s(lambda: one.encode(normal), tries) / 1e6,
        "decode": 4 * n / best_s(lambda: one.decode(body, n), tries) / 1e6,
    }


def table(rows):
    lines = [
        "| codec | bits per element | times less | error, normal | theory | error, heavy-tailed | encode MB/s | decode MB/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        theory = f"{KNOWN[row['name']]:.4f}" if row["name"] in KNOWN else ""
        lines.append(
            f"| {row['name']} | {row['bits']:.4g} | {32 / row['bits']:.3g} | {row['normal']:.4g} | {theory} "
            f"| {row['heavy']:.4g} | {row['encode']:.0f} | {row['decode']:.0f} |"
        )
    return "\n".join(lines)


def machine():
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    return f"{datetime.date.today().isoformat()}, one thread, {versions}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=4 * 2**20)
    parser.add_argument("--tries", type=int, default=7)
    parser.add_argument("--names", nargs="*", default=None, help="codecs, of all ready-made ones unless given")
    parser.add_argument("--record", type=Path, help="write the table into this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    normal = torch.randn(args.elements, generator=random)
    heavy = torch.randn(args.elements, generator=random) ** 3
    names = args.names or sorted(codec.names(), key=lambda name: -codec.get(name).bits_per_element)
    rows = []
    for name in names:
        rows.append(measure(codec.get(name), normal, heavy, args.tries))
        print(table(rows).splitlines()[-1], file=sys.stderr)
    print(table(rows))
    if args.record:
        args.record.write_text(RECORD.format(args=args, record=args.record.as_posix(), machine=machine(), table=table(rows)))


RECORD = """# Codecs: bits, error, speed

```console
$ python benchmarks/codecs.py --elements {args.elements} --record {record}
```

{machine}; {args.elements} elements, the best of {args.tries} tries.
Times less is than fp32. An error of 1 is that of sending nothing; heavy-tailed is a normal value cubed. Theory is Max's
distortion of the best levels (1960); blocks of 512 fit their own scale, so that up to 0.8 % less is left. MB/s are of fp32, per
second of CPU time, on a machine with other load.

{table}

What it says: at 4 bits and fewer, the levels of Lloyd and Max beat even steps on normal values, and lose on heavy tails, except
at 2 bits. Of heavy tails, topk256-4bit leaves less with 0.6 bit than sign, gauss2, gauss3, or int2 with 1 to 3. Unbiased rounding
doubles the error and more: it is for sums that nothing corrects.
"""

if __name__ == "__main__":
    main()
