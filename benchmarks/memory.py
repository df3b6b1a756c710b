"""The memory that a peer of a replicated run takes beside plain torch, in bytes a parameter.

    python benchmarks/memory.py --preset l --members 2 --seconds 60
    python benchmarks/memory.py --preset l --members 2 --seconds 60 --offload disk

Peers are processes of `legion-peer`, which train with AdamW on one short window a step, so that activations take little. Plain
torch makes the same steps in a process that has imported the same. The smallest preset runs as well: what it takes beside plain
torch is the program's own (connections, threads, buffers), and is taken off. A figure is the peak of what Linux counts for the
process (VmHWM); "usually" is the median of what it has in the second half (VmRSS).
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from legion_p2p.train.gpt import shapes_of
from legion_p2p.train.gpt_config import preset

PLAIN = """
import sys, torch
import legion_p2p.train.trainer
from legion_p2p.core.run import InnerSpec
from legion_p2p.train.gpt import GPT
from legion_p2p.train.inner import inner_optimizer
torch.set_num_threads(1)
gpt = GPT.from_preset(sys.argv[1])
inner = inner_optimizer(InnerSpec(), gpt)
x = torch.zeros((1, int(sys.argv[2])), dtype=torch.int64)
for _ in range(4):
    torch.autograd.backward(gpt(x, x)[1])
    torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
    inner.step()
    inner.zero_grad()
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
SMALLEST = "xxs"
LOOK_S = 0.5
READY_S = 120.0
CONTEXT = "16"


@dataclass(frozen=True)
class Taken:
    """Bytes of one process."""

    peak: int
    usual: int


def field(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def plain(name: str) -> int:
    done = subprocess.run([sys.executable, "-c", PLAIN, name, CONTEXT], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout)


def peers(name: str, n_members: int, seconds: float, more: list[str]) -> list[Taken]:
    """What each of the members of one run takes."""
    started: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("the quick brown fox jumps over the lazy dog. " * 4000)
        new = ["--new-run", "memory", "--preset", name, "--context", CONTEXT, "--batch", "1", "--local-steps", "5"]
        common = ["--data", str(text), "--listen", "/ip4/127.0.0.1/tcp/0", "--identity", "none", "--lan", "no", "--no-status"]
        common += ["--threads", "1", "--device", "cpu", "--wait-for-members", str(n_members), "--minutes", "60"]
        seen: list[list[int]] = [[] for _ in range(n_members)]
        try:
            address = ""
            for number in range(n_members):
                which = new if not number else ["--run", "memory", "--initial-peers", address]
                words = [sys.executable, "-m", "legion_p2p.cli.peer", *which, *common, *more]
                process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
                started.append(process)
                if not number:
                    assert process.stdout is not None
                    address = next(word for line in process.stdout for word in line.split() if "/p2p/" in word)
            ends_at = time.monotonic() + seconds
            while time.monotonic() < ends_at:
                time.sleep(LOOK_S)
                for process, own in zip(started, seen, strict=True):
                    if process.poll() is not None:
                        raise SystemExit(f"a peer ended early, with exit code {process.returncode}")
                    own.append(field(process.pid, "VmRSS"))
            second_half = [own[len(own) // 2 :] for own in seen]
            return [
                Taken(field(process.pid, "VmHWM"), round(statistics.median(own)))
                for process, own in zip(started, second_half, strict=True)
            ]
        finally:
            for process in started:
                process.kill()
                process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="l")
    parser.add_argument("--members", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--links", default="cable")
    parser.add_argument("--offload", default="")
    args = parser.parse_args()
    more = ["--offload", args.offload] if args.offload else []
    n_params = sum(param.numel for param in shapes_of(preset(args.preset)))
    base = plain(SMALLEST)
    own = min(taken.peak for taken in peers(SMALLEST, args.members, min(20.0, args.seconds), more)) - base
    at_all = plain(args.preset)
    print(f"plain torch: {at_all / 1e6:.0f} MB; the program itself: {own / 1e6:.0f} MB; {n_params:,} parameters")
    print("| peer | MB at its peak | beside plain torch, bytes a parameter | usually |\n|---|---|---|---|")
    for number, taken in enumerate(peers(args.preset, args.members, args.seconds, more)):
        beside, usual = ((n - at_all - own) / n_params for n in (taken.peak, taken.usual))
        print(f"| {number + 1} | {taken.peak / 1e6:.0f} | {beside:.1f} | {usual:.1f} |")


if __name__ == "__main__":
    main()
