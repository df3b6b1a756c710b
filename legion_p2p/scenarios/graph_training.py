"""A loss curve from a graph: a model for each of its peers, trained along it, into a folder."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from legion_p2p.errors import UsageError
from legion_p2p.scenarios.graph import read_graph
from legion_p2p.scenarios.graph_replay import Point, Replay
from legion_p2p.scenarios.pictures import drawn, picture_of_curve
from legion_p2p.scenarios.scenario import Scenario
from legion_p2p.scenarios.scenario_files import changed, scenario_of
from legion_p2p.scenarios.stacked_models import stacked_task


class GraphTraining:
    """A graph and what is to be trained along it."""

    def __init__(self, path: Path, changes: Mapping[str, Any], device: str, n_points: int) -> None:
        """`changes`: of fields of the scenario; what decides who does what when is in the graph, and cannot be changed any more.

        Raises: ConfigError; UsageError, where nothing can be trained.
        """
        header, lines = read_graph(path)
        self.header = msgspec.structs.replace(header, scenario=_with(header.scenario, changes))
        self._task = stacked_task(self.header.scenario.task, header.seed, device)
        self._device = device
        self._replay = Replay(self.header, lines, self._task, device, n_points)
        self.total_steps = self._replay.total_steps
        self.points: list[Point] = []

    def run(self, on_steps: Callable[[int], object] = lambda n: None) -> dict[str, Any]:
        """Train; the summary."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1 if self._device == "cpu" else threads)  # averaging is made of small tensors
        began_s = time.perf_counter()
        try:
            self.points += self._replay.run(on_steps)
        finally:
            torch.set_num_threads(threads)
        return {
            "task": msgspec.to_builtins(self.header.scenario.task),
            "seed": self.header.seed,
            "device": self._device,
            "models_held_at": self._replay.held_at,
            "n_peers": len(self.header.peers),
            "n_elements": self._task.start.numel(),
            "n_shards": self.header.n_shards,
            "steps": self._replay.n_steps,
            "wall_s": round(time.perf_counter() - began_s, 2),
            "loss_first": self.points[0].loss if self.points else None,
            "loss_last": self.points[-1].loss if self.points else None,
            "points": msgspec.to_builtins(self.points),
        }

    def write_into(self, folder: Path, summary: Mapping[str, Any]) -> None:
        """summary.json, and the curve as a picture."""
        (folder / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=1) + b"\n")
        if self.points:
            with drawn(picture_of_curve([(point.at_s, point.loss) for point in self.points])) as figure:
                figure.savefig(folder / "loss.png")


def _with(scenario: Scenario, changes: Mapping[str, Any]) -> Scenario:
    """The scenario with other values for what is trained, and how it is averaged."""
    for field in changes:
        if not field.startswith(("task.", "rounds.")):
            raise UsageError(f"{field}: the graph has it already; what can be changed is below task and rounds")
    return scenario_of(changed(msgspec.to_builtins(scenario), changes))
