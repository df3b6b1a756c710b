"""What a peer computes does not depend on what its user has set for the whole process, and leaves that as it is."""

import ast
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from legion_p2p.core.round import Closed, Contribution
from legion_p2p.core.round_spec import RoundSpec
from legion_p2p.services.shards.replica import combine
from legion_p2p.tensor import codec
from legion_p2p.tensor.aggregate import WeightedPush
from legion_p2p.tensor.flatten import FlatView
from legion_p2p.tensor.local import LocalCopy
from legion_p2p.tensor.mixed import Mixed
from legion_p2p.tensor.outer import OuterState
from legion_p2p.tensor.robust import rules
from legion_p2p.train.checkpoint import cut
from legion_p2p.train.gpt import GPT
from legion_p2p.train.gpt_config import preset
from legion_p2p.train.muon import MuonAdamW
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "check_process_state.py"
N = 5001  # whole blocks of every codec, and a rest


@contextmanager
def dtype(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SETTINGS: dict[str, Callable[[], object]] = {
    "float64": lambda: dtype(torch.float64),
    "bfloat16": lambda: dtype(torch.bfloat16),
    "float16": lambda: dtype(torch.float16),
    "meta": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def values(seed: int, n: int = N) -> Tensor:
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).standard_normal(n).astype(np.float32))


def codecs() -> list[codec.Codec]:
    mixed = [Mixed(codec.get(main), codec.get("int8"), ((3, 40), (4000, 4100)), N) for main in ("topk64-2bit", "sign")]
    return [*map(codec.get, codec.names()), *mixed]


def coded() -> list[object]:
    results: list[object] = []
    for each in codecs():
        data = each.encode(values(1))
        decoded = each.decode(data, N)
        results += [data, decoded.numpy().tobytes(), decoded.dtype]
    return results


def combined() -> list[object]:
    results: list[object] = []
    closed = Closed(3, tuple(Contribution(name, 1, 3 - i, 100 * i + 1, 0.0) for i, name in enumerate("abc")), 3, ())
    for outer in ("average", "sgd", "nesterov", "delayed-nesterov"):
        spec = RoundSpec(outer=outer, outer_learning_rate=0.7, push_codec="int8")
        pushed = {name: values(i) for i, name in enumerate("abc")}
        made = combine(values(7), values(8), OuterState(), closed, pushed, spec, codec.get("topk64-4bit"))
        results += [made.payload, made.digest, made.reference.dtype]
    return results


def trained() -> list[object]:
    model = GPT(preset("xxs", vocab_size=64, context=16))
    opt = MuonAdamW.of(model)
    view = FlatView(model.named_parameters())
    copy = LocalCopy(view, [(0, view.numel)], exact=True)
    copy.take(0, 0, view.snapshot() + 1e-3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    base, local = copy.hand_in([0])[0]
    return [view.snapshot().numpy().tobytes(), base.numpy().tobytes(), local.dtype, str(model.blocks[0].mlp.out.weight.dtype)]


def piecewise() -> list[object]:
    return [piece.numpy().tobytes() for piece in cut([values(1, 10), values(2, 20)], [7, 23])]


def aggregated() -> list[object]:
    pushes = [WeightedPush(name, 1.0 + i / 7, values(i)) for i, name in enumerate("abcdefg")]
    return [rules.aggregate(pushes, rules.Rule(name)).mean.numpy().tobytes() for name in rules.names()]


@pytest.mark.parametrize("work", [coded, combined, trained, piecewise, aggregated])
@pytest.mark.parametrize("setting", SETTINGS)
def test_bits_do_not_depend_on_the_defaults_of_the_process(work: Callable[[], list[object]], setting: str) -> None:
    expected = work()

    with SETTINGS[setting]():  # type: ignore[attr-defined]
        got = work()

    assert got == expected


def test_nobodys_random_numbers_are_used_up() -> None:
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = (torch.rand(3).tolist(), random.random(), np.random.rand())
    torch.manual_seed(5), random.seed(5), np.random.seed(5)

    coded(), combined(), trained()

    assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == expected


def test_nothing_in_the_package_takes_what_the_process_has_set() -> None:
    done = subprocess.run([sys.executable, str(TOOL)], capture_output=True, text=True, timeout=PATIENCE_S)

    assert done.returncode == 0, done.stdout


FAULTS = {
    "import torch\ntorch.zeros(3)": "torch.zeros without device= and dtype=",
    "import torch as t\nt.full((3,), 1.0, dtype=t.float32)": "torch.full without device=",
    "from torch import arange\narange(3, device='cpu')": "torch.arange without dtype=",
    "from torch import frombuffer as f\nf(b'')": "torch.frombuffer without dtype=",
    "import torch\ntorch.Tensor([1])": "torch.Tensor() takes the default dtype or device",
    "import torch\ntorch.rand(3, dtype=d, device=d)": "rand without generator=",
    "def f(x):\n    x.normal_()": "normal_ without generator=",
    "import torch.nn as nn\nnn.init.xavier_uniform_(w)": "xavier_uniform_ without generator=",
    "import random\nrandom.shuffle(x)": "random.shuffle uses the process's random state",
    "from random import choice\nchoice(x)": "random.choice uses",
    "import numpy as np\nnp.random.rand(3)": "numpy.random.rand uses",
    "import torch\ntorch.set_num_threads(1)": "torch.set_num_threads changes the user's process",
    "import os\nos.chdir('/')": "os.chdir changes the user's process",
}


@pytest.mark.parametrize("source", FAULTS)
def test_the_check_finds(source: str, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(source)

    done = subprocess.run([sys.executable, str(TOOL), str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE_S)

    assert done.returncode == 1
    assert FAULTS[source] in done.stdout
    ast.parse(source)


def test_the_check_lets_pass_what_says_all(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "import random\nimport numpy as np\nimport torch\n"
        "torch.zeros(3, dtype=torch.float32, device='cpu')\ntorch.zeros_like(x)\nx.new_empty(3)\ntorch.from_numpy(x)\n"
        "torch.rand(3, dtype=d, device=d, generator=g)\nrandom.Random(3).random()\nnp.random.default_rng(3).normal()\n"
        "np.random.Generator(np.random.Philox(3)).normal()\n"
    )

    done = subprocess.run([sys.executable, str(TOOL), str(tmp_path)], capture_output=True, text=True, timeout=PATIENCE_S)

    assert (done.returncode, done.stdout) == (0, "nothing depends on the process's defaults\n")
