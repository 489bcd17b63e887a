"""Compare two labelings of the same images: which images were added or removed, which labels changed, how far confidences moved.

Images are identified by their bytes (`image_hash`). Among rows with the same bytes the first represents the image, as in balancing: an
image counts once, however often it is in the pool and however many copies an edition has of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from nst_data.arguments import with_checked_arguments
from nst_data.errors import NstError
from nst_data.sources import match_classes
from nst_data.sources.labels import indices_among
from nst_data.store.store import Store, Version
from nst_data.store.version import check_not_anonymous
from nst_data.tables.confidence import confidence_bin
from nst_data.tables.histogram import BINS, bin_bounds
from nst_data.tables.label_tables import check_label_range, collect, scan_labels

ROWS_AT_ONCE = 2**25  # rows of both tables together, about 3 GB; larger tables are compared in parts, by ranges of hashes


@dataclass(frozen=True)
class Change:
    """The number of images that changed from one class to another."""

    before: str
    after: str
    images: int


@dataclass(frozen=True)
class ClassChurn:
    """Of the images in both versions that had a class before, how many no longer have it; `share` is this fraction in [0, 1]."""

    name: str
    images: int
    changed: int
    share: float


@dataclass(frozen=True)
class ConfidenceChurn:
    """Changes among images whose earlier confidence is in (low, high]; `share` is None if there are no such images."""

    low: float
    high: float
    images: int
    changed: int
    share: float | None


@dataclass(frozen=True)
class Churn:
    """All counts are numbers of images. `copies_changed` is None unless both are editions; means over no images are None."""

    only_before: int
    only_after: int
    both: int
    changed: int
    mean_confidence_change: float | None
    copies_changed: int | None
    changes: list[Change]
    by_class: list[ClassChurn]
    by_confidence: list[ConfidenceChurn]


@with_checked_arguments
def diff(store: Store, before: Version | str, after: Version | str, *, pairs: int = 10) -> Churn:
    """Compare two labelings of the same images.

    Args:
        store: The store that has both versions.
        before: A generation or an edition, or its `name@gen-N`.
        after: The version to compare with.
        pairs: How many of the most frequent changes from one class to another to list.

    Returns:
        How many images are in both or only one version, how many labels changed and how far confidences moved, by class and by confidence.

    Raises:
        UsageError: One of the versions is a teacher, does not exist, or is anonymous.
        NstError: Their classes differ, or a table is damaged.
    """
    first, second = [store.open(ref, "generation", "edition") for ref in (before, after)]
    for version in (first, second):
        check_not_anonymous(version, "compare")
    names, subject = first.manifest.class_names, f"{first.ref} and {second.ref}"
    matched = match_labels_by_name(scan_labels(second), second.manifest.class_names, names, subject)
    return measure_churn(scan_labels(first), matched, names, subject, pairs)


def one_row_per_image(labels: pl.LazyFrame) -> pl.LazyFrame:
    """`image` (its hash as an integer), `label`, `confidence` and, for an edition, `copies`; an image's row with the lowest id is used."""
    image = pl.col("image_hash").str.to_integer(base=16, dtype=pl.UInt128)  # half the size of the string, and twice as fast to join
    copies = [name for name in ("copies",) if name in labels.collect_schema()]
    selected = labels.select(image.alias("image"), "id", pl.col("label").cast(pl.Int32), "confidence", *copies)
    return selected.group_by("image").agg(pl.col("label", "confidence", *copies).min_by("id"))


def join_common_images(before: pl.LazyFrame, after: pl.LazyFrame) -> pl.LazyFrame:
    """Join two tables from `one_row_per_image` on their common images; columns of the second get the suffix `_after`."""
    return before.join(after, on="image", how="inner", suffix="_after")


def count_changes(joined: pl.LazyFrame) -> pl.LazyFrame:
    """Count `images` by `label`, `label_after` and `bin` of the earlier confidence, with aggregates over them.

    `moved` is the sum of absolute changes in confidence over the `measured` images, for which both confidences are numbers;
    `copies_changed` counts the images whose number of copies changed, null unless both tables have copies.
    """
    confidence, after = (pl.col(name).cast(pl.Float64).fill_nan(None) for name in ("confidence", "confidence_after"))
    moved = (after - confidence).abs()
    have_copies = {"copies", "copies_after"} <= set(joined.collect_schema())
    copies_changed = (pl.col("copies") != pl.col("copies_after")).sum() if have_copies else pl.lit(None, dtype=pl.UInt32).first()
    return joined.group_by("label", "label_after", bin=confidence_bin(confidence)).agg(
        images=pl.len(), moved=moved.sum(), measured=moved.count(), copies_changed=copies_changed
    )


