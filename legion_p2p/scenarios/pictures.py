"""The pictures of a simulation, by matplotlib: what it reached, who was there, what was sent, and where the peers are."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from legion_p2p.scenarios.summary import SimOutcome
from legion_p2p.scenarios.trace import Sample

INK, GRID, BLUE, ORANGE, GREY, RED = "#333333", "#e6e6e6", "#0b6e99", "#d9730d", "#8a8a8a", "#c4302b"
REGION_COLORS = ("#0b6e99", "#d9730d", "#4d8f3a", "#8a4fa3", "#b0762f", "#2f8f8a", "#a33f5b", "#6b6b9b")
FAULT_COLORS = {
    "kill": "#c4302b", "suspend": "#8a4fa3", "partition": "#d9730d", "slow": "#b0a02f", "hang": "#2f8f8a", "clock": "#4d6fb0",
    "disk-full": "#6b4f3a", "link": "#a33f5b",
}  # fmt: skip
MAX_ROWS = 150  # peers that the picture of presence shows; of more, an even selection


@dataclass(frozen=True)
class Picture:
    """One picture of the report."""

    name: str
    title: str
    says: str
    """What it shows, in words, for a reader who cannot see it."""
    draw: Callable[[Any], None]
    """On a figure of matplotlib."""
    height: float = 3.2


def pictures_of(outcome: SimOutcome, duration_s: float) -> list[Picture]:
    """The pictures for which this outcome has data."""
    samples = outcome.record.samples
    found = []
    if any(sample.loss is not None for sample in samples):
        last = next(sample.loss for sample in reversed(samples) if sample.loss is not None)
        found.append(Picture("loss", "Loss of the common model", f"It ends at {last:.4g}.", lambda fig: _loss(fig, samples)))
    found += [
        Picture("peers", "Peers and faults", f"At the end {samples[-1].n_joined if samples else 0} peers are in the run.",
                lambda fig: _peers(fig, outcome, duration_s), _height_of(outcome)),
        Picture("rounds", "Versions, and work that is in them", "Rounds of all shards, and the share of steps that count.",
                lambda fig: _rounds(fig, samples, outcome.n_shards)),
        Picture("bytes", "What a peer sends and hears", "Bytes of a peer in a second.", lambda fig: _bytes(fig, samples)),
    ]  # fmt: skip
    if len(outcome.places) > 2 and any(map(any, outcome.places.values())):
        n_regions = len(set(outcome.regions.values()))
        found.append(Picture("places", "Where the peers are, by latency", f"{len(outcome.places)} peers in {n_regions} regions.",
                             lambda fig: _places(fig, outcome), 4.2))  # fmt: skip
    return found


@contextmanager
def drawn(picture: Picture) -> Iterator[Any]:
    """The picture as a figure of matplotlib, which is closed afterwards."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(9, picture.height), dpi=120)
    try:
        picture.draw(figure)
        yield figure
    finally:
        plt.close(figure)


def _axes(figure: Any, x_label: str, y_label: str) -> Any:
    ax = figure.subplots()
    ax.set_xlabel(x_label, color=INK)
    ax.set_ylabel(y_label, color=INK)
    _plain(ax)
    figure.subplots_adjust(left=0.09, right=0.91, top=0.95, bottom=0.48 / figure.get_figheight() + 0.02)
    return ax


def _plain(ax: Any) -> None:
    ax.grid(color=GRID, linewidth=0.8, zorder=0)
    ax.spines["top"].set_visible(False)
    for side in ("left", "bottom", "right"):
        ax.spines[side].set_color("#999999")
    ax.tick_params(colors=INK)


def _scale(longest: float) -> tuple[float, str]:
    """Seconds of a unit of a time axis of this many seconds, and its name."""
    return (3600.0, "hours") if longest > 3 * 3600 else (60.0, "minutes") if longest > 300 else (1.0, "seconds")


def _end_s(samples: Sequence[Sample]) -> float:
    return samples[-1].at_s if samples else 0.0


def picture_of_curve(points: Sequence[tuple[float, float]]) -> Picture:
    """A loss curve by itself: virtual seconds, and the loss then."""
    return Picture("loss", "Loss of the common model", f"It ends at {points[-1][1]:.4g}.", lambda fig: _curve(fig, points))


def _curve(figure: Any, points: Sequence[tuple[float, float]]) -> Any:
    unit, name = _scale(points[-1][0])
    ax = _axes(figure, f"virtual {name}", "loss")
    ax.plot([at_s / unit for at_s, _ in points], [loss for _, loss in points], color=BLUE, linewidth=1.8, zorder=3)
    losses = [loss for _, loss in points if math.isfinite(loss)]
    if losses and min(losses) > 0 and max(losses) > 5 * min(losses):
        ax.set_yscale("log")
    ax.set_xlim(0, None)
    return ax


def _loss(figure: Any, samples: list[Sample]) -> None:
    ax = _curve(figure, [(sample.at_s, sample.loss) for sample in samples if sample.loss is not None])
    steps = ax.twiny()
    steps.set_xlim(0, max(1, samples[-1].n_steps))
    steps.set_xticks([])
    for side in ("top", "right"):
        steps.spines[side].set_visible(False)


