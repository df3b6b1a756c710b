"""What simulated peers train: models whose loss means something, and that take microseconds a step.

| task | model | loss |
|---|---|---|
| regression | one hidden layer that learns the answers of a wider one: small, but not convex | mean squared error without noise |
| quadratic | a vector; each peer has an optimum of its own beside the common one | mean squared distance to the common one |
| text | the built-in GPT xxs, by Muon, on the source of Python's library | nats per byte of text that was held out |
| none | nothing: rounds of a change that is zero | none |

Every peer draws its examples from a generator of its own, by its name. So what one draws does not depend on who else is there.
Shapes: B = examples of a batch, I = inputs, H = hidden units, E = elements of a parameter vector.
"""

import hashlib
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from legion_p2p.scenarios.scenario import SimTask
from legion_p2p.tensor.flatten import FlatView

N_INPUTS = 8
N_TEACHER = 64
N_EVALUATED = 2048
N_WINDOWS = 64  # of held-out text for a loss: a tenth of a second
CONTEXT = 64
CLIP = 1.0

Floats = npt.NDArray[np.float32]
Draw = tuple[npt.NDArray[Any], ...]
"""The examples of one step: arrays of the same shapes at each step."""


class TrainedTask(Protocol):
    """A task of one simulation."""

    start: Tensor
    """Parameters at the start: 1-D fp32."""

    def draw(self, name: str) -> Draw:
        """What the next step of the peer of this name is made of."""

    def step(self, name: str, theta: Tensor) -> None:
        """A local step of the peer of this name, whose parameters are `theta`, in place."""

    def loss(self, theta: Tensor) -> float | None:
        """Of these parameters; None where there is none."""

    @property
    def model(self) -> Callable[[str], FlatView] | None:
        """Gives by a peer's name the parameters that it trains; None: one tensor like `start`."""


def trained_task(task: SimTask, seed: int) -> TrainedTask:
    """The task that a scenario describes."""
    match task.kind:
        case "regression":
            return Regression(task, seed)
        case "quadratic":
            return Quadratic(task, seed)
        case "text":
            return TextTask(task, seed)
        case "none":
            return NoTask(task.size)


def generator_of(*words: object) -> np.random.Generator:
    """A generator for these words: always the same, and unlike those of other words."""
    key = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "big")))


class _Draws:
    """Random numbers of each peer, by its name."""

    def __init__(self, seed: int, unlike: float, size: int) -> None:
        self._seed = seed
        self._unlike = unlike
        self._size = size
        self._known: dict[str, tuple[np.random.Generator, Floats]] = {}

    def of(self, name: str) -> tuple[np.random.Generator, Floats]:
        """Its generator, and by how much its data is moved."""
        known = self._known.get(name)
        if known is None:
            moved = self._unlike * generator_of(self._seed, "unlike", name).standard_normal(self._size, dtype=np.float32)
            known = self._known[name] = generator_of(self._seed, "draws", name), moved
        return known


class Regression:
    """`tanh(x W + b) w` learns to answer like a teacher with more hidden units."""

    model = None

    def __init__(self, task: SimTask, seed: int) -> None:
        rng = generator_of(seed, "teacher")
        self._task = task
        self._hidden_IH = rng.standard_normal((N_INPUTS, N_TEACHER), dtype=np.float32) / np.float32(math.sqrt(N_INPUTS))
        self._out_H = rng.standard_normal(N_TEACHER, dtype=np.float32) / np.float32(math.sqrt(N_TEACHER))
        self._x_BI = rng.standard_normal((N_EVALUATED, N_INPUTS), dtype=np.float32)
        self._y_B = self._answer(self._x_BI)
        self._draws = _Draws(seed, task.unlike, N_INPUTS)
        n_elements = (N_INPUTS + 2) * task.size
        self.start = torch.from_numpy(rng.standard_normal(n_elements, dtype=np.float32) / np.float32(math.sqrt(N_INPUTS)))

    def draw(self, name: str) -> Draw:
        """Inputs, and noisy answers to them."""
        rng, moved_I = self._draws.of(name)
        task = self._task
        x_BI = rng.standard_normal((task.batch, N_INPUTS), dtype=np.float32) + moved_I
        return x_BI, self._answer(x_BI) + np.float32(task.noise) * rng.standard_normal(task.batch, dtype=np.float32)

    def step(self, name: str, theta: Tensor) -> None:
        """One step of SGD: the gradient of the mean squared error, by hand."""
        task = self._task
        x_BI, y_B = self.draw(name)
        weights_IH, bias_H, out_H = self._parts(theta)
        active_BH = np.tanh(x_BI @ weights_IH + bias_H)
        error_B = (active_BH @ out_H - y_B) * np.float32(-2 * task.learning_rate / task.batch)
        inner_BH = np.outer(error_B, out_H) * (1 - active_BH * active_BH)
        out_H += error_B @ active_BH
        weights_IH += x_BI.T @ inner_BH
        bias_H += inner_BH.sum(axis=0)

    def loss(self, theta: Tensor) -> float:
        weights_IH, bias_H, out_H = self._parts(theta)
        said_B = np.tanh(self._x_BI @ weights_IH + bias_H) @ out_H
        return float(np.mean((said_B - self._y_B) ** 2))

    def _parts(self, theta: Tensor) -> tuple[Floats, Floats, Floats]:
        """Views of the parameters."""
        flat_E: Floats = theta.detach().numpy()
        size = self._task.size
        return flat_E[: N_INPUTS * size].reshape(N_INPUTS, size), flat_E[N_INPUTS * size : -size], flat_E[-size:]

    def _answer(self, x_BI: Floats) -> Floats:
        return np.asarray(np.tanh(x_BI @ self._hidden_IH) @ self._out_H, dtype=np.float32)


