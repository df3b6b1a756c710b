"""Curves as a picture, for the demo's report and the README."""

from pathlib import Path
from typing import Any

SWARM, LONE, INK, FAINT, GRID = "#0b6e99", "#d9730d", "#333333", "#777777", "#e6e6e6"

SKIPPED = 0.03


def draw_demo(curves: dict[str, Any], path: Path, *, n_peers: int, n_params: int) -> None:
    """Validation loss of the common model and of the lone peer over local steps, the training losses faint behind them.

    Evaluations in the first few per cent of the steps are left out, because their height would flatten all the rest.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, ax = plt.subplots(figsize=(8, 4.5), dpi=160)
    final = curves["final"]
    for label, points in curves["training"].items():
        if len(points) > 1:
            color = LONE if label == "lone" else SWARM
            ax.plot(*zip(*points, strict=True), color=color, alpha=0.22, linewidth=0.9, zorder=2)
    tops, lows = [], []
    for key, name, color, text in (
        ("lone_validation", "lone", LONE, "a lone peer"),
        ("swarm_validation", "swarm", SWARM, f"common model of {n_peers} peers"),
    ):
        points = [(step, loss) for step, loss in curves[key] if step > SKIPPED * final["step"]]
        if not points:
            continue
        figure = "" if final[name] is None else f": {final[name]:.3f} at the end"
        ax.plot(*zip(*points, strict=True), color=color, linewidth=2.2, label=text + figure, zorder=4)
        ax.plot(*points[-1], "o", color=color, markersize=5, zorder=5, clip_on=False)
        tops.append(points[0][1])
        lows.append(min(loss for _, loss in points))
    if tops:
        trained = [loss for points in curves["training"].values() for _, loss in points]
        ax.set_ylim(min(*lows, *trained) - 0.05, max(tops) + 0.35)
    ax.set_xlim(0, max(1, final["step"]))
    ax.set_xlabel("local steps of each peer", color=INK)
    ax.set_ylabel("loss (nats per byte)", color=INK)
    title = f"{n_peers} peers train one model of {n_params / 1e6:.2f}M parameters together"
    ax.set_title(title, loc="left", fontsize=12, color=INK, pad=10)
    ax.plot([], [], color="#888888", alpha=0.5, linewidth=0.9, label="training loss of each, smoothed")
    ax.grid(color=GRID, linewidth=0.8, zorder=0)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color("#999999")
    ax.tick_params(colors=INK)
    ax.legend(frameon=False, loc="upper right", labelcolor=INK)
    windows = curves.get("windows")
    if windows:
        note = f"validation curves: {windows['curves']} windows of held-out text; figures at the end: {windows['final']}"
        fig.text(0.975, 0.012, note, ha="right", fontsize=7, color=FAINT)
    fig.subplots_adjust(left=0.085, right=0.975, top=0.91, bottom=0.14)
    fig.savefig(path)
    plt.close(fig)