def _rows(outcome: SimOutcome) -> list[str]:
    """The peers that are shown one by one, in the order of the plan."""
    names = [plan.name for plan in outcome.plan.peers if plan.name in outcome.record.presence]
    if len(names) <= MAX_ROWS:
        return names
    return [names[i * len(names) // MAX_ROWS] for i in range(MAX_ROWS)]


def _height_of(outcome: SimOutcome) -> float:
    return min(9.0, 2.2 + 0.09 * len(_rows(outcome)))


def _peers(figure: Any, outcome: SimOutcome, duration_s: float) -> None:
    unit, name = _scale(_end_s(outcome.record.samples))
    ax = _axes(figure, f"virtual {name}", "")
    rows = _rows(outcome)
    group_of = {plan.name: plan.group.name for plan in outcome.plan.peers}
    groups = list(dict.fromkeys(group_of[row] for row in rows))
    end = outcome.record.samples[-1].at_s if outcome.record.samples else duration_s
    for y, row in enumerate(rows):
        color = REGION_COLORS[groups.index(group_of[row]) % len(REGION_COLORS)]
        spans = [(begin / unit, (min(until, end) - begin) / unit) for begin, until in outcome.record.presence[row]]
        ax.broken_barh(spans, (y + 0.15, 0.7), facecolors=color, alpha=0.55, zorder=2)
    at = {row: y for y, row in enumerate(rows)}
    shown = set()
    for fault in outcome.record.faults:
        kind = fault["kind"]
        for peer in fault["peers"]:
            if peer in at:
                label = None if kind in shown else kind
                shown.add(kind)
                begin, width = fault["at_s"] / unit, max(fault["for_s"], duration_s / 400) / unit
                ax.broken_barh([(begin, width)], (at[peer] + 0.3, 0.4), facecolors=FAULT_COLORS[kind], label=label, zorder=3)
    ax.set_yticks([y + 0.5 for y, row in enumerate(rows) if y == 0 or group_of[row] != group_of[rows[y - 1]]])
    ax.set_yticklabels(groups[: len(ax.get_yticks())])
    ax.invert_yaxis()
    ax.set_xlim(0, end / unit)
    if shown:
        ax.legend(
            frameon=False, fontsize=7, ncols=8, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.28 / figure.get_figheight())
        )


def _rates(samples: list[Sample], amount: Callable[[Sample], float]) -> list[float]:
    """Per second between each sample and the next."""
    return [(amount(b) - amount(a)) / max(b.at_s - a.at_s, 1e-9) for a, b in pairwise(samples)]


def _rounds(figure: Any, samples: list[Sample], n_shards: int) -> None:
    unit, name = _scale(_end_s(samples))
    ax = _axes(figure, f"virtual {name}", "versions of a shard, a minute")
    times = [b.at_s / unit for _, b in pairwise(samples)]
    rates = [60 * rate / max(1, n_shards) for rate in _rates(samples, lambda s: s.n_updates)]
    ax.plot(times, _smooth(rates), color=BLUE, linewidth=1.5, zorder=3, label="versions")
    ax.set_ylim(0, None)
    ax.set_xlim(0, None)
    share = ax.twinx()
    share.plot([s.at_s / unit for s in samples], [100 * s.n_included / max(1, s.n_steps) for s in samples], color=ORANGE,
               linewidth=1.5, zorder=3)  # fmt: skip
    share.set_ylim(0, 105)
    share.set_ylabel("% of steps in an update", color=ORANGE)
    share.spines["top"].set_visible(False)


def _bytes(figure: Any, samples: list[Sample]) -> None:
    unit, name = _scale(_end_s(samples))
    ax = _axes(figure, f"virtual {name}", "kB a peer and second")
    pairs = list(pairwise(samples))
    times = [b.at_s / unit for _, b in pairs]
    n_there = [max(1, b.n_started) for _, b in pairs]
    for amount, color, label in (
        (lambda s: s.sent_bytes, BLUE, "requests and replies sent"), (lambda s: s.gossip_bytes, ORANGE, "gossip heard"),
    ):  # fmt: skip
        rates = [rate / 1e3 / n for rate, n in zip(_rates(samples, amount), n_there, strict=True)]
        ax.plot(times, _smooth(rates), color=color, linewidth=1.5, zorder=3, label=label)
    ax.set_ylim(0, None)
    ax.set_xlim(0, None)
    ax.legend(frameon=False, labelcolor=INK)


def _smooth(values: list[float]) -> list[float]:
    """A moving average over a twentieth of the values, because rounds close in bursts."""
    half = max(2, len(values) // 40)
    return [statistics.fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def _places(figure: Any, outcome: SimOutcome) -> None:
    ax = _axes(figure, "ms", "ms")
    names = [name for name, place in outcome.places.items() if place]
    points = 1000 * np.array([outcome.places[name] for name in names])
    flat = _flattened(points)
    regions = [outcome.regions[name] for name in names]
    for i, region in enumerate(dict.fromkeys(regions)):
        chosen = [flat[k] for k, other in enumerate(regions) if other == region]
        color = REGION_COLORS[i % len(REGION_COLORS)]
        ax.scatter(*zip(*chosen, strict=True), s=22, color=color, alpha=0.8, zorder=3, label=f"{region} ({len(chosen)})")
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.subplots_adjust(right=0.8)


def _flattened(points: Any) -> Any:
    """Points of several dimensions on the plane in which they lie furthest apart."""
    centered = points - points.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    return centered @ axes[:2].T
