"""Where the first N rows of each class end, exactly, without sorting all rows.

Counting rows by class and bin of their value says in which bin a class's N-th row lies. That bin is counted again in finer bins until
few enough rows are left to sort. Each count is one streaming pass; nothing that grows with the rows stays in memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import narwhals as nw
import polars as pl
from narwhals.typing import LazyFrameT

from nst_data.tables.engines import collected, count_numbers, with_class_values, with_hash_number

BINS = 512  # counts by class and bin stay in the processor's cache
TIES = ("image_hash", "id")
_RANKED_ROWS = 2**23  # as many are sorted in memory
_POINT = BINS**-6.0  # 2**-54: two float32 above 2**-31 are further apart
_HASH_DIGITS = 7
_NONE = 2.0  # a cutoff that no value reaches


def bin_of(value: nw.Expr) -> nw.Expr:
    """The bin, from 0 to BINS, of a value in [0, 1]; exact, as BINS is a power of two. 1 has a bin of its own."""
    return (value * BINS).cast(nw.Int32)


def count_bins(rows: LazyFrameT, number: nw.Expr, *columns: str) -> pl.DataFrame:
    """How many `rows` there are by `label` and `bin`, a number from 0 to BINS, and by other columns."""
    both = nw.col("label") * (BINS + 1) + number  # one number is counted faster than two
    if columns:
        counted = collected(rows.group_by(both.alias("number"), *columns).agg(rows=nw.len())).cast({"number": pl.Int64, "rows": pl.Int64})
    else:
        counted = count_numbers(rows, both)
    return counted.select(*columns, "rows", label=pl.col("number") // (BINS + 1), bin=pl.col("number") % (BINS + 1))


def cutoffs(
    rows: LazyFrameT, by: str, quotas: int | Mapping[int, int], ties: Sequence[str] = TIES, counted: pl.DataFrame | None = None
) -> pl.DataFrame:
    """The last of the first `quotas` rows of each class: its `label`, `by` and `ties`, as far as a class has more rows than that.

    Rows are in order of `by` (in [0, 1], the largest first), then of `ties`, the smallest first, no two rows equal in all.
    `counted` is the number of `rows` by `label` and `bin` (`bin_of`), where it is known.
    """
    if counted is None:
        counted = count_bins(rows, bin_of(nw.col(by)))
    if isinstance(quotas, int):
        quotas = dict.fromkeys(counted["label"].unique(), quotas)
    wanted = pl.DataFrame({"label": list(quotas), "needed": list(quotas.values())}, schema={"label": pl.Int64, "needed": pl.Int64})
    found = counted.group_by("label").agg(pl.col("rows").sum())
    crowded = found.join(wanted, on="label").filter(pl.col("rows") > pl.col("needed"))
    none = crowded.filter(pl.col("needed") == 0).select("label", pl.lit(_NONE).alias(by), *(_least(name) for name in ties))
    box = _Box.around(by, crowded.filter(pl.col("needed") > 0).select("label", "needed")).narrowed(counted)
    if not box.rows:
        return none
    box = _small_enough(box, rows)
    if box.rows > _RANKED_ROWS and ties[0] == "image_hash":  # such as labels that are all equally sure
        box = _small_enough(box.with_hash(), rows)
    found = collected(box.inside(rows).select("label", by, *ties))
    if not box.is_a_point:  # once more in memory: a bin of a bin is sorted in no time
        box = box.narrowed(box.count(nw.from_native(found.lazy())))
        found = collected(box.inside(nw.from_native(found.lazy())).select("label", by, *ties))
    last = _last_needed(found, box, by, ties)
    return pl.concat([last, none.cast({by: last.schema[by]})])


def _small_enough(box: "_Box", rows: LazyFrameT) -> "_Box":
    while box.rows > _RANKED_ROWS and not box.is_a_point:
        box = box.narrowed(box.count(rows))
    return box


def _least(name: str) -> pl.Expr:
    return (pl.lit("") if name == "image_hash" else pl.lit(0, pl.Int64)).alias(name)


def _last_needed(found: pl.DataFrame, box: "_Box", by: str, ties: Sequence[str]) -> pl.DataFrame:
    ranked = found.sort(by, *ties, descending=[True, *(False for _ in ties)]).with_columns(rank=pl.int_range(1, pl.len() + 1).over("label"))
    at = ranked.join(box.classes.select("label", "needed"), on="label").filter(pl.col("rank") == pl.col("needed"))
    return at.select("label", by, *ties)


@dataclass(frozen=True)
class _Box:
    """For each class the interval of values that its last row lies in, and how many rows it still needs from there.

    `classes` has `label`, `needed` and for each of `keys` the interval's lower end, in [0, 1]. The interval of the last key is
    `width` wide, those of the keys before are single values. `rows` are all in the intervals.
    """

    keys: tuple[str, ...]
    classes: pl.DataFrame
    width: float
    rows: int

    @classmethod
    def around(cls, by: str, needed: pl.DataFrame) -> "_Box":
        """All values."""
        return cls((by,), needed.with_columns(pl.lit(0.0).alias(f"{by}_low")), 1.0, 0)

    @property
    def is_a_point(self) -> bool:
        return bool(self.width <= _POINT)

    def with_hash(self) -> "_Box":
        """Narrow by hash from here on, the smallest first."""
        return _Box((*self.keys, "nst_hash"), self.classes.with_columns(nst_hash_low=pl.lit(0.0)), 1.0, self.rows)

    def inside(self, rows: LazyFrameT) -> LazyFrameT:
        """The rows in the intervals, with the columns of `classes`."""
        if "nst_hash" in self.keys:
            rows = with_hash_number(rows, "nst_hash", _HASH_DIGITS)
            rows = rows.with_columns(nst_hash=1 - (nw.col("nst_hash") + 1) / 16**_HASH_DIGITS)
        inside = with_class_values(rows, self.classes)
        for key in self.keys:
            above = nw.col(key).cast(nw.Float64) - nw.col(f"{key}_low")  # exact, where `low` + 2**-54 would be rounded to `low`
            inside = inside.filter((above >= 0) & (above < (self.width if key == self.keys[-1] else _POINT)))
        return inside

    def count(self, rows: LazyFrameT) -> pl.DataFrame:
        """The rows in the intervals by `label` and `bin`, in each of which there are BINS."""
        key = self.keys[-1]
        place = (nw.col(key).cast(nw.Float64) - nw.col(f"{key}_low")) / self.width
        return count_bins(self.inside(rows), bin_of(place))

    def narrowed(self, counted: pl.DataFrame) -> "_Box":
        """The bins that hold the last rows."""
        low = f"{self.keys[-1]}_low"
        before = pl.col("rows").cum_sum().over("label") - pl.col("rows")
        found = (
            counted.join(self.classes, on="label")
            .sort("bin", descending=True)
            .with_columns(before=before)
            .filter(pl.col("before") < pl.col("needed"), pl.col("needed") <= pl.col("before") + pl.col("rows"))
            .with_columns((pl.col(low) + pl.col("bin") * (self.width / BINS)).alias(low), needed=pl.col("needed") - pl.col("before"))
        )
        return _Box(self.keys, found.select(self.classes.columns), self.width / BINS, int(found["rows"].sum()))


def is_past(by: str, ties: Sequence[str] = TIES) -> nw.Expr:
    """Whether a row that `beside_cutoffs` joined comes after its class's last."""
    cut = [nw.col(f"nst_{name}_cut") for name in (by, *ties)]
    past = nw.col(ties[-1]) > cut[-1]
    for name, at in list(zip(ties, cut[1:], strict=True))[-2::-1]:
        past = (nw.col(name) > at) | ((nw.col(name) == at) & past)
    value = nw.col(by)  # of the cutoff's type
    return ((value < cut[0]) | ((value == cut[0]) & past)).fill_null(value=False)


def beside_cutoffs(rows: LazyFrameT, cuts: pl.DataFrame) -> LazyFrameT:
    """Each row with its class's cutoff in columns `nst_..._cut`, null for a class that has none."""
    named = cuts.rename({name: f"nst_{name}_cut" for name in cuts.columns if name != "label"})
    return with_class_values(rows, named)


def without_cutoffs(rows: LazyFrameT) -> LazyFrameT:
    """Drop the columns that `beside_cutoffs` added."""
    return rows.drop([name for name in rows.collect_schema().names() if name.startswith("nst_") and name.endswith("_cut")])