class Quadratic:
    """A step goes towards the peer's own optimum; the mean of all that take part is near the common one."""

    model = None

    def __init__(self, task: SimTask, seed: int) -> None:
        self._task = task
        self._optimum_E = generator_of(seed, "optimum").standard_normal(task.size, dtype=np.float32)
        self._draws = _Draws(seed, task.unlike, task.size)
        self.start = torch.zeros(task.size, dtype=torch.float32, device="cpu")

    def draw(self, name: str) -> Draw:
        """The optimum of the peer, and what is added to the gradient."""
        rng, moved_E = self._draws.of(name)
        size = self._task.size
        noise = self._task.noise
        noise_E = np.float32(noise) * rng.standard_normal(size, dtype=np.float32) if noise else np.zeros(size, np.float32)
        return self._optimum_E + moved_E, noise_E

    def step(self, name: str, theta: Tensor) -> None:
        optimum_E, noise_E = self.draw(name)
        at_E: Floats = theta.detach().numpy()
        at_E -= np.float32(self._task.learning_rate) * (at_E - optimum_E + noise_E)

    def loss(self, theta: Tensor) -> float:
        return float(np.mean((theta.detach().numpy() - self._optimum_E) ** 2))


class NoTask:
    """Nothing is trained: what is left is membership, ownership, and rounds without content."""

    model = None

    def __init__(self, n_elements: int) -> None:
        self.start = torch.zeros(n_elements, dtype=torch.float32, device="cpu")

    def draw(self, name: str) -> Draw:
        return ()

    def step(self, name: str, theta: Tensor) -> None:
        """None is made."""

    def loss(self, theta: Tensor) -> None:
        """There is none."""


class TextTask:
    """A GPT at each peer, which takes a tenth of a second of CPU a step: for a few peers."""

    def __init__(self, task: SimTask, seed: int) -> None:
        from legion_p2p.train.corpus import stdlib_text

        training, held_out = stdlib_text()
        self._task = task
        self._seed = seed
        self._text = np.frombuffer(training, np.uint8)
        self._held_out = np.frombuffer(held_out, np.uint8)
        self._draws = _Draws(seed, 0.0, 1)
        self._known: dict[str, tuple[Any, Any, FlatView]] = {}
        _, _, self._scratch = self._of("")
        self.start = self._scratch.snapshot()

    def model(self, name: str) -> FlatView:
        """The parameters of a peer that begins; of one that comes back they are new as well."""
        self._known.pop(name, None)
        return self._of(name)[2]

    def step(self, name: str, theta: Tensor) -> None:
        model, optimizer, _ = self._of(name)
        windows = torch.from_numpy(self.draw(name)[0])
        _, loss = model(windows[:, :-1], windows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    def draw(self, name: str) -> Draw:
        """Windows of text, each with the token after it."""
        rng, _ = self._draws.of(name)
        starts_B = rng.integers(0, len(self._text) - CONTEXT - 1, self._task.batch)
        return (self._text[starts_B[:, None] + np.arange(CONTEXT + 1)].astype(np.int64),)

    def held_out(self) -> list[tuple[Tensor, Tensor]]:
        """Batches of the text that losses are of."""
        from legion_p2p.train.batches import validation_batches

        return list(validation_batches(self._held_out, CONTEXT, N_WINDOWS))

    @torch.no_grad()
    def loss(self, theta: Tensor) -> float:
        model, _, view = self._of("")
        view.assign_slice(0, theta)
        losses = [float(model(x_BT, y_BT)[1]) * len(x_BT) for x_BT, y_BT in self.held_out()]
        return sum(losses) / N_WINDOWS

    def fresh_model(self) -> Any:
        """The model as it starts."""
        from legion_p2p.train.gpt import GPT

        return GPT.from_preset("xxs", torch.Generator().manual_seed(self._seed))

    def _of(self, name: str) -> tuple[Any, Any, FlatView]:
        from legion_p2p.train.muon import MuonAdamW

        if name not in self._known:
            model = self.fresh_model()
            self._known[name] = model, MuonAdamW.of(model, self._task.learning_rate), FlatView(model.named_parameters())
        return self._known[name]
