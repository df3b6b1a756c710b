"""What a GPU computes of a round: codecs there and on the CPU, copies beside training, and a compiled step in bf16.

    python benchmarks/device_checks.py --minutes 0.7 --out FOLDER
    python benchmarks/device_checks.py --device cpu --size tiny --minutes 0.5 --out FOLDER

For each codec and several lengths: whether a tensor on the device is encoded to the same bytes as on the CPU; if not, how many
differ, and by how much what they decode to is further from the tensor. For what benchmarks/gpt2_device.py takes of a round on the
device: whether it has the bits that a receiver decodes, and how far its mean is from the owners'. Each result is a line in
FOLDER/checks.jsonl at once.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import _on_device
import torch
from gpt2_device import SIZES, WINDOWS

from legion_p2p.config import Training
from legion_p2p.tensor import codec
from legion_p2p.tensor.aggregate import WeightedPush
from legion_p2p.tensor.codec import Codec
from legion_p2p.tensor.mixed import Mixed
from legion_p2p.tensor.robust.rules import Rule, aggregate
from legion_p2p.train.compute import Compute
from legion_p2p.train.flops import flops_per_token, peak_flops
from legion_p2p.train.gpt import GPT
from legion_p2p.train.language_model import LanguageModel

LENGTHS = {"gpt2": (1, 63, 4096, 4097, 65_553, 1_000_003, 7_778_304), "tiny": (1, 63, 4097, 20_001)}
MORE = ("topk512-2bit", "topk1024-4bit", "topk64-1bit", "topk100-8bit", "topk32-16bit")


class Report:
    """Lines of JSON, each written at once; and the time that is left."""

    def __init__(self, folder: Path, minutes: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "checks.jsonl"
        self.end = time.monotonic() + 60 * minutes

    def say(self, **fields: Any) -> None:
        line = json.dumps(fields)
        with open(self.file, "a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def is_over(self) -> bool:
        return time.monotonic() >= self.end


def normal(n: int, seed: int) -> torch.Tensor:
    """Normal values cubed, on the CPU: with the tails that changes have."""
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).pow(3).mul_(1e-3)


def error(x_N: torch.Tensor, y_N: torch.Tensor) -> float:
    """The squared error of y as a share of the squares of x."""
    return float((x_N - y_N).double().square().sum() / x_N.double().square().sum().clamp_min(1e-300))


def check_codec(chosen: Codec, n: int, device: str) -> dict[str, Any]:
    x_N = normal(n, n)
    there_N = x_N.to(device)
    wait(device)
    began = time.perf_counter()
    here = chosen.encode(x_N)
    between = time.perf_counter()
    there = chosen.encode(there_N)
    wait(device)
    ended = time.perf_counter()
    told: dict[str, Any] = {"codec": chosen.name, "elements": n, "same_bytes": bytes(here) == bytes(there)}
    told |= {"cpu_ms": round(1e3 * (between - began), 2), "device_ms": round(1e3 * (ended - between), 2)}
    if not told["same_bytes"]:
        told["bytes"] = [len(here), len(there)]
        if len(here) == len(there):
            told["differ"] = sum(a != b for a, b in zip(here, there, strict=True))
        a_N, b_N = chosen.decode(here, n), chosen.decode(there, n)
        told |= {"errors": [error(x_N, a_N), error(x_N, b_N)], "apart": error(a_N, b_N)}
    return told


def check_sent(chosen: Codec, n: int, device: str) -> dict[str, Any]:
    x_N = normal(n, n + 1).to(device)
    decoded_N = chosen.decode(chosen.encode(x_N), n)
    made_N = _on_device.sent(chosen, x_N).cpu()
    kind = "mixed " if isinstance(chosen, Mixed) else ""
    return {
        "sent": kind + chosen.name,
        "elements": n,
        "same_bits": torch.equal(made_N.view(torch.int32), decoded_N.view(torch.int32)),
    }


def check_mean(n: int, device: str) -> dict[str, Any]:
    common_N = normal(n, 1)
    pushes = [common_N + normal(n, 10 + i) for i in range(4)]
    contributions = [WeightedPush(str(i), 1.0, push) for i, push in enumerate(pushes)]
    by_owner = aggregate(contributions, Rule("nearest-neighbours", 1.0), n, restore=1.0)
    mean_N, agreement = _on_device.aggregate([push.to(device) for push in pushes], 1.0)
    return {
        "mean": n, "relative_error": math.sqrt(error(by_owner.mean, mean_N.cpu())),
        "agreement": [by_owner.agreement, agreement],
    }  # fmt: skip


def check_copies(n: int, report: Report) -> None:
    """A shard to the host and back: as it is, and pinned on a stream of its own, beside matrix products."""
    x_N = torch.randn(n, device="cuda")
    y_N = torch.empty(n)
    pinned_N = torch.empty(n, pin_memory=True)
    stream = torch.cuda.Stream()
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def products() -> None:
        for _ in range(20):
            torch.mm(a, a)

    def beside() -> None:
        with torch.cuda.stream(stream):
            for _ in range(4):
                pinned_N.copy_(x_N, non_blocking=True)
                x_N.copy_(pinned_N, non_blocking=True)
        products()

    def timed(what: Any) -> float:
        what()
        torch.cuda.synchronize()
        began = time.perf_counter()
        what()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    plain_s, back_s = timed(lambda: y_N.copy_(x_N)), timed(lambda: x_N.copy_(y_N))
    pinned_s, up_s = timed(lambda: pinned_N.copy_(x_N)), timed(lambda: x_N.copy_(pinned_N))
    gb = 4 * n / 1e9
    report.say(
        copy_elements=n, to_host_gb_s=round(gb / plain_s, 2), to_device_gb_s=round(gb / back_s, 2),
        pinned_to_host_gb_s=round(gb / pinned_s, 2), pinned_to_device_gb_s=round(gb / up_s, 2),
        products_ms=round(1e3 * timed(products), 2), products_beside_copies_ms=round(1e3 * timed(beside), 2),
    )  # fmt: skip


def check_step(size: str, device: str, is_compiled: bool, report: Report) -> None:
    """A step as `legion-peer --compile --precision bf16` computes it, and with the loss inside what is compiled."""
    config = SIZES[size]
    on_cuda = device.startswith("cuda")
    model = GPT(config, torch.Generator().manual_seed(0))
    tokens = torch.randint(0, config.vocab_size, (WINDOWS[size], config.context + 1), generator=torch.Generator().manual_seed(1))
    x, y = tokens[:, :-1].contiguous().to(device), tokens[:, 1:].contiguous().to(device)
    exact = Compute(LanguageModel.of_gpt(model), device, Training())
    with torch.no_grad():
        reference = float(exact.loss(x, y))
    job = Training(compile=is_compiled, precision="bf16")
    compute = Compute(LanguageModel.of_gpt(model), device, job)

    def by_product() -> torch.Tensor:
        return compute.loss(x, y)

    def together() -> torch.Tensor:
        with compute.precise():
            loss: torch.Tensor = model(x, y)[1]
        return loss

    flops, peak = flops_per_token(model, config.n_layer, config.width, config.context), peak_flops(device, "bf16")
    for name, loss_of in (("loss inside", together), ("loss outside", by_product)):
        if report.is_over():
            return
        began = time.perf_counter()
        times = []
        for _ in range(12):
            at = time.perf_counter()
            loss = loss_of()
            loss.backward()
            model.zero_grad(set_to_none=True)
            wait(device)
            times.append(time.perf_counter() - at)
            if report.is_over():
                break
        best = sorted(times[2:] or times)[len(times[2:] or times) // 2]
        speed = x.numel() / best
        report.say(
            step=name, first_s=round(times[0], 2), all_s=round(time.perf_counter() - began, 1), tokens_per_s=round(speed),
            mfu=round(speed * flops / peak, 3) if peak else None, loss=float(loss.detach()), loss_fp32=reference,
            memory_gb=round(torch.cuda.max_memory_allocated() / 1e9, 1) if on_cuda else None,
        )  # fmt: skip


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of what is written")
    parser.add_argument("--minutes", type=float, default=0.7, help="after which nothing more is begun")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    report = Report(args.out, args.minutes)
    torch.set_float32_matmul_precision("high")
    if args.device.startswith("cuda"):
        report.say(device=torch.cuda.get_device_name(), torch=torch.__version__)
        check_copies(7_778_304, report)
    known = [codec.get(name) for name in (*codec.names(), *MORE)]
    mixed = [
        Mixed(codec.get(name), codec.get("int8"), ((10, 700), (3000, 3100)), 20_000) for name in ("topk512-2bit", "topk1024-4bit")
    ]
    for chosen, n in [(one, 65_553) for one in known if one.name.startswith(("int", "topk", "fp32"))] + [
        (m, 20_000) for m in mixed
    ]:
        if not chosen.name.endswith("unbiased"):
            report.say(**check_sent(chosen, n, args.device))
    for n in LENGTHS[args.size][-2:]:
        report.say(**check_mean(n, args.device))
    for n in LENGTHS[args.size]:
        for chosen in known:
            if not report.is_over():
                report.say(**check_codec(chosen, n, args.device))
    check_step(args.size, args.device, args.compile, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
