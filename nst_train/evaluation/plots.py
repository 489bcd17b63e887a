"""Plots of what was measured: reliability, accuracy by severity and by size of attack, flip rates, and metrics by generation."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nst_data.store.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = ("#1f6fb4", "#d9731a", "#2c8f3c", "#9b3fb0", "#b3362d", "#5a5a5a", "#0f9aa3", "#b08a00")
_GRID = "#e4e4e4"
Results = Mapping[str, Mapping[str, Any]]  # the result of a suite by model


def write_plots(folder: Path, suite: str, results: Results, name: str | None = None) -> list[str]:
    """Plot a suite's results for one or more models as PNG in `folder`, named after `name` or else the suite; returns the files written."""
    draw = _PLOTS.get(suite)
    if draw is None:
        return []
    figure, kind = draw(results)
    file = f"{name or suite}-{kind}.png" if kind not in (name or suite) else f"{name or suite}.png"
    return [_save(figure, folder / file)]


def write_generations(folder: Path, lines: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Plot lines of fractions in [0, 1], such as top-1, over the models, as `folder`/generations.png."""
    figure = _create_figure(7.2, 4.4)
    axes = figure.subplots()
    for color, (name, by_model) in zip(_cycle_colors(len(lines)), lines.items(), strict=True):
        axes.plot(list(by_model), [100 * value for value in by_model.values()], color=color, marker="o", label=_escape(name))
    axes.set_ylabel("%")
    axes.tick_params(axis="x", labelrotation=20)
    axes.set_xticks(range(len(next(iter(lines.values())))), [_escape(model) for model in next(iter(lines.values()))], ha="right")
    _add_grid_and_legend(axes)
    return [_save(figure, folder / "generations.png")]


def _plot_reliability(results: Results) -> tuple["Figure", str]:
    figure = _create_figure(6.0, 6.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="#8a8a8a", linewidth=1, linestyle="--", label="calibrated")
    for color, (model, result) in zip(_cycle_colors(len(results)), results.items(), strict=True):
        bins = [row for row in result["reliability"] if row["images"]]
        label = f"{_escape(model)}: ECE {result['ece']:.3f}"
        above.plot([row["confidence"] for row in bins], [row["accuracy"] for row in bins], color=color, marker="o", label=label)
        edges = [result["reliability"][0]["low"], *(row["high"] for row in result["reliability"])]
        below.stairs([row["images"] / result["images"] for row in result["reliability"]], edges, color=color, linewidth=1.5)
    above.set_ylabel("accuracy")
    below.set_ylabel("share of images")
    below.set_xlabel("confidence, 15 bins")
    below.grid(color=_GRID)
    _add_grid_and_legend(above)
    return figure, "reliability"


def _plot_corruptions(results: Results) -> tuple["Figure", str]:
    figure = _create_figure(11.0, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    names = list(next(iter(results.values()))["error"])
    for place, (color, (model, result)) in enumerate(zip(_cycle_colors(len(results)), results.items(), strict=True)):
        errors = list(result["error"].values())
        by_severity = [100 * (1 - sum(values[severity] for values in errors) / len(errors)) for severity in range(5)]
        left.plot(range(1, 6), by_severity, color=color, marker="o", label=_escape(model))
        width = 0.8 / len(results)
        means = [100 * (1 - sum(values) / len(values)) for values in errors]
        right.bar([index + (place + 0.5) * width - 0.4 for index in range(len(means))], means, width, color=color)
    left.set_xticks(range(1, 6))
    left.set_xlabel(f"severity, mean over {len(names)} corruptions")
    left.set_ylabel("top-1, %")
    right.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=45, ha="right")
    right.set_ylabel("top-1, mean over severities, %")
    right.grid(color=_GRID, axis="y")
    right.set_axisbelow(True)
    _add_grid_and_legend(left)
    return figure, "corruptions"


def _plot_attacks(results: Results) -> tuple["Figure", str]:
    figure = _create_figure(6.4, 4.4)
    axes = figure.subplots()
    for color, (model, result) in zip(_cycle_colors(len(results)), results.items(), strict=True):
        points = result["by_epsilon"]
        levels, accuracies = [255 * row["epsilon"] for row in points], [100 * row["top1"] for row in points]
        axes.plot(levels, accuracies, color=color, marker="o", label=_escape(model))
    axes.set_xlabel("epsilon, in 255ths")
    axes.set_ylabel("top-1, %")
    axes.set_ylim(bottom=0)
    _add_grid_and_legend(axes)
    return figure, "epsilon"


def _plot_flips(results: Results) -> tuple["Figure", str]:
    figure = _create_figure(8.0, 4.4)
    axes = figure.subplots()
    names = list(next(iter(results.values()))["fr"])
    width = 0.8 / len(results)
    for place, (color, (model, result)) in enumerate(zip(_cycle_colors(len(results)), results.items(), strict=True)):
        rates = [100 * rate for rate in result["fr"].values()]
        label = f"{_escape(model)}: mFR {100 * result['mfr']:.1f}"
        axes.bar([index + (place + 0.5) * width - 0.4 for index in range(len(rates))], rates, width, color=color, label=label)
    axes.set_xticks(range(len(names)), [name.replace("_", " ") for name in names], rotation=45, ha="right")
    axes.set_ylabel("flip rate, AlexNet's is 100")
    _add_grid_and_legend(axes)
    return figure, "flips"


_PLOTS: dict[str, Callable[[Results], tuple["Figure", str]]] = {
    **dict.fromkeys(("clean", "imagenet-a", "imagenet-r"), _plot_reliability),
    **dict.fromkeys(("corruptions", "extra-corruptions", "imagenet-c"), _plot_corruptions),
    **dict.fromkeys(("fgsm", "pgd"), _plot_attacks),
    "imagenet-p": _plot_flips,
}


def _create_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # takes half a second

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _add_grid_and_legend(axes: "Axes") -> None:
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize="small")


def _save(figure: "Figure", path: Path) -> str:
    with atomic_write(path) as file:
        figure.savefig(file, format="png", metadata={"Software": None})  # type: ignore[arg-type]
    return path.name


def _cycle_colors(count: int) -> list[str]:
    return [_COLORS[place % len(_COLORS)] for place in range(count)]


def _escape(name: str) -> str:
    """Escape a name for matplotlib, which reads $ as math and hides labels that begin with an underscore."""
    shown = name.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
