"""The curves of a training as a picture: losses apart, learning rate or accuracy on validation images below."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from nst_data.files import replacing

METRICS_LOG, CURVES = "metrics.jsonl", "training_curves.png"
_WIDTH, _HEIGHT, _SMOOTH = 960, 620, 3  # pixels; drawn at three times the size, so that lines are smooth
_LEFT, _RIGHT, _TOP, _PANEL, _GAP = 84, 84, 72, 280, 46
_INK, _GRID, _BLUE, _ORANGE, _GREEN, _GRAY = "#333333", "#e4e4e4", "#1f6fb4", "#d9731a", "#2c8f3c", "#8a8a8a"
_MOST_POINTS = 2000

Curve = tuple[str, str, list[tuple[float, float]]]  # name, color, (epoch, value)


def read_metrics_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a training's `metrics.jsonl`, none where there is no such file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def write_curves(folder: Path, title: str, best_epoch: float | None = None) -> bool:
    """Draw `folder`/metrics.jsonl as `folder`/training_curves.png; whether there was anything to draw.

    `best_epoch` marks the weights that were kept, where that was decided on validation images.
    """
    rows = read_metrics_log(folder / METRICS_LOG)
    losses = [
        _curve(rows, "loss_labeled", "loss on labeled images", _BLUE),
        _curve(rows, "loss_pseudo", "loss on pseudo-labeled images", _ORANGE),
    ]
    losses = [curve for curve in losses if curve[2]]
    if not losses:
        return False
    rate = _curve(rows, "learning_rate", "learning rate", _GRAY)
    accuracy = _curve(rows, "validation_top1", "validation top-1", _GREEN)
    last = max(point[0] for curve in losses for point in curve[2])
    canvas = _Canvas(title, (0.0, last))
    canvas.panel(_TOP, losses, "%.3g")
    top = _TOP + _PANEL + _GAP
    height = _HEIGHT - top - 56
    if accuracy[2]:
        canvas.panel(top, [accuracy], "%.3g%%", height=height, scale=100)
        canvas.panel(top, [rate], "%.2g", height=height, on_the_right=True)
        if best_epoch is not None:
            canvas.mark(best_epoch, top, height, accuracy)
    else:
        canvas.panel(top, [rate], "%.2g", height=height)
    canvas.epochs(top + height)
    with replacing(folder / CURVES) as file:
        canvas.picture().save(file, "PNG", optimize=True)  # type: ignore[arg-type]
    return True


def _curve(rows: Sequence[dict[str, Any]], column: str, name: str, color: str) -> Curve:
    points = [(row["epoch"], row[column]) for row in rows if row.get(column) is not None]
    every = -(-len(points) // _MOST_POINTS) or 1
    return name, color, points[::every] + points[len(points) - 1 :] * (len(points) % every != 1 and every > 1)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(factor * power for factor in (1, 2, 5, 10) if (high - low) / (factor * power) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


class _Canvas:
    """A picture with panels that share the epochs."""

    def __init__(self, title: str, epochs: tuple[float, float]) -> None:
        self._image = Image.new("RGB", (_WIDTH * _SMOOTH, _HEIGHT * _SMOOTH), "white")
        self._draw = ImageDraw.Draw(self._image)
        self._epochs = epochs if epochs[1] > epochs[0] else (0.0, 1.0)
        self._text((_LEFT, 16), title, "la", 17)

    def picture(self) -> Image.Image:
        """As it is shown."""
        return self._image.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)

    def panel(
        self,
        top: int,
        curves: Sequence[Curve],
        form: str,
        height: int = _PANEL,
        scale: float = 1.0,
        on_the_right: bool = False,
    ) -> None:
        """Curves with a scale of their own, on the left or on the right."""
        values = [scale * value for _, _, points in curves for _, value in points]
        marks = ticks(min(values), max(values))
        place = self._place(top, height, marks)
        for mark in marks:
            y = place(mark)
            if not on_the_right:
                self._line([(_LEFT, y), (_WIDTH - _RIGHT, y)], _GRID, 1)
            x, anchor = (_WIDTH - _RIGHT + 8, "lm") if on_the_right else (_LEFT - 8, "rm")
            self._text((x, y), form % mark, anchor, 12, curves[0][1] if on_the_right else _INK)
        x = _WIDTH - _RIGHT if on_the_right else _LEFT
        for name, color, points in curves:
            self._line([(self._x(epoch), place(scale * value)) for epoch, value in points], color, 2)
            if on_the_right:
                self._text((x, top - 18), name, "ra", 13, color)
            else:
                self._line([(x, top - 10), (x + 22, top - 10)], color, 3)
                self._text((x + 28, top - 18), name, "la", 13, color)
                x += 270

    def mark(self, epoch: float, top: int, height: int, curve: Curve) -> None:
        """Say where the weights that are the result come from."""
        _, color, points = curve
        values = [100 * value for _, value in points]
        best = min(points, key=lambda point: abs(point[0] - epoch))
        x, y = self._x(best[0]), self._place(top, height, ticks(min(values), max(values)))(100 * best[1])
        self._line([(x, top), (x, top + height)], color, 1)
        radius = 5 * _SMOOTH
        self._draw.ellipse([x * _SMOOTH - radius, y * _SMOOTH - radius, x * _SMOOTH + radius, y * _SMOOTH + radius], fill=color)
        left = x > _WIDTH / 2
        self._text((x - 8 if left else x + 8, top + height - 8), f"best: {100 * best[1]:.1f}%", "rs" if left else "ls", 13, color)

    def epochs(self, bottom: int) -> None:
        """The scale that the panels share."""
        for mark in ticks(*self._epochs, about=8):
            if mark <= self._epochs[1]:
                self._text((self._x(mark), bottom + 8), f"{mark:g}", "ma", 12)
        self._text(((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 26), "epochs of labeled images", "ma", 13)

    def _x(self, epoch: float) -> float:
        low, high = self._epochs
        return _LEFT + (epoch - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    @staticmethod
    def _place(top: int, height: int, marks: Sequence[float]) -> Callable[[float], float]:
        return lambda value: top + height * (marks[-1] - value) / (marks[-1] - marks[0])

    def _line(self, points: Sequence[tuple[float, float]], color: str, width: int) -> None:
        scaled = [(x * _SMOOTH, y * _SMOOTH) for x, y in points]
        if len(scaled) == 1:  # a point, where there is only one
            (x, y), radius = scaled[0], 2 * width * _SMOOTH
            self._draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)
        self._draw.line(scaled, fill=color, width=width * _SMOOTH, joint="curve")

    def _text(self, place: tuple[float, float], text: str, anchor: str, size: int, color: str = _INK) -> None:
        font = ImageFont.load_default(size * _SMOOTH)
        self._draw.text((place[0] * _SMOOTH, place[1] * _SMOOTH), text, fill=color, font=font, anchor=anchor)
