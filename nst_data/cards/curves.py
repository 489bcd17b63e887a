"""Training curves as a picture: losses at the top; learning rate and, if available, validation accuracy below."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nst_data.store.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS_LOG, CURVES = "metrics.jsonl", "training_curves.png"
_BLUE, _ORANGE, _GREEN, _GRAY = "#1f6fb4", "#d9731a", "#2c8f3c", "#8a8a8a"
_MAX_POINTS = 2000


def read_metrics_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a training run's `metrics.jsonl`; empty if the file does not exist."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def write_curves(folder: Path, title: str, best_epoch: float | None = None) -> bool:
    """Draw `folder`/metrics.jsonl as `folder`/training_curves.png; False if there was nothing to draw.

    `best_epoch` marks the weights that were kept, if they were chosen by validation accuracy.
    """
    from matplotlib.figure import Figure  # importing takes half a second

    rows = read_metrics_log(folder / METRICS_LOG)
    loss_columns = {"loss_labeled": ("loss on labeled images", _BLUE), "loss_pseudo": ("loss on pseudo-labeled images", _ORANGE)}
    loss_columns = {column: style for column, style in loss_columns.items() if _points(rows, column)}
    if not loss_columns:
        return False
    figure = Figure(figsize=(9.6, 6.2), dpi=100, layout="constrained")
    losses, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    figure.suptitle(title, x=0.02, ha="left")
    for column, (name, color) in loss_columns.items():
        _draw(losses, _points(rows, column), name, color)
    if scores := _points(rows, "validation_top1"):
        _draw(below, [(epoch, 100 * top1) for epoch, top1 in scores], "validation top-1, %", _GREEN)
        if best_epoch is not None:
            best = min(scores, key=lambda point: abs(point[0] - best_epoch))
            below.axvline(best[0], color=_GREEN, linewidth=1)
            below.annotate(
                f"best: {100 * best[1]:.1f}%", (best[0], 100 * best[1]), textcoords="offset points", xytext=(6, -14), color=_GREEN
            )
    rate = below.twinx() if scores else below
    _draw(rate, _points(rows, "learning_rate"), "learning rate", _GRAY)
    if scores:
        rate.legend(loc="lower center", frameon=False)
        rate.grid(visible=False)  # the accuracy axis already has a grid
    below.set_xlabel("epochs of labeled images")
    with atomic_write(folder / CURVES) as file:
        figure.savefig(file, format="png", metadata={"Software": None})  # type: ignore[arg-type]
    return True


def _draw(axes: "Axes", points: Sequence[tuple[float, float]], name: str, color: str) -> None:
    axes.plot(*zip(*points, strict=True), color=color, label=name, marker="o" if len(points) == 1 else None)
    axes.grid(color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.legend(frameon=False)


def _points(rows: Sequence[dict[str, Any]], column: str) -> list[tuple[float, float]]:
    """(epoch, value) pairs, subsampled but always including the last."""
    points = [(row["epoch"], row[column]) for row in rows if row.get(column) is not None]
    return points[: -1 : max(1, len(points) // _MAX_POINTS)] + points[-1:]
