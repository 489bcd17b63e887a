"""How good labels are, where the truth is known: accuracy, calibration, and the classes that are taken for others.

Each row counts once: of a generation those with the same bytes too, of an edition an image, however many copies it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError
from nst_data.inspection.review_quality import ReviewQuality, review_quality
from nst_data.inspection.truth import Truth, read_truth, truth_of_review
from nst_data.progress import Progress, on_this_terminal
from nst_data.sources import Source, match_classes
from nst_data.sources.labels import ClassNames
from nst_data.store.store import Store, Version
from nst_data.store.version import check_names_images, is_review
from nst_data.tables.confidence import confidence_bin
from nst_data.tables.histogram import BINS, bounds
from nst_data.tables.label_tables import check_label_range, collect, scan_labels

ECE_BINS = 15  # as a calibration has them (nst_train.classifiers.calibration), so that the two can be compared


@dataclass(frozen=True)
class ConfidenceBin:
    """The images with a confidence in (low, high], and how many of them are right; means over none are None."""

    low: float
    high: float
    images: int
    accuracy: float | None
    mean_confidence: float | None


@dataclass(frozen=True)
class WrongPair:
    """How many images are labeled as one class and truly of another."""

    labeled: str
    truly: str
    images: int


@dataclass(frozen=True)
class ClassPrecision:
    """Of the images labeled as a class, the share that is of it."""

    name: str
    images: int
    correct: int
    precision: float


@dataclass(frozen=True)
class Quality:
    """Of `labels`, `joined` have a true label; the rest is about these. Fractions are in [0, 1]; `precision` has the worst class first.

    Of the `truth_rows` of `truth`, the `ambiguous` have several classes and the `unreadable` no image that could be read.
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
    review: ReviewQuality | None = None  # of a review


def with_truth(labels: pl.LazyFrame, truth: pl.LazyFrame, by: str) -> pl.LazyFrame:
    """Add `truth` (int64) to the labels whose value in column `by` is among the truth's; the others go. `by` is unique in the truth."""
    return labels.select(by, "label", "confidence").join(truth.select(by, "truth"), on=by, how="inner")


def confusion(judged: pl.LazyFrame) -> pl.LazyFrame:
    """`label`, `truth` and `images`: the pairs that occur."""
    return judged.group_by("label", "truth").agg(images=pl.len())


def reliability(judged: pl.LazyFrame, bins: int) -> pl.LazyFrame:
    """`bin`, `images`, `correct` and `confidence`, which is a sum; a row for each bin that has images."""
    confidence = pl.col("confidence").cast(pl.Float64)
    return (
        judged.group_by(bin=confidence_bin(confidence, bins))
        .agg(images=pl.len(), correct=(pl.col("label") == pl.col("truth")).sum(), confidence=confidence.sum())
        .filter(pl.col("bin").is_not_null())
    )


def calibration_error(reliability: pl.DataFrame) -> float:
    """The mean distance of confidence and accuracy over the bins (Guo et al. 2017, equation 3), in [0, 1]; 0 without any image."""
    distances = (reliability["confidence"] - reliability["correct"]).abs().sum()
    return float(distances) / max(1, int(reliability["images"].sum()))


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
    """How good labels are, by a source of true labels for some of their images.

    Args:
        store: Where the labels are.
        version: A generation or an edition, or its `name@gen-N`.
        truth: A review, `name@review-N`, or labeled images, joined by key or by their bytes, or where they are; a parquet table of labels
            without images is joined by its column `image_hash` or `key`, or else row by row with the pool.
        class_names: For a `truth` that is not open yet: as for `open_source`.
        image_column: Likewise.
        label_column: Likewise.
        pairs: How many of the most frequent mistakes are named.
        progress: How progress is shown; by default lines on standard error.

    Returns:
        Accuracy and calibration error in [0, 1], by confidence and by class, and the most frequent mistakes.

    Raises:
        UsageError: The version is a teacher or is anonymous, or `truth` was opened without labels.
        NstError: The two have no image in common.
    """
    version, progress = store.open(version, "generation", "edition"), progress or on_this_terminal()
    check_names_images(version, "compare")
    names = version.manifest.class_names
    if isinstance(truth, Version) or (isinstance(truth, str) and is_review(truth)):
        review = store.open(truth, "review")
        places = match_classes(review.manifest.class_names, names, review.ref, subset=True)
        measured = measure(scan_labels(version), truth_of_review(review, places), names, version.ref, pairs)
        return replace(measured, review=review_quality(store, version, review, places))
    where = truth if isinstance(truth, Source) else str(truth)
    columns = {"image_column": image_column, "label_column": label_column}
    read = read_truth(where, version, store, class_names=class_names, **columns, progress=progress)
    return measure(scan_labels(version), read, names, version.ref, pairs)


def measure(labels: pl.LazyFrame, truth: Truth, class_names: Sequence[str], what: str = "labels", pairs: int = 10) -> Quality:
    """The quality of labels (`label`, `confidence` and what the truth is joined by), whose labels are places among `class_names`.

    `pairs` of the most frequent wrong pairs are named. Raises NstError, about `what`, where the two have no image in common.
    """
    by = truth.by
    judged = with_truth(labels, truth.table.lazy(), by)
    pairs_found, shown, fine, rows = collect(
        what, confusion(judged), reliability(judged, BINS), reliability(judged, ECE_BINS), labels.select(pl.len())
    )
    joined = int(pairs_found["images"].sum())
    if not joined:
        raise NstError(f"{what}: none of its images is in the truth, joined by {by}; expected a source that holds some of them")
    check_label_range(pairs_found["label"], class_names, what)
    correct = int(pairs_found.filter(pl.col("label") == pl.col("truth"))["images"].sum())
    return Quality(
        truth=truth.location,
        joined_by=by,
        truth_rows=truth.rows,
        ambiguous=truth.ambiguous,
        unreadable=truth.unreadable,
        labels=int(rows.item()),
        joined=joined,
        accuracy=correct / joined,
        calibration_error=calibration_error(fine),
        by_confidence=_by_confidence(shown),
        wrong_pairs=_wrong_pairs(pairs_found, class_names, pairs),
        precision=_precision(pairs_found, class_names),
    )


def _by_confidence(table: pl.DataFrame) -> list[ConfidenceBin]:
    found = {number: (images, correct, confidence) for number, images, correct, confidence in table.iter_rows()}
    bins = []
    for number in range(BINS):
        images, correct, confidence = found.get(number, (0, 0, 0.0))
        means = (correct / images, confidence / images) if images else (None, None)
        bins.append(ConfidenceBin(*bounds(number), images, *means))
    return bins


def _wrong_pairs(pairs: pl.DataFrame, class_names: Sequence[str], number: int) -> list[WrongPair]:
    """The most frequent first, ties in the order of the classes."""
    wrong = pairs.filter(pl.col("label") != pl.col("truth")).sort("images", "label", "truth", descending=[True, False, False])
    return [WrongPair(class_names[label], class_names[truth], images) for label, truth, images in wrong.head(number).iter_rows()]


def _precision(pairs: pl.DataFrame, class_names: Sequence[str]) -> list[ClassPrecision]:
    """The worst first; of equal ones that with more images."""
    right = pl.col("images").filter(pl.col("label") == pl.col("truth")).sum()
    classes = (
        pairs.group_by("label").agg(pl.col("images").sum(), correct=right).with_columns(precision=pl.col("correct") / pl.col("images"))
    )
    ranked = classes.sort("precision", "images", "label", descending=[False, True, False])
    return [ClassPrecision(class_names[label], images, correct, precision) for label, images, correct, precision in ranked.iter_rows()]
