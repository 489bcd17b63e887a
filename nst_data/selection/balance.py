"""Balance: the most confident images of each class up to a quota, and copies for the classes that lack images.

Section 3.1 of the paper: at most 130,000 images per class, those of highest confidence; smaller classes are duplicated up to it. While
the paper duplicates "at random", copies are spread evenly here, so that those of a class differ by at most one. `balance_as_released` does
as the released code. From lazy frame to lazy frame, on Polars and Spark alike; each function first counts rows, in separate passes.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import narwhals as nw
import polars as pl
from narwhals.typing import IntoLazyFrameT, LazyFrameT

from nst_data.errors import NstError, UsageError
from nst_data.selection.cutoffs import TIE_BREAKERS, find_cutoffs
from nst_data.selection.filters import reject
from nst_data.selection.seeded_order import ORDER_SIZE, with_seeded_order
from nst_data.tables.engines import collect_small, with_class_values

COPIES = "copies"  # the purpose of the seeded order in which rows get one more copy
RELEASED_BINS = 100  # of confidence, 0.01 wide


def most_confident(
    labels: IntoLazyFrameT,
    per_class: int,
    ties: Sequence[str] = TIE_BREAKERS,
    counted: pl.DataFrame | None = None,
    hashes: IntoLazyFrameT | None = None,
) -> IntoLazyFrameT:
    """Drop all rows of a class except those with the highest confidence.

    Args:
        labels: Rows with `id`, `image_hash`, `label` (an integer) and `confidence` (in [0, 1], no NaN).
        per_class: How many rows of each class stay, 0 or more.
        ties: Columns that order equally confident rows: the smaller `image_hash`, then `id`, comes first, so that no folder is preferred.
        counted: The number of rows that are still in, by `label` and `bin` (`cutoffs.bin_of`), if known.
        hashes: Where the `image_hash` of a few `id`s is read, such as a scan of files; by default `labels`.

    Returns:
        All rows, `label` as int64; the dropped ones are `over_quota`.

    Raises:
        UsageError: `per_class` is negative.
    """
    _check_at_least("per_class", per_class, 0)
    rows = _with_int64_labels(nw.from_native(labels))
    cuts = find_cutoffs(_remaining_rows(rows), "confidence", per_class, ties, counted, None if hashes is None else nw.from_native(hashes))
    judged = nw.from_native(reject(cuts.with_cutoffs(rows).to_native(), "over_quota", cuts.is_past_cutoff))
    return cuts.drop_cutoffs(judged).to_native()


def add_copies(selected: IntoLazyFrameT, per_class: int, seed: int, max_copies: int | None = None) -> IntoLazyFrameT:
    """Repeat the rows of classes that lack images, as evenly as possible.

    Args:
        selected: The rows that are left, with `label` (an integer) and `image_hash`.
        per_class: What the copies of each class sum to.
        seed: Random seed of the order in which rows get one more copy.
        max_copies: Repeat no row more often than this; a class may then sum to less.

    Returns:
        The rows, `label` as int64, with `copies` (int32), how often each occurs in the training set: in a class they differ by at most 1.

    Raises:
        UsageError: `max_copies` is below 1.
        NstError: A class has more than `per_class` rows.
    """
    if max_copies is not None:
        _check_at_least("max_copies", max_copies, 1)
    rows = with_seeded_order(_with_int64_labels(nw.from_native(selected)), seed, COPIES, "nst_order")
    return assign_copies(rows, per_class, max_copies).drop("nst_order").to_native()


def assign_copies(rows: LazyFrameT, per_class: int, max_copies: int | None, labels: LazyFrameT | None = None) -> LazyFrameT:
    """Add `copies` as `add_copies` does, by the seeded order `nst_order`. `labels` has the `image_hash` of each `id`, if `rows` has not."""
    counts = dict(collect_small(rows.group_by("label").agg(nw.len())).iter_rows())
    if counts and max(counts.values()) > per_class:
        raise NstError(
            f"expected at most {per_class:,} rows in each class, found {max(counts.values()):,}; select them by most_confident first"
        )
    targets = {label: min(per_class, count * (max_copies or per_class)) for label, count in counts.items()}
    rows = rows.with_columns(nst_first=(ORDER_SIZE - 1 - nw.col("nst_order")) / (ORDER_SIZE + 1))
    cuts = find_cutoffs(rows, "nst_first", {label: targets[label] % count for label, count in counts.items()}, labels=labels)
    class_copies = pl.DataFrame(
        {"label": list(counts), "copies": [targets[label] // count for label, count in counts.items()]},
        schema={"label": pl.Int64, "copies": pl.Int64},
    )
    rows = with_class_values(cuts.with_cutoffs(rows), class_copies)
    rows = rows.with_columns(copies=(nw.col("copies") + nw.when(cuts.is_past_cutoff).then(0).otherwise(1)).cast(nw.Int32))
    return cuts.drop_cutoffs(rows).drop("nst_first")


def balance_as_released(labels: IntoLazyFrameT, per_class: int, seed: int, max_copies: int | None = None) -> IntoLazyFrameT:
    """Select and add `copies` (int32) as the released code does (google-research/noisystudent, filter_unlabel.py), but seeded.

    A class takes whole bins of confidence, 0.01 wide, the highest first, until it has `per_class` rows or more. Each of its n rows gets
    per_class / n copies, rounded up or down at random so that the mean is kept. Rows that get none are `over_quota`.
    """
    rows = with_seeded_order(nw.from_native(labels), seed, "released", "nst_order")
    confidence = nw.col("confidence").cast(nw.Float64)
    if "reason" in rows.collect_schema().names():  # dropped rows have no bin, and their confidence may not be a number
        confidence = nw.when(nw.col("reason").is_null()).then(confidence)
    bins = (confidence * RELEASED_BINS).cast(nw.Int32)
    counted = collect_small(_remaining_rows(rows).group_by("label", bins.alias("bin")).agg(rows=nw.len()))
    rows = with_class_values(rows, _released_copies_per_class(counted, per_class, max_copies))
    gets_extra_copy = nw.col("nst_order") * nw.col("nst_rows") < nw.col("nst_rest") * ORDER_SIZE
    copies = nw.when(bins >= nw.col("nst_bin")).then(nw.col("nst_copies") + gets_extra_copy.cast(nw.Int64)).otherwise(0)
    rows = rows.with_columns(copies=copies.cast(nw.Int32))
    rows = rows.drop("nst_order", "nst_rows", "nst_rest", "nst_bin", "nst_copies")
    return reject(rows.to_native(), "over_quota", nw.col("copies") == 0)


def _released_copies_per_class(bin_counts: pl.DataFrame, per_class: int, max_copies: int | None) -> pl.DataFrame:
    """For each class: its lowest bin, the number of rows from there up, the copies of each, and the rest that is distributed at random."""
    ranked = bin_counts.sort("bin", descending=True).with_columns(total=pl.col("rows").cast(pl.Int64).cum_sum().over("label"))
    is_needed = pl.col("total") - pl.col("rows") < per_class  # a bin is taken if those above it were not enough
    selected = ranked.filter(is_needed).group_by("label").agg(nst_bin=pl.col("bin").min(), nst_rows=pl.col("total").max())
    max_total = pl.col("nst_rows") * (max_copies or per_class)
    target = pl.min_horizontal(pl.lit(per_class), max_total)
    return selected.with_columns(nst_copies=target // pl.col("nst_rows"), nst_rest=target % pl.col("nst_rows"))


def quota_from_quantile(counts: Mapping[int, int], quantile: float) -> int:
    """The smallest class count that at least this share of the classes with images does not exceed."""
    ordered = sorted(count for count in counts.values() if count)
    # exact: 0.55 of 100 classes is 55, while the float 0.55 is a little more
    return ordered[max(0, math.ceil(Fraction(str(quantile)) * len(ordered)) - 1)] if ordered else 1


def _check_at_least(setting: str, number: int, minimum: int) -> None:
    if number < minimum:
        raise UsageError(f"`{setting}`: expected a whole number of at least {minimum}, found {number}")


def _with_int64_labels(rows: LazyFrameT) -> LazyFrameT:
    dtype = rows.collect_schema()["label"]
    return rows if dtype == nw.Int64 else rows.with_columns(nw.col("label").cast(nw.Int64))


def _remaining_rows(rows: LazyFrameT) -> LazyFrameT:
    return rows.filter(nw.col("reason").is_null()) if "reason" in rows.collect_schema().names() else rows
