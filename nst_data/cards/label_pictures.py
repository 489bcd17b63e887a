"""Pictures of labels for a card: distribution of confidence, and images per class before and after selection."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nst_data.cards.described import Described
from nst_data.store.files import atomic_write
from nst_data.store.manifest import EditionManifest, GenerationManifest, ReviewManifest
from nst_data.tables.histogram import BINS
from nst_data.tables.label_tables import confidence_histograms, scan_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONFIDENCE, CLASSES, LOOK = "confidence.png", "class_counts.png", "look.png"  # LOOK shows some images, if the user asks for it
_BLUE, _ORANGE, _GRAY = "#1f6fb4", "#d9731a", "#b8b8b8"
_MAX_NAMED_CLASSES = 30
_MAX_POINTS = 2000
_NAME_WIDTH = 24
_LOG_SCALE_RATIO = 100  # ratio of counts beyond which a linear axis would show only the largest

Series = tuple[str, str, NDArray[np.int64]]  # name, color, and a count per bin or class


def write_pictures(described: Described, temp_folder: Path | None = None) -> list[str]:
    """Draw the pictures of a generation or an edition into its folder; return their names, none if the table is missing or for a review.

    Labels are counted without holding them in memory: 300 million take seconds. Temporary files are written to `temp_folder`, if given.
    Raises NstError if the labels are damaged.
    """
    files = described.files(described.table)
    if not files or isinstance(described.manifest, ReviewManifest):
        return []
    parent = described.parent
    labels = [pl.scan_parquet(files, glob=False), *([scan_labels(parent)] if parent else [])]
    counts, *parent_counts = [np.array(histogram.images) for histogram in confidence_histograms(described.ref, *labels)]
    bins: list[Series] = [("labeled" if isinstance(described.manifest, GenerationManifest) else "selected", _BLUE, counts)]
    if parent:
        bins.insert(0, (parent.ref, _GRAY, parent_counts[0]))
    with _saved_figure(described.folder / CONFIDENCE, temp_folder, 4.0) as figure:
        _draw_confidence(figure, described, bins)
    rows = described.per_class()
    if not rows:
        return [CONFIDENCE]
    columns = [("labeled", "labeled", _GRAY), ("unique", "selected", _BLUE), ("copies", "entries, copies included", _ORANGE)]
    if isinstance(described.manifest, GenerationManifest):
        columns = [("labeled", "labeled", _BLUE)]
    classes = [(name, color, np.array([row[column] for row in rows.values()])) for column, name, color in columns]
    with _saved_figure(
        described.folder / CLASSES, temp_folder, max(2.6, 1.3 + 0.27 * len(rows)) if len(rows) <= _MAX_NAMED_CLASSES else 4.4
    ) as figure:
        _draw_classes(figure, f"{described.ref}: images per class", list(rows), classes)
    return [CONFIDENCE, CLASSES]


@contextmanager
def _saved_figure(path: Path, temp_folder: Path | None, height: float) -> Iterator["Figure"]:
    """A figure that is saved when the block ends; characters missing from the font show as boxes."""
    from matplotlib.figure import Figure  # importing takes half a second

    figure = Figure(figsize=(9.6, height), dpi=100, layout="constrained")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield figure
        with atomic_write(path, temp_folder) as file:
            figure.savefig(file, format="png", metadata={"Software": None})  # type: ignore[arg-type]


def _draw_confidence(figure: "Figure", described: Described, series: Sequence[Series]) -> None:
    axes = figure.subplots()
    axes.set_title(f"{described.ref}: confidence of the labels", loc="left", parse_math=False)
    width = 0.86 / BINS / len(series)
    for number, (name, color, images) in enumerate(series):
        places = (np.arange(BINS) + 0.5) / BINS + (number - (len(series) - 1) / 2) * width
        axes.bar(places, images, width, color=color, label=name)
        for place, count in zip(places, images, strict=True):
            if count:
                axes.annotate(_abbreviate(count), (place, count), ha="center", va="bottom", fontsize=7, color="#404040")
    selection = described.manifest.request.selection if isinstance(described.manifest, EditionManifest) else None
    if selection and selection.confidence_range is None and 0 < selection.min_confidence < 1:
        axes.axvline(
            selection.min_confidence, color="#404040", linewidth=1, linestyle="--", label=f"threshold {selection.min_confidence:g}"
        )
    axes.set_xlim(0, 1)
    axes.set_xticks(np.arange(BINS + 1) / BINS)
    axes.set_xlabel("confidence: the largest probability of a label")
    axes.set_ylabel("images")
    _scale_axis(axes, [images for _, _, images in series], "y")
    axes.grid(axis="y", color="#e4e4e4")
    axes.set_axisbelow(True)
    _add_legend(axes)


def _draw_classes(figure: "Figure", title: str, names: Sequence[str], series: Sequence[Series]) -> None:
    """Named bars if there are few classes, else curves of the counts from the largest class to the smallest."""
    axes = figure.subplots()
    axes.set_title(title, loc="left")
    if len(names) <= _MAX_NAMED_CLASSES:
        height = 0.8 / len(series)
        for number, (name, color, images) in enumerate(series):
            axes.barh(np.arange(len(names)) + (number - (len(series) - 1) / 2) * height, images, height, color=color, label=name)
        axes.set_yticks(np.arange(len(names)), [_shorten_name(name) for name in names], parse_math=False)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel("images")
    else:
        for name, color, images in series:
            ranked = np.sort(images)[::-1]
            ranks = np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), _MAX_POINTS)).round().astype(int))
            ranks = ranks[ranked[ranks] > 0]
            empty = f" ({(images == 0).sum():,} classes without any)" if (images == 0).any() else ""
            style = "--" if color == _ORANGE else "-"  # dashed, so that an identical curve below remains visible
            axes.plot(ranks + 1, ranked[ranks], style, color=color, label=name + empty, linewidth=2)
        axes.set_xlim(0, len(names) + 1)
        axes.set_ylabel("images")
        axes.set_xlabel(f"the {len(names):,} classes, from the largest to the smallest of each curve")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    direction = "x" if len(names) <= _MAX_NAMED_CLASSES else "y"
    _scale_axis(axes, [images for _, _, images in series], direction)
    axes.grid(axis=direction, color="#e4e4e4")  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    _add_legend(axes)


def _scale_axis(axes: "Axes", counts: Sequence[NDArray[np.int64]], direction: str) -> None:
    """Use a logarithmic axis if counts differ widely; label integers only in either case."""
    from matplotlib.ticker import MaxNLocator

    positive = np.concatenate([images[images > 0] for images in counts])
    axis = axes.xaxis if direction == "x" else axes.yaxis
    if len(positive) and positive.max() > _LOG_SCALE_RATIO * positive.min():
        (axes.set_xscale if direction == "x" else axes.set_yscale)("log")
        (axes.set_xlabel if direction == "x" else axes.set_ylabel)("images (logarithmic scale)")
        (axes.set_xlim if direction == "x" else axes.set_ylim)(max(0.5, 0.5 * positive.min()), 2.5 * positive.max())
    else:
        (axes.set_xlim if direction == "x" else axes.set_ylim)(0, 1.12 * positive.max(initial=1))
        axis.set_major_locator(MaxNLocator(integer=True))
    axis.set_major_formatter(lambda value, _: _abbreviate(value) if value == round(value) else "")


def _add_legend(axes: "Axes") -> None:
    axes.figure.legend(frameon=False, loc="outside lower left", ncols=4, fontsize=9)


def _abbreviate(count: float) -> str:
    """Abbreviate a count: 12,345 as 12.3k."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            return f"{count / min(size, 1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{count:,.0f}"


def _shorten_name(name: str) -> str:
    """A class name on a single line, shortened to fit the picture."""
    line = "".join(char if char.isprintable() else " " for char in " ".join(name.split()))
    return line if len(line) <= _NAME_WIDTH else line[: _NAME_WIDTH - 3] + "..."
