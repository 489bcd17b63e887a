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
    beside,
    collected,
    count_numbers,
    rows_at,
    with_class_values,
    with_hash_number,
    with_place,
    with_row_values,
)

BINS = 512  # counts by class and bin stay in the processor's cache
TIES = ("image_hash", "id")
_RANKED_ROWS = 2**23  # at most this many are sorted in memory
_POINT = BINS**-6.0  # 2**-54: different float32 values above 2**-31 are further apart
_HASH_DIGITS = 7
_NONE = 2.0  # a cutoff that no value reaches
_HASH, _OVER = "nst_hash", "nst_over_cut"


def bin_of(value: nw.Expr) -> nw.Expr:
    """The bin, from 0 to BINS, of a value in [0, 1]; exact, as BINS is a power of two. 1 has a bin of its own."""
    return (value * BINS).cast(nw.Int32)


def places_of(reasons: Sequence[str]) -> int:
    """How many different numbers stand for the rows of one label in `count_bins`: one number is counted faster than two."""
    return BINS + 1 + len(reasons)


def count_bins(
    rows: LazyFrameT, number: nw.Expr, reasons: Sequence[str] = (), keep: Callable[[pl.DataFrame], None] | None = None
) -> pl.DataFrame:
    """Count `rows` by `label` and `bin`, a number from 0 to BINS; those with a `reason`, one of `reasons`, by that instead.

    `keep`, for Polars only, is called with the `number` of all rows in order: `label` * `places_of(reasons)` + `bin` for rows with a bin.
    """
    places = places_of(reasons)
    if reasons:
        rows = with_place(rows, "reason", reasons, "nst_place")
        number = nw.coalesce(BINS + 1 + nw.col("nst_place").cast(nw.Int64), number.cast(nw.Int64))
    counted = count_numbers(rows, nw.col("label") * places + number, keep)
    counted = counted.select("rows", label=pl.col("number") // places, place=pl.col("number") % places)
    reason = (pl.col("place") - BINS - 1).replace_strict(range(len(reasons)), reasons, default=None, return_dtype=pl.String)
    bin_ = pl.when(pl.col("place") <= BINS).then("place")
    return counted.select("rows", "label", bin_.alias("bin"), *([reason.alias("reason")] if reasons else []))


@dataclass(frozen=True)
class Cutoffs:
    """The last of the first rows of each class, for classes that have more rows.

    Rows are ordered by `keys`, the largest first. `last` has each class's `label` and the keys of its last row; `over` are the `id`s of
    rows with exactly these keys that come after it. `in_last_bins` are all rows in the bins in which classes end; None if they are many.
    """

    keys: tuple[str, ...]
    last: pl.DataFrame
    over: pl.DataFrame
    in_last_bins: pl.DataFrame | None = None

    @property
    def ends(self) -> NDArray[np.int64] | None:
        """The increasing `id`s of the first rows in the bins in which classes end; None if these bins hold many rows."""
        if self.in_last_bins is None:
            return None
        return np.sort(collected(self.first(nw.from_native(self.in_last_bins.lazy())))["id"].to_numpy())

    def beside(self, rows: LazyFrameT) -> LazyFrameT:
        """The rows with the columns `nst_..._cut` that `is_past` reads: null for a class that has no more rows."""
        if _HASH in self.keys:
            rows = _with_hash_key(rows)
        rows = with_class_values(rows, self.last.rename({key: _cut(key) for key in self.keys}))
        return (
            with_row_values(rows, beside(rows, self.over.with_columns(pl.lit(value=True).alias(_OVER))), _OVER) if len(self.over) else rows
        )

    @property
    def is_past(self) -> nw.Expr:
        """Whether a row returned by `beside` comes after the last one of its class."""
        past = nw.col(_OVER).fill_null(value=False) if len(self.over) else nw.lit(value=False)
        for key in reversed(self.keys):
            value = nw.col(key)  # of the cutoff's type
            past = (value < nw.col(_cut(key))) | ((value == nw.col(_cut(key))) & past)
        return past.fill_null(value=False)

    def first(self, rows: LazyFrameT) -> LazyFrameT:
        """The rows that do not come after the last one of their class."""
        return self.without(self.beside(rows).filter(~self.is_past))

    def without(self, rows: LazyFrameT) -> LazyFrameT:
        """Drop the columns that `beside` added."""
        return rows.drop(*map(_cut, self.keys), *([_HASH] if _HASH in self.keys else []), *([_OVER] if len(self.over) else []))


def _cut(key: str) -> str:
    return f"nst_{key.removeprefix('nst_')}_cut"


def cutoffs(
    rows: LazyFrameT,
    by: str,
    quotas: int | Mapping[int, int],
    ties: Sequence[str] = TIES,
    counted: pl.DataFrame | None = None,
    labels: LazyFrameT | None = None,
    still_in: Callable[[LazyFrameT], LazyFrameT] = lambda rows: rows,
) -> Cutoffs:
    """Where the first `quotas` rows of each class end.

    Rows are ordered by `by` (in [0, 1], the largest first), then by `ties`, the smallest first; no two rows are equal in all of these.
    `counted` is the number of `rows` by `label` and `bin` (`bin_of`), if known; `labels` has the columns `id` and `ties`, if
    `rows` has not. The columns that break ties are read only for the rows that tie. `still_in` filters `rows` to those that count,
    if not all do: it is applied only to the few rows around which a class may end.
    """
    labels = rows if labels is None else labels
    if counted is None:
        counted = count_bins(still_in(rows), bin_of(nw.col(by)))
    if isinstance(quotas, int):
        quotas = dict.fromkeys(counted["label"].unique(), quotas)
    needed = pl.DataFrame({"label": list(quotas), "needed": list(quotas.values())}, schema={"label": pl.Int64, "needed": pl.Int64})
    candidates = counted.group_by("label").agg(pl.col("rows").sum())
    crowded = candidates.join(needed, on="label").filter(pl.col("rows") > pl.col("needed"))
    box = _Box.around(by, crowded.filter(pl.col("needed") > 0).select("label", "needed")).narrowed(counted)
    zero_quota = crowded.filter(pl.col("needed") == 0).select("label", pl.lit(_NONE).alias(by))
    if not box.rows:
        no_rows = pl.DataFrame(schema={"label": pl.Int64, by: pl.Float32, "id": pl.Int64})
        return Cutoffs((by,), zero_quota, no_rows.select("id"), no_rows)
    first_box = box
    box = _small_enough(box, rows, still_in)
    has_hashes = ties[0] == "image_hash" and "image_hash" in rows.collect_schema().names()
    if box.rows > _RANKED_ROWS and has_hashes:  # such as labels that all have the same confidence
        box = _small_enough(box.with_hash(), rows, still_in)
    candidates = collected(still_in(box.inside(rows)).select("label", *box.keys, "id"))
    last, over = _last_needed(box, candidates, labels, ties)
    zero_last = zero_quota.select("label", *(pl.lit(_NONE, last.schema[key]).alias(key) for key in box.keys))
    return Cutoffs(box.keys, pl.concat([last, zero_last]), over, candidates if box is first_box else None)


def _small_enough(box: "_Box", rows: LazyFrameT, still_in: Callable[[LazyFrameT], LazyFrameT]) -> "_Box":
    while box.rows > _RANKED_ROWS and not box.is_a_point:
        box = box.narrowed(box.count(still_in(box.inside(rows))))
    return box


def _last_needed(box: "_Box", found: pl.DataFrame, labels: LazyFrameT, ties: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """For each class of the box, the keys of the last row that it needs, and the `id`s of all rows with these keys that come after it.

    `found` are the rows in the box: `label`, its keys and `id`.
    """
    keys = list(box.keys)
    if not box.is_a_point:  # narrowed once more in memory: a bin of a bin is sorted in no time
        box = box.narrowed(box.count(box.inside(nw.from_native(found.lazy()))))
        found = collected(box.inside(nw.from_native(found.lazy())).select("label", *keys, "id"))
    rank = pl.int_range(1, pl.len() + 1).over("label")
    ranked = found.sort(*keys, descending=True).with_columns(rank=rank).join(box.classes.select("label", "needed"), on="label")
    last = ranked.filter(pl.col("rank") == pl.col("needed")).select("label", *keys)
    tied = ranked.join(last, on=["label", *keys]).with_columns(
        least=pl.col("rank").min().over("label"), most=pl.col("rank").max().over("label")
    )
    tied = tied.filter(pl.col("needed") < pl.col("most")).select("id", "label", more=pl.col("needed") - pl.col("least") + 1)
    if len(tied):
        if set(ties) > {"id"}:
            tied = tied.join(collected(rows_at(labels, tied["id"]).select("id", *{*ties} - {"id"})), on="id")
        tied = tied.sort(*ties).filter(rank > pl.col("more"))
    return last, tied.select("id")


@dataclass(frozen=True)
class _Box:
    """For each class, the interval of values that contains its last row, and how many rows it still needs from there.

    `classes` has `label`, `needed` and, for each of `keys`, the interval's lower end, in [0, 1]. The interval of the last key is
    `width` wide; those of the keys before are single values. `rows` is the number of rows in all intervals.
    """

    keys: tuple[str, ...]
    classes: pl.DataFrame
    width: float
    rows: int

    @classmethod
    def around(cls, by: str, needed: pl.DataFrame) -> "_Box":
        """The box of all values."""
        return cls((by,), needed.with_columns(pl.lit(0.0).alias(f"{by}_low")), 1.0, 0)

    @property
    def is_a_point(self) -> bool:
        return bool(self.width <= _POINT)

    def with_hash(self) -> "_Box":
        """Narrow by hash from here on, the smallest first."""
        return _Box((*self.keys, _HASH), self.classes.with_columns(pl.lit(0.0).alias(f"{_HASH}_low")), 1.0, self.rows)

    def inside(self, rows: LazyFrameT) -> LazyFrameT:
        """The rows in the intervals, with the columns of `classes`."""
        if _HASH in self.keys and _HASH not in rows.collect_schema().names():
            rows = _with_hash_key(rows)
        inside = with_class_values(rows, self.classes)
        for key in self.keys:
            above = nw.col(key).cast(nw.Float64) - nw.col(f"{key}_low")  # exact, whereas `low` + 2**-54 would be rounded to `low`
            inside = inside.filter((above >= 0) & (above < (self.width if key == self.keys[-1] else _POINT)))
        return inside

    def count(self, inside: LazyFrameT) -> pl.DataFrame:
        """Count the rows returned by `inside` by `label` and `bin`, of which an interval has BINS."""
        key = self.keys[-1]
        place = (nw.col(key).cast(nw.Float64) - nw.col(f"{key}_low")) / self.width
        return count_bins(inside, bin_of(place))

    def narrowed(self, counted: pl.DataFrame) -> "_Box":
        """The box of the bins that contain the last rows."""
        low = f"{self.keys[-1]}_low"
        rows_before = pl.col("rows").cum_sum().over("label") - pl.col("rows")
        last_bins = (
            counted.join(self.classes, on="label")
            .sort("bin", descending=True)
            .with_columns(before=rows_before)
            .filter(pl.col("before") < pl.col("needed"), pl.col("needed") <= pl.col("before") + pl.col("rows"))
            .with_columns((pl.col(low) + pl.col("bin") * (self.width / BINS)).alias(low), needed=pl.col("needed") - pl.col("before"))
        )
        return _Box(self.keys, last_bins.select(self.classes.columns), self.width / BINS, int(last_bins["rows"].sum()))


def _with_hash_key(rows: LazyFrameT) -> LazyFrameT:
    """Add a number in [0, 1), computed from the first digits of `image_hash`, that is larger for a smaller hash."""
    return with_hash_number(rows, _HASH, _HASH_DIGITS).with_columns((1 - (nw.col(_HASH) + 1) / 16**_HASH_DIGITS).alias(_HASH))