def measure_churn(
    before: pl.LazyFrame,
    after: pl.LazyFrame,
    class_names: Sequence[str],
    subject: str = "labels",
    pairs: int = 10,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Churn:
    """Compare two tables whose labels both index into `class_names`, listing the `pairs` most frequent changes.

    `rows_at_once` bounds memory: if the tables have more rows together, they are compared in parts, each of which reads both once.
    """
    rows = sum(int(frame.item()) for frame in collect(subject, before.select(pl.len()), after.select(pl.len())))
    n_parts = max(1, -(-rows // rows_at_once))
    results = [_measure_part(before, after, subject, part, n_parts) for part in range(n_parts)]
    changes = pl.concat([result.changes for result in results]).group_by("label", "label_after", "bin").sum()
    for column in ("label", "label_after"):
        check_label_range(changes[column], class_names, subject)
    n_both = int(changes["images"].sum())
    moved, measured = float(changes["moved"].sum()), int(changes["measured"].sum())
    editions = all("copies" in frame.collect_schema() for frame in (before, after))
    return Churn(
        only_before=sum(result.images_before for result in results) - n_both,
        only_after=sum(result.images_after for result in results) - n_both,
        both=n_both,
        changed=_count_changed(changes),
        mean_confidence_change=moved / measured if measured else None,
        copies_changed=int(changes["copies_changed"].sum()) if editions else None,
        changes=_most_frequent_changes(changes, class_names, pairs),
        by_class=_churn_by_class(changes, class_names),
        by_confidence=_churn_by_confidence(changes),
    )


def match_labels_by_name(after: pl.LazyFrame, class_names: Sequence[str], expected: Sequence[str], subject: str) -> pl.LazyFrame:
    """Translate labels from indices into `class_names` to indices into `expected`, the same names in any order, or raise NstError."""
    try:
        places = pl.Series(match_classes(class_names, expected, subject), dtype=pl.Int64)
    except NstError:
        sides = ((expected, class_names, "the first"), (class_names, expected, "the second"))
        only_in = [
            f"{len(unmatched)} only in {side} ({', '.join(unmatched[:10])}{', ...' * (len(unmatched) > 10)})"
            for names, other_names, side in sides
            if (unmatched := [name for name, place in zip(names, indices_among(names, other_names), strict=True) if place is None])
        ]
        if only_in:
            differences = " and ".join(only_in)
            raise NstError(f"{subject}: expected the same classes in both, found {differences}; choose two with the same classes") from None
        raise
    return after.with_columns(label=pl.col("label").replace_strict(pl.arange(0, len(places), eager=True), places, default=pl.col("label")))


@dataclass(frozen=True)
class _Part:
    changes: pl.DataFrame
    images_before: int
    images_after: int


def _measure_part(before: pl.LazyFrame, after: pl.LazyFrame, subject: str, part: int, n_parts: int) -> _Part:
    """Compare the images in one of `n_parts` equal ranges of hashes."""
    first, second = (one_row_per_image(_filter_hash_range(labels, part, n_parts)) for labels in (before, after))
    changes, *images = collect(subject, count_changes(join_common_images(first, second)), first.select(pl.len()), second.select(pl.len()))
    return _Part(changes, *(int(frame.item()) for frame in images))


def _filter_hash_range(labels: pl.LazyFrame, part: int, n_parts: int) -> pl.LazyFrame:
    if n_parts == 1:
        return labels
    low, high = (f"{(number << 128) // n_parts:032x}" for number in (part, part + 1))
    above = pl.col("image_hash") >= low
    return labels.filter(above if part == n_parts - 1 else above & (pl.col("image_hash") < high))


_differs = pl.col("label") != pl.col("label_after")


def _count_changed(changes: pl.DataFrame) -> int:
    return int(changes.filter(_differs)["images"].sum())


def _most_frequent_changes(changes: pl.DataFrame, class_names: Sequence[str], limit: int) -> list[Change]:
    """The most frequent changes first; ties in class order."""
    pairs = changes.filter(_differs).group_by("label", "label_after").agg(pl.col("images").sum())
    ranked = pairs.sort("images", "label", "label_after", descending=[True, False, False]).head(limit)
    return [Change(class_names[label], class_names[label_after], images) for label, label_after, images in ranked.iter_rows()]


def _changed_shares(changes: pl.DataFrame, column: str) -> pl.DataFrame:
    changed = pl.col("images").filter(_differs).sum()
    grouped = changes.group_by(column).agg(pl.col("images").sum(), changed=changed)
    return grouped.with_columns(share=pl.col("changed") / pl.col("images"))


def _churn_by_class(changes: pl.DataFrame, class_names: Sequence[str]) -> list[ClassChurn]:
    """Largest share first; ties by number of images, largest first."""
    ranked = _changed_shares(changes, "label").sort("share", "images", "label", descending=[True, True, False])
    return [ClassChurn(class_names[label], images, changed, share) for label, images, changed, share in ranked.iter_rows()]


def _churn_by_confidence(changes: pl.DataFrame) -> list[ConfidenceChurn]:
    by_bin = {number: values for number, *values in _changed_shares(changes, "bin").iter_rows()}
    return [ConfidenceChurn(*bin_bounds(number), *by_bin.get(number, (0, 0, None))) for number in range(BINS)]
