"""What the demo says of the model at the end: is it the same at every peer, how good is it, and what does it write?"""

import hashlib
from pathlib import Path

import msgspec


class Judged(msgspec.Struct, frozen=True):
    """`same_bytes`: every file holds the same tensors, bit for bit."""

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


def judged_model(spec: Path, files: list[Path], seed: int) -> Judged:
    """Load what the peers have left, compare, and evaluate it on FINAL_EVAL_WINDOWS windows of the held-out text."""
    import torch
    from safetensors.torch import load_file

    from legion_p2p.config import NewRun, read_toml
    from legion_p2p.train.corpus import open_text
    from legion_p2p.train.trainer import EVAL_WINDOWS, FINAL_EVAL_WINDOWS, evaluate, sample_text, spec_of, trainable

    torch.set_num_threads(1)  # with more, they wait for each other where the machine is busy: minutes instead of seconds
    new_run = read_toml(str(spec), NewRun)
    _, model = spec_of(new_run)
    there = [load_file(path) for path in files if path.exists()]
    if not there:
        return Judged(None, False, "", model.n_params, FINAL_EVAL_WINDOWS, EVAL_WINDOWS, None, str(torch.__version__))
    hashes = set()
    for tensors in there:
        sha256 = hashlib.sha256()
        for name in sorted(tensors):
            sha256.update(name.encode() + b"\0" + tensors[name].contiguous().numpy().tobytes())
        hashes.add(sha256.digest())
    with torch.no_grad():
        for name, parameter in trainable(model):
            parameter.copy_(there[0][name])
    corpus = open_text(new_run.data, model.config.context)
    val_loss = evaluate(model, corpus, FINAL_EVAL_WINDOWS)
    curve_loss = evaluate(model, corpus, EVAL_WINDOWS)
    model.eval()
    same = len(hashes) == 1 and len(there) == len(files)
    sample = sample_text(model, seed)
    return Judged(val_loss, same, sample, model.n_params, FINAL_EVAL_WINDOWS, EVAL_WINDOWS, curve_loss, str(torch.__version__))
