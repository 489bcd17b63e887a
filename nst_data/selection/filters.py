"""Filters: each gives the rows that it drops a reason. From lazy frame to lazy frame, on Polars and Spark alike.

`reason` is null for a row that is still in. A row keeps its first reason, so the order of filters decides which reason it is counted under:

    rows = reject_duplicates(labels)
    rows = reject_unsure(rows, min_confidence=0.3)
    rows = reject(rows, "too_dark", nw.col("brightness") < 20)
    rows.group_by("reason").len()                                 # what happened to each row
    selected = rows.filter(pl.col("reason").is_null())
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import narwhals as nw
import polars as pl
from narwhals.typing import IntoLazyFrameT, LazyFrameT

from nst_data.selection.seeded_order import ORDER_SIZE, with_seeded_order
from nst_data.tables.engines import frame_like, is_polars, row_value_joiner, with_class_values, with_row_values
from nst_data.tables.hash_numbers import HashNumbers


def reject(rows: IntoLazyFrameT, reason: str, where: nw.Expr) -> IntoLazyFrameT:
    """Drop the rows for which an expression is true; rows for which it is null stay.

    Args:
        rows: Labels, with or without a column `reason`.
        reason: What the dropped rows are counted under, such as `too_dark`.
        where: Expression over columns of `rows`, on either engine.

    Returns:
        All rows; `reason` is null for those still in.
    """
    return _reject(nw.from_native(rows), reason, where).to_native()


def held_out_rows(labels: IntoLazyFrameT, image_hashes: Collection[str]) -> IntoLazyFrameT:
    """The `id`s of the rows of images whose bytes have these hashes."""
    rows = nw.from_native(labels).select("id", "image_hash")
    hashes = pl.DataFrame({"image_hash": sorted(image_hashes)}, schema={"image_hash": pl.String})
    return rows.join(frame_like(rows, hashes), on="image_hash", how="inner").select("id").to_native()


def reject_rows(labels: IntoLazyFrameT, ids: IntoLazyFrameT, reason: str) -> IntoLazyFrameT:
    """Drop the rows with these `id`s, such as `held_out_rows(labels, hashes_of_the_test_set)`: section 3.1 trains on none of them."""
    rows = nw.from_native(labels)
    marked = nw.from_native(ids).select("id", nst_found=nw.lit(value=True))
    return _reject(with_row_values(rows, marked, "nst_found"), reason, nw.col("nst_found")).drop("nst_found").to_native()


def repeated_images(labels: IntoLazyFrameT, work_folder: Path | None = None) -> IntoLazyFrameT:
    """The rows of images that occur more than once, equal byte for byte: `id`, the image's `first_id`, and its `duplicates` (int32).

    `work_folder` is a folder for intermediate files, by default the system's folder for temporary files.
    """
    native: Any = labels
    if is_polars(nw.from_native(labels)):
        if work_folder:
            work_folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=work_folder) as folder:
            hashes = HashNumbers.write(native, Path(folder, "image_hashes"))
            if hashes is not None:
                return cast("IntoLazyFrameT", hashes.find_repeated().lazy())
    return repeated_images_in_memory(labels)


def repeated_images_in_memory(labels: IntoLazyFrameT) -> IntoLazyFrameT:
    """The result of `repeated_images` for any text in `image_hash`; all of it is in memory at once."""
    rows = nw.from_native(labels).select("id", "image_hash")
    groups = rows.group_by("image_hash").agg(first_id=nw.col("id").min(), duplicates=nw.len())
    groups = groups.filter(nw.col("duplicates") > 1).with_columns(nw.col("duplicates").cast(nw.Int32))
    return rows.join(groups, on="image_hash", how="inner").select("id", "first_id", "duplicates").to_native()


def reject_duplicates(labels: IntoLazyFrameT, repeated: IntoLazyFrameT | None = None) -> IntoLazyFrameT:
    """Drop all rows of an image, byte for byte, except the first.

    Args:
        labels: Rows with `id` and `image_hash`.
        repeated: The result of `repeated_images`, if it has already been computed.

    Returns:
        All rows, with `duplicates` (int32): how many rows have the same image.
    """
    return build_duplicate_filter(repeated_images(labels) if repeated is None else repeated)(labels)


def build_duplicate_filter(repeated: IntoLazyFrameT) -> Callable[[IntoLazyFrameT], IntoLazyFrameT]:
    """`reject_duplicates` for use on several subsets: `repeated`, the result of `repeated_images` for all rows, is read only once."""
    is_first = nw.col("id") == nw.col("first_id")
    repeats = nw.when(is_first).then(nw.col("duplicates")).otherwise(-nw.col("duplicates"))
    with_repeats = row_value_joiner(nw.from_native(repeated).select("id", nst_repeats=repeats), "nst_repeats")

    def reject_repeated(labels: IntoLazyFrameT) -> IntoLazyFrameT:
        rows = with_repeats(nw.from_native(labels)).with_columns(duplicates=nw.col("nst_repeats").fill_null(1).abs())
        return _reject(rows, "duplicate", nw.col("nst_repeats") < 0).drop("nst_repeats").to_native()

    return reject_repeated


def reject_classes(labels: IntoLazyFrameT, classes: Collection[int]) -> IntoLazyFrameT:
    """Drop rows with one of these labels."""
    return reject(labels, "excluded_class", nw.col("label").is_in(sorted(classes)))


def reject_unsampled(labels: IntoLazyFrameT, fraction: float, seed: int) -> IntoLazyFrameT:
    """Keep a uniform share of the images (study 2, table 10). A smaller share is a subset of a larger one.

    Args:
        labels: Rows with `image_hash`, which together with the seed decides which rows stay.
        fraction: The share, in (0, 1].
        seed: Random seed of the draw.

    Returns:
        All rows; the dropped ones are `not_sampled`.
    """
    rows = with_seeded_order(nw.from_native(labels), seed, "fraction", "nst_order")
    return _reject(rows, "not_sampled", nw.col("nst_order") >= fraction * ORDER_SIZE).drop("nst_order").to_native()


def reject_unsure(
    labels: IntoLazyFrameT, min_confidence: float, per_class: Mapping[int, float] | None = None, keep_equal: bool = False
) -> IntoLazyFrameT:
    """Drop rows with labels of which the teacher is unsure (section 3.1: 0.3).

    Args:
        labels: Rows with `label` and `confidence`.
        min_confidence: Threshold in [0, 1]; rows at or below it are dropped.
        per_class: Thresholds of single classes, by label.
        keep_equal: Keep rows at the threshold, as the released code does.

    Returns:
        All rows; the dropped ones, including those whose confidence is not a number, are `low_confidence`.
    """
    rows = nw.from_native(labels)
    if not per_class:
        return _reject(rows, "low_confidence", _is_not_above(nw.lit(min_confidence), keep_equal)).to_native()
    thresholds = pl.DataFrame(
        {"label": list(per_class), "nst_least": list(per_class.values())}, schema={"label": pl.Int64, "nst_least": pl.Float64}
    )
    rows = with_class_values(rows, thresholds)
    is_unsure = _is_not_above(nw.col("nst_least").fill_null(min_confidence), keep_equal)
    return _reject(rows, "low_confidence", is_unsure).drop("nst_least").to_native()


def reject_outside(labels: IntoLazyFrameT, low: float, high: float) -> IntoLazyFrameT:
    """Keep rows in an interval of confidence (figure 5: intervals 0.1 wide).

    Args:
        labels: Rows with `confidence`.
        low: Rows at or below it are dropped; an interval from 0 includes 0.
        high: Rows above it are dropped.

    Returns:
        All rows; the dropped ones are `outside_range`.
    """
    below = _is_not_above(nw.lit(low)) if low > 0 else nw.lit(value=False)
    return reject(labels, "outside_range", below | (_confidence() > high))


def _confidence() -> nw.Expr:
    return nw.col("confidence").cast(nw.Float64)  # float64: 0.3 as float32 is above 0.3, and engines differ in how they compare the two


def _is_not_above(threshold: nw.Expr, keep_equal: bool = False) -> nw.Expr:
    is_too_low = _confidence() < threshold if keep_equal else _confidence() <= threshold
    return _confidence().is_null() | _confidence().is_nan() | is_too_low


def _reject(rows: LazyFrameT, reason: str, condition: nw.Expr) -> LazyFrameT:
    dtype = rows.collect_schema().get("reason")
    if dtype is None:
        return rows.with_columns(reason=nw.when(condition).then(nw.lit(reason)))
    current = nw.col("reason")
    return rows.with_columns(reason=nw.when(current.is_null() & condition).then(nw.lit(reason, dtype=dtype)).otherwise(current))
