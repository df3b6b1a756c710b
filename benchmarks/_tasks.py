"""What swarms are trained on where learning is measured: each task has a model, data of each member, and held-out data."""

import os
import statistics
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from legion_p2p.train.corpus import stdlib_text
from legion_p2p.train.gpt import GPT
from legion_p2p.train.gpt_config import GPTConfig, preset
from legion_p2p.train.tales import tales_text

Batch = tuple[Tensor, Tensor]


class Source(Protocol):
    """The data of one member."""

    def draw(self) -> Batch: ...


class Task(Protocol):
    @property
    def tokens(self) -> int:
        """Of one member's step; of what is no text, examples."""

    def model(self, seed: int) -> nn.Module: ...

    def source(self, seed: int, rank: int, n_members: int) -> Source: ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor: ...

    def evaluate(self, model: nn.Module) -> float:
        """The loss on held-out data."""


@cache
def stdlib() -> tuple[Any, Any]:
    root = os.environ.get("STDLIB")
    training, validation = (np.frombuffer(text, np.uint8) for text in stdlib_text(Path(root) if root else None))
    return training, validation


@cache
def tales() -> tuple[Any, Any]:
    text = np.frombuffer(tales_text(), np.uint8)
    cut = len(text) // 20
    return text[cut:], text[:cut]


@dataclass(frozen=True)
class Windows:
    """Random windows out of a part of a text."""

    part: Any
    random: np.random.Generator
    batch: int
    context: int

    def draw(self) -> Batch:
        return windows(self.part, self.random.integers(0, len(self.part) - self.context - 1, self.batch), self.context)


def windows(text: Any, starts: Any, context: int) -> Batch:
    both = torch.from_numpy(text[starts[:, None] + np.arange(context + 1)].astype(np.int64))
    return both[:, :-1], both[:, 1:]


@dataclass(frozen=True)
class Text:
    """A GPT that predicts the bytes of the standard library's source; each member has its own part of it.

    `n_tales`: so many members have little stories instead, and held-out text is then half of each: data that differ.
    """

    shape: GPTConfig
    batch: int
    n_validation: int = 256
    n_tales: int = 0

    @property
    def tokens(self) -> int:
        return self.batch * self.shape.context

    def model(self, seed: int) -> GPT:
        return GPT(self.shape, torch.Generator().manual_seed(seed))

    def source(self, seed: int, rank: int, n_members: int) -> Windows:
        n_code = n_members - self.n_tales
        text, among, at = (stdlib()[0], n_code, rank) if rank < n_code else (tales()[0], self.n_tales, rank - n_code)
        share = len(text) // among
        random = np.random.Generator(np.random.PCG64([seed, rank]))
        return Windows(text[at * share : (at + 1) * share], random, self.batch, self.shape.context)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = model(*batch)[1]
        return loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> float:
        texts = [stdlib()[1]] + [tales()[1]] * (self.n_tales > 0)
        return statistics.fmean(self._on(model, text) for text in texts)

    def _on(self, model: nn.Module, text: Any) -> float:
        context, n = self.shape.context, self.n_validation
        starts = np.linspace(0, len(text) - context - 2, n).astype(int)
        return statistics.fmean(float(model(*windows(text, starts[i : i + 64], context))[1]) for i in range(0, n, 64))


N_FEATURES, N_CLASSES = 32, 10


@dataclass(frozen=True)
class Rows:
    """Examples that are labelled by a fixed random network, a tenth of them wrongly."""

    random: torch.Generator
    batch: int

    def draw(self) -> Batch:
        x = torch.randn(self.batch, N_FEATURES, generator=self.random)
        y = teacher()(x).argmax(1)
        wrong = torch.rand(self.batch, generator=self.random) < 0.1
        return x, torch.where(wrong, torch.randint(0, N_CLASSES, (self.batch,), generator=self.random), y)


@cache
def teacher() -> nn.Module:
    return _perceptron(64, 1_000_000, gain=2.0)


def _perceptron(width: int, seed: int, gain: float = 1.0) -> nn.Module:
    random = torch.Generator().manual_seed(seed)
    sizes = [(N_FEATURES, width), (width, width), (width, N_CLASSES)]
    layers: list[nn.Module] = []
    for inputs, outputs in sizes:
        layer = nn.Linear(inputs, outputs)
        with torch.no_grad():
            layer.weight.normal_(0, gain * inputs**-0.5, generator=random)
            layer.bias.normal_(0, 0.1, generator=random)
        layers += [layer, nn.GELU()]
    whole = nn.Sequential(*layers[:-1]).requires_grad_(True)
    named = nn.Sequential()
    for i, layer in enumerate(whole):
        named.add_module("head" if i == len(whole) - 1 else f"layer{i}", layer)
    return named


@dataclass(frozen=True)
class Table:
    """A perceptron that learns the labels of rows of 32 numbers."""

    batch: int = 16
    width: int = 128

    @property
    def tokens(self) -> int:
        return self.batch

    def model(self, seed: int) -> nn.Module:
        return _perceptron(self.width, seed)

    def source(self, seed: int, rank: int, n_members: int) -> Rows:
        return Rows(torch.Generator().manual_seed(1000 * seed + rank + 1), self.batch)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> float:
        return float(self.loss(model, held_out()))


@cache
def held_out() -> Batch:
    return Rows(torch.Generator().manual_seed(999_999), 8192).draw()


SMALL = GPTConfig(n_layer=2, n_head=2, width=32, context=64)
TASKS: dict[str, Task] = {
    "text": Text(SMALL, batch=8),
    "topics": Text(SMALL, batch=8, n_tales=1),
    "halves": Text(SMALL, batch=8, n_tales=2),
    "reference": Text(preset("xxs"), batch=4, n_validation=384),
    "reference32": Text(preset("xxs"), batch=32, n_validation=384),
    "table": Table(),
}
