"""How good labels are where the truth is known: accuracy, calibration, and which classes are confused.

Each row counts once. In a generation this includes rows with the same bytes; in an edition each image counts once, regardless of copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError
from nst_data.inspection.review_quality import ReviewQuality, measure_review_quality
from nst_data.inspection.truth import Truth, read_truth, truth_from_review
from nst_data.progress import Progress, terminal_progress
from nst_data.sources import Source, match_classes
from nst_data.sources.labels import ClassNames
from nst_data.store.store import Store, Version
from nst_data.store.version import check_not_anonymous, is_review_ref
from nst_data.tables.confidence import confidence_bin
from nst_data.tables.histogram import BINS, bin_bounds
from nst_data.tables.label_tables import check_label_range, collect, scan_labels

ECE_BINS = 15  # as in nst_train.classifiers.calibration, so that the two errors are comparable


@dataclass(frozen=True)
class ConfidenceBin:
    """The images with a confidence in (low, high], and how many of them are correct; means over no images are None."""

    low: float
    high: float
    images: int
    accuracy: float | None
    mean_confidence: float | None


@dataclass(frozen=True)
class WrongPair:
    """The number of images labeled as one class whose true class is another."""

    labeled: str
    truly: str
    images: int


@dataclass(frozen=True)
class ClassPrecision:
    """The fraction of the images labeled as a class that belong to it."""

    name: str
    images: int
    correct: int
    precision: float


@dataclass(frozen=True)
class Quality:
    """The quality of those `labels` that could be `joined` with a true label. Fractions are in [0, 1]; `precision` has the worst first.

    Of the `truth_rows` of `truth`, `ambiguous` ones have several classes and `unreadable` ones have no readable image.
    """

    truth: str
    joined_by: str
    truth_rows: int
    ambiguous: int
    unreadable: int
    labels: int
    joined: int
    accuracy: float
    calibration_error: float
    by_confidence: list[ConfidenceBin]
    wrong_pairs: list[WrongPair]
    precision: list[ClassPrecision]
    review: ReviewQuality | None = None  # only if the truth is a review


def join_truth(labels: pl.LazyFrame, truth: pl.LazyFrame, join_column: str) -> pl.LazyFrame:
    """Keep the labels whose value in `join_column` occurs in the truth, where it must be unique, adding `truth` (int64)."""
    return labels.select(join_column, "label", "confidence").join(truth.select(join_column, "truth"), on=join_column, how="inner")


def count_confusions(joined: pl.LazyFrame) -> pl.LazyFrame:
    """Count `images` for each pair of `label` and `truth` that occurs."""
    return joined.group_by("label", "truth").agg(images=pl.len())


def reliability(joined: pl.LazyFrame, bins: int) -> pl.LazyFrame:
    """`bin`, `images`, `correct` and the sum of `confidence`, one row per non-empty bin."""
    confidence = pl.col("confidence").cast(pl.Float64)
    return (
        joined.group_by(bin=confidence_bin(confidence, bins))
        .agg(images=pl.len(), correct=(pl.col("label") == pl.col("truth")).sum(), confidence=confidence.sum())
        .filter(pl.col("bin").is_not_null())
    )


def calibration_error(bins: pl.DataFrame) -> float:
    """Expected calibration error over the bins (Guo et al. 2017, equation 3), in [0, 1]; 0 if there are no images."""
    distances = (bins["confidence"] - bins["correct"]).abs().sum()
    return float(distances) / max(1, int(bins["images"].sum()))


@with_checked_arguments
def quality(
    store: Store,
    version: Version | str,
    truth: Source | Version | str | Path,
    *,
    class_names: ClassNames | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    pairs: int = 10,
    progress: Progress | None = None,
) -> Quality:
    """Measure labels against true labels for some of their images.

    Args:
        store: The store that has the labels.
        version: A generation or an edition, or its `name@gen-N`.
        truth: A review, `name@review-N`, or a source of labeled images or its location, joined by key or by content. A parquet table of
            labels without images is joined by its column `image_hash` or `key`, or else row by row with the pool.
        class_names: For a `truth` that is not open yet: as for `open_source`.
        image_column: Likewise.
        label_column: Likewise.
        pairs: How many of the most frequent mistakes to list.
        progress: How progress is shown; by default lines on standard error.

    Returns:
        Accuracy and calibration error in [0, 1], by confidence and by class, and the most frequent mistakes.

    Raises:
        UsageError: The version is a teacher or is anonymous, or `truth` was opened without labels.
        NstError: The two have no images in common.
    """
    version, progress = store.open(version, "generation", "edition"), progress or terminal_progress()
    check_not_anonymous(version, "compare")
    names = version.manifest.class_names
    if isinstance(truth, Version) or (isinstance(truth, str) and is_review_ref(truth)):
        review = store.open(truth, "review")
        places = match_classes(review.manifest.class_names, names, review.ref, subset=True)
        result = measure_quality(scan_labels(version), truth_from_review(review, places), names, version.ref, pairs)
        return replace(result, review=measure_review_quality(store, version, review, places))
    location = truth if isinstance(truth, Source) else str(truth)
    columns = {"image_column": image_column, "label_column": label_column}
    true_labels = read_truth(location, version, store, class_names=class_names, **columns, progress=progress)
    return measure_quality(scan_labels(version), true_labels, names, version.ref, pairs)


def measure_quality(labels: pl.LazyFrame, truth: Truth, class_names: Sequence[str], subject: str = "labels", pairs: int = 10) -> Quality:
    """Measure labels (`label`, `confidence` and the column that the truth is joined by) that index into `class_names`.

    Lists the `pairs` most frequent mistakes. Raises NstError, naming `subject`, if labels and truth have no images in common.
    """
    join_column = truth.join_column
    judged = join_truth(labels, truth.table.lazy(), join_column)
    confusions, bins, ece_bins, rows = collect(
        subject, count_confusions(judged), reliability(judged, BINS), reliability(judged, ECE_BINS), labels.select(pl.len())
    )
    joined = int(confusions["images"].sum())
    if not joined:
        raise NstError(f"{subject}: none of its images is in the truth, joined by {join_column}; expected a source that holds some of them")
    check_label_range(confusions["label"], class_names, subject)
    correct = int(confusions.filter(pl.col("label") == pl.col("truth"))["images"].sum())
    return Quality(
        truth=truth.location,
        joined_by=join_column,
        truth_rows=truth.rows,
        ambiguous=truth.ambiguous,
        unreadable=truth.unreadable,
        labels=int(rows.item()),
        joined=joined,
        accuracy=correct / joined,
        calibration_error=calibration_error(ece_bins),
        by_confidence=_confidence_bins(bins),
        wrong_pairs=_wrong_pairs(confusions, class_names, pairs),
        precision=_class_precisions(confusions, class_names),
    )


def _confidence_bins(table: pl.DataFrame) -> list[ConfidenceBin]:
    by_bin = {number: (images, correct, confidence) for number, images, correct, confidence in table.iter_rows()}
    bins = []
    for number in range(BINS):
        images, correct, confidence = by_bin.get(number, (0, 0, 0.0))
        means = (correct / images, confidence / images) if images else (None, None)
        bins.append(ConfidenceBin(*bin_bounds(number), images, *means))
    return bins


def _wrong_pairs(pairs: pl.DataFrame, class_names: Sequence[str], limit: int) -> list[WrongPair]:
    """The most frequent pairs first; ties in class order."""
    wrong = pairs.filter(pl.col("label") != pl.col("truth")).sort("images", "label", "truth", descending=[True, False, False])
    return [WrongPair(class_names[label], class_names[truth], images) for label, truth, images in wrong.head(limit).iter_rows()]


def _class_precisions(pairs: pl.DataFrame, class_names: Sequence[str]) -> list[ClassPrecision]:
    """Lowest precision first; ties by number of images, largest first."""
    n_correct = pl.col("images").filter(pl.col("label") == pl.col("truth")).sum()
    classes = (
        pairs.group_by("label").agg(pl.col("images").sum(), correct=n_correct).with_columns(precision=pl.col("correct") / pl.col("images"))
    )
    ranked = classes.sort("precision", "images", "label", descending=[False, True, False])
    return [ClassPrecision(class_names[label], images, correct, precision) for label, images, correct, precision in ranked.iter_rows()]
