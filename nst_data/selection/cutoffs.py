"""Where the first N rows of each class end, exactly, without sorting all rows.

Counting rows by class and bin of their value shows which bin contains a class's N-th row. That bin is counted again in finer bins until
few enough rows are left to sort. Each count is one streaming pass; nothing that grows with the rows stays in memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import narwhals as nw
import numpy as np
import polars as pl
from narwhals.typing import LazyFrameT
from numpy.typing import NDArray

from nst_data.tables.engines import (
    collect_small,
    count_numbers,
    frame_like,
    rows_with_ids,
    with_class_values,
    with_hash_number,
    with_row_values,
    with_text_index,
)

BINS = 512  # counts by class and bin stay in the processor's cache
TIE_BREAKERS = ("image_hash", "id")
_MAX_SORTED_ROWS = 2**23  # at most this many are sorted in memory
_MIN_WIDTH = BINS**-6.0  # 2**-54: different float32 values above 2**-31 are further apart
_HASH_DIGITS = 7
_UNREACHABLE = 2.0  # a cutoff that no value reaches
_HASH_COLUMN, _EXCESS_COLUMN = "nst_hash", "nst_over_cut"


def bin_of(value: nw.Expr) -> nw.Expr:
    """The bin, from 0 to BINS, of a value in [0, 1]; exact, as BINS is a power of two. 1 has a bin of its own."""
    return (value * BINS).cast(nw.Int32)


def codes_per_label(reasons: Sequence[str]) -> int:
    """How many different numbers stand for the rows of one label in `count_bins`: one number is counted faster than two."""
    return BINS + 1 + len(reasons)


def count_bins(
    rows: LazyFrameT, bin_expr: nw.Expr, reasons: Sequence[str] = (), on_batch: Callable[[pl.DataFrame], None] | None = None
) -> pl.DataFrame:
    """Count `rows` by `label` and `bin`, a number from 0 to BINS; those with a `reason`, one of `reasons`, by that instead.

    `on_batch`, for Polars only, is called with the `number` of all rows in order: `label` * `codes_per_label(reasons)` + `bin` for rows
    with a bin.
    """
    codes = codes_per_label(reasons)
    if reasons:
        rows = with_text_index(rows, "reason", reasons, "nst_place")
        bin_expr = nw.coalesce(BINS + 1 + nw.col("nst_place").cast(nw.Int64), bin_expr.cast(nw.Int64))
    counted = count_numbers(rows, nw.col("label") * codes + bin_expr, on_batch)
    counted = counted.select("rows", label=pl.col("number") // codes, place=pl.col("number") % codes)
    reason = (pl.col("place") - BINS - 1).replace_strict(range(len(reasons)), reasons, default=None, return_dtype=pl.String)
    bin_ = pl.when(pl.col("place") <= BINS).then("place")
    return counted.select("rows", "label", bin_.alias("bin"), *([reason.alias("reason")] if reasons else []))


@dataclass(frozen=True)
class Cutoffs:
    """The last of the first rows of each class, for classes that have more rows.

    Rows are ordered by `keys`, the largest first. `last_rows` has each class's `label` and the keys of its last row; `excess_ties` are the
    `id`s of rows with exactly these keys that come after it. `last_bin_rows` are all rows in the bins in which classes end; None if they
    are many.
    """

    keys: tuple[str, ...]
    last_rows: pl.DataFrame
    excess_ties: pl.DataFrame
    last_bin_rows: pl.DataFrame | None = None

    @property
    def ids_in_last_bins(self) -> NDArray[np.int64] | None:
        """The increasing `id`s of the first rows in the bins in which classes end; None if these bins hold many rows."""
        if self.last_bin_rows is None:
            return None
        return np.sort(collect_small(self.select_first(nw.from_native(self.last_bin_rows.lazy())))["id"].to_numpy())

    def with_cutoffs(self, rows: LazyFrameT) -> LazyFrameT:
        """The rows with the columns `nst_..._cut` that `is_past_cutoff` reads: null for a class that has no more rows."""
        if _HASH_COLUMN in self.keys:
            rows = _with_hash_key(rows)
        rows = with_class_values(rows, self.last_rows.rename({key: _cutoff_column(key) for key in self.keys}))
        return (
            with_row_values(rows, frame_like(rows, self.excess_ties.with_columns(pl.lit(value=True).alias(_EXCESS_COLUMN))), _EXCESS_COLUMN)
            if len(self.excess_ties)
            else rows
        )

    @property
    def is_past_cutoff(self) -> nw.Expr:
        """Whether a row returned by `with_cutoffs` comes after the last one of its class."""
        past = nw.col(_EXCESS_COLUMN).fill_null(value=False) if len(self.excess_ties) else nw.lit(value=False)
        for key in reversed(self.keys):
            value = nw.col(key)  # of the cutoff's type
            past = (value < nw.col(_cutoff_column(key))) | ((value == nw.col(_cutoff_column(key))) & past)
        return past.fill_null(value=False)

    def select_first(self, rows: LazyFrameT) -> LazyFrameT:
        """The rows that do not come after the last one of their class."""
        return self.drop_cutoffs(self.with_cutoffs(rows).filter(~self.is_past_cutoff))

    def drop_cutoffs(self, rows: LazyFrameT) -> LazyFrameT:
        """Drop the columns that `with_cutoffs` added."""
        return rows.drop(
            *map(_cutoff_column, self.keys),
            *([_HASH_COLUMN] if _HASH_COLUMN in self.keys else []),
            *([_EXCESS_COLUMN] if len(self.excess_ties) else []),
        )


def _cutoff_column(key: str) -> str:
    return f"nst_{key.removeprefix('nst_')}_cut"


def find_cutoffs(
    rows: LazyFrameT,
    by: str,
    quotas: int | Mapping[int, int],
    ties: Sequence[str] = TIE_BREAKERS,
    bin_counts: pl.DataFrame | None = None,
    labels: LazyFrameT | None = None,
    select_remaining: Callable[[LazyFrameT], LazyFrameT] = lambda rows: rows,
) -> Cutoffs:
    """Where the first `quotas` rows of each class end.

    Rows are ordered by `by` (in [0, 1], the largest first), then by `ties`, the smallest first; no two rows are equal in all of these.
    `bin_counts` is the number of `rows` by `label` and `bin` (`bin_of`), if known; `labels` has the columns `id` and `ties`, if `rows` has
    not. The columns that break ties are read only for the rows that tie. `select_remaining` filters `rows` to those that count, if not all
    do: it is applied only to the few rows around which a class may end.
    """
    labels = rows if labels is None else labels
    if bin_counts is None:
        bin_counts = count_bins(select_remaining(rows), bin_of(nw.col(by)))
    if isinstance(quotas, int):
        quotas = dict.fromkeys(bin_counts["label"].unique(), quotas)
    needed = pl.DataFrame({"label": list(quotas), "needed": list(quotas.values())}, schema={"label": pl.Int64, "needed": pl.Int64})
    candidates = bin_counts.group_by("label").agg(pl.col("rows").sum())
    crowded = candidates.join(needed, on="label").filter(pl.col("rows") > pl.col("needed"))
    box = _Box.full_range(by, crowded.filter(pl.col("needed") > 0).select("label", "needed")).narrow(bin_counts)
    zero_quota = crowded.filter(pl.col("needed") == 0).select("label", pl.lit(_UNREACHABLE).alias(by))
    if not box.rows:
        no_rows = pl.DataFrame(schema={"label": pl.Int64, by: pl.Float32, "id": pl.Int64})
        return Cutoffs((by,), zero_quota, no_rows.select("id"), no_rows)
    first_box = box
    box = _narrow_until_sortable(box, rows, select_remaining)
    has_hashes = ties[0] == "image_hash" and "image_hash" in rows.collect_schema().names()
    if box.rows > _MAX_SORTED_ROWS and has_hashes:  # such as labels that all have the same confidence
        box = _narrow_until_sortable(box.with_hash(), rows, select_remaining)
    candidates = collect_small(select_remaining(box.rows_inside(rows)).select("label", *box.keys, "id"))
    last, excess = _find_last_rows(box, candidates, labels, ties)
    zero_last = zero_quota.select("label", *(pl.lit(_UNREACHABLE, last.schema[key]).alias(key) for key in box.keys))
    return Cutoffs(box.keys, pl.concat([last, zero_last]), excess, candidates if box is first_box else None)


def _narrow_until_sortable(box: "_Box", rows: LazyFrameT, select_remaining: Callable[[LazyFrameT], LazyFrameT]) -> "_Box":
    while box.rows > _MAX_SORTED_ROWS and not box.is_point:
        box = box.narrow(box.count(select_remaining(box.rows_inside(rows))))
    return box


def _find_last_rows(box: "_Box", candidates: pl.DataFrame, labels: LazyFrameT, ties: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """For each class of the box, the keys of the last row that it needs, and the `id`s of all rows with these keys that come after it.

    `candidates` are the rows in the box: `label`, its keys and `id`.
    """
    keys = list(box.keys)
    if not box.is_point:  # narrowed once more in memory: a bin of a bin is sorted in no time
        box = box.narrow(box.count(box.rows_inside(nw.from_native(candidates.lazy()))))
        candidates = collect_small(box.rows_inside(nw.from_native(candidates.lazy())).select("label", *keys, "id"))
    rank = pl.int_range(1, pl.len() + 1).over("label")
    ranked = candidates.sort(*keys, descending=True).with_columns(rank=rank).join(box.classes.select("label", "needed"), on="label")
    last = ranked.filter(pl.col("rank") == pl.col("needed")).select("label", *keys)
    tied = ranked.join(last, on=["label", *keys]).with_columns(
        least=pl.col("rank").min().over("label"), most=pl.col("rank").max().over("label")
    )
    tied = tied.filter(pl.col("needed") < pl.col("most")).select("id", "label", more=pl.col("needed") - pl.col("least") + 1)
    if len(tied):
        if set(ties) > {"id"}:
            tied = tied.join(collect_small(rows_with_ids(labels, tied["id"]).select("id", *{*ties} - {"id"})), on="id")
        tied = tied.sort(*ties).filter(rank > pl.col("more"))
    return last, tied.select("id")


@dataclass(frozen=True)
class _Box:
    """For each class, the interval of values that contains its last row, and how many rows it still needs from there.

    `classes` has `label`, `needed` and, for each of `keys`, the interval's lower end, in [0, 1]. The interval of the last key is `width`
    wide; those of the keys before are single values. `rows` is the number of rows in all intervals.
    """

    keys: tuple[str, ...]
    classes: pl.DataFrame
    width: float
    rows: int

    @classmethod
    def full_range(cls, by: str, needed: pl.DataFrame) -> "_Box":
        """The box of all values."""
        return cls((by,), needed.with_columns(pl.lit(0.0).alias(f"{by}_low")), 1.0, 0)

    @property
    def is_point(self) -> bool:
        return bool(self.width <= _MIN_WIDTH)

    def with_hash(self) -> "_Box":
        """Narrow by hash from here on, the smallest first."""
        return _Box((*self.keys, _HASH_COLUMN), self.classes.with_columns(pl.lit(0.0).alias(f"{_HASH_COLUMN}_low")), 1.0, self.rows)

    def rows_inside(self, rows: LazyFrameT) -> LazyFrameT:
        """The rows in the intervals, with the columns of `classes`."""
        if _HASH_COLUMN in self.keys and _HASH_COLUMN not in rows.collect_schema().names():
            rows = _with_hash_key(rows)
        inside = with_class_values(rows, self.classes)
        for key in self.keys:
            above = nw.col(key).cast(nw.Float64) - nw.col(f"{key}_low")  # exact, whereas `low` + 2**-54 would be rounded to `low`
            inside = inside.filter((above >= 0) & (above < (self.width if key == self.keys[-1] else _MIN_WIDTH)))
        return inside

    def count(self, rows_inside: LazyFrameT) -> pl.DataFrame:
        """Count rows, as the method `rows_inside` returns them, by `label` and `bin`, of which an interval has BINS."""
        key = self.keys[-1]
        place = (nw.col(key).cast(nw.Float64) - nw.col(f"{key}_low")) / self.width
        return count_bins(rows_inside, bin_of(place))

    def narrow(self, bin_counts: pl.DataFrame) -> "_Box":
        """The box of the bins that contain the last rows."""
        low = f"{self.keys[-1]}_low"
        rows_before = pl.col("rows").cum_sum().over("label") - pl.col("rows")
        last_bins = (
            bin_counts.join(self.classes, on="label")
            .sort("bin", descending=True)
            .with_columns(before=rows_before)
            .filter(pl.col("before") < pl.col("needed"), pl.col("needed") <= pl.col("before") + pl.col("rows"))
            .with_columns((pl.col(low) + pl.col("bin") * (self.width / BINS)).alias(low), needed=pl.col("needed") - pl.col("before"))
        )
        return _Box(self.keys, last_bins.select(self.classes.columns), self.width / BINS, int(last_bins["rows"].sum()))


def _with_hash_key(rows: LazyFrameT) -> LazyFrameT:
    """Add a number in [0, 1), computed from the first digits of `image_hash`, that is larger for a smaller hash."""
    return with_hash_number(rows, _HASH_COLUMN, _HASH_DIGITS).with_columns(
        (1 - (nw.col(_HASH_COLUMN) + 1) / 16**_HASH_DIGITS).alias(_HASH_COLUMN)
    )
