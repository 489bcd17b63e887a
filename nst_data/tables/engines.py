"""What Polars and Spark do each in their own way for one selection: read, write, compute, number hashes.

A frame says itself which engine it belongs to; everything else is the same Narwhals expression on both.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import narwhals as nw
import numpy as np
import polars as pl
import pyarrow.parquet as pq
from narwhals.typing import LazyFrameT
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.tables.spark import spark_session

EngineName = Literal["polars", "spark"]
BATCH_ROWS, _COUNTED_PLACES = 2**20, 2**24
_PLACES, _PLACES_OF_ONE = 2**30, 64  # `id`s are row numbers: a column has a place for each, unless few rows would fill it


def scan(files: Sequence[Path], columns: dict[str, Any], engine: EngineName = "polars", master: str | None = None) -> Any:  # noqa: ANN401
    """Some columns of parquet files as a lazy frame of the engine. `master` is Spark's; by default its own setting, else this machine."""
    if engine == "polars":
        return pl.scan_parquet([str(file) for file in files], glob=False).select(list(columns))
    kinds = {pl.Int64: "BIGINT", pl.String: "STRING", pl.Float32: "FLOAT"}
    # with a schema of these columns alone: Spark refuses a file for its column of float16
    schema = ", ".join(f"`{name}` {kinds[kind]}" for name, kind in columns.items())
    return spark_session(master).read.schema(schema).parquet(*(_spark_path(file) for file in files))


def _spark_path(path: Path) -> str:
    """What Spark reads as this very path: not as a pattern, not on a cluster's own file system, not from the folder where Java began."""
    return "file://" + re.sub(r"[\\\[\]{}*?]", r"\\\g<0>", str(path.absolute()))


def is_polars(rows: nw.LazyFrame[Any]) -> bool:
    """Whether a frame belongs to Polars rather than to Spark."""
    return bool(rows.implementation.is_polars())


def collected(rows: nw.LazyFrame[Any]) -> pl.DataFrame:
    """A small result, in memory."""
    native = rows.to_native()
    if isinstance(native, pl.LazyFrame):
        # text is written anew: as it was read, a few rows would keep all that was read with them in memory
        text = [pl.concat_str(name, pl.lit("")).alias(name) for name, kind in native.collect_schema().items() if kind == pl.String]
        return native.with_columns(text).collect(engine="streaming")
    frame: pl.DataFrame = rows.collect("polars").to_native()
    return frame


def count_numbers(rows: LazyFrameT, number: nw.Expr, keep: Callable[[pl.DataFrame], None] | None = None) -> pl.DataFrame:
    """How many `rows` there are of each `number`, an integer; columns `number` and `rows`, both int64, no row for null.

    `keep`, for Polars alone, is given the `number` of all rows, some at a time and in order.
    """
    numbered = rows.select(number=number.cast(nw.Int64))
    if is_polars(rows):
        counts = _Counts()

        def add(batch: pl.DataFrame) -> None:
            counts.add(batch)
            if keep:
                keep(batch)

        numbered.to_native().sink_batches(add, chunk_size=BATCH_ROWS, maintain_order=keep is not None, engine="streaming")
        return counts.table()
    counted = collected(numbered.filter(~nw.col("number").is_null()).group_by("number").agg(rows=nw.len()))
    return counted.select("number", pl.col("rows").cast(pl.Int64))


class _Counts:
    """Counts of small numbers by position: a third of the time of a `group_by` with hundreds of thousands of groups."""

    def __init__(self) -> None:
        self._small = np.zeros(0, np.int64)
        self._others = pl.DataFrame(schema={"number": pl.Int64, "rows": pl.Int64})

    def add(self, batch: pl.DataFrame) -> None:
        """Count some more."""
        numbers = batch["number"].drop_nulls().to_numpy()
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < _COUNTED_PLACES:
            is_small = (numbers >= 0) & (numbers < _COUNTED_PLACES)
            others = pl.DataFrame({"number": numbers[~is_small]}).group_by("number").agg(pl.len().cast(pl.Int64).alias("rows"))
            self._others = pl.concat([self._others, others]).group_by("number").agg(pl.col("rows").sum())
            numbers = numbers[is_small]
        found = np.bincount(numbers, minlength=len(self._small))
        found[: len(self._small)] += self._small
        self._small = found

    def table(self) -> pl.DataFrame:
        """The numbers that there are."""
        there = np.flatnonzero(self._small)
        return pl.concat([pl.DataFrame({"number": there, "rows": self._small[there]}, schema=self._others.schema), self._others])


def beside(rows: LazyFrameT, small: pl.DataFrame) -> LazyFrameT:
    """A small table as a lazy frame of the engine of `rows`, to join them with."""
    if is_polars(rows):
        return _wrapped(small.lazy(), rows)
    from pyspark.sql.functions import broadcast

    session = rows.to_native().sparkSession
    return _wrapped(broadcast(session.createDataFrame(small.to_arrow())), rows)


def rows_at(rows: LazyFrameT, ids: pl.Series) -> LazyFrameT:
    """The rows with these `id`s, which are few."""
    if is_polars(rows):  # an expression by which parts of a file are passed over
        return _wrapped(rows.to_native().filter(pl.col("id").is_in(ids.implode())), rows)
    return rows.join(beside(rows, ids.to_frame()), on="id", how="semi")


def with_no_text(rows: LazyFrameT, column: str, texts: Sequence[str]) -> LazyFrameT:
    """Add a column of nulls that may become these texts. Polars takes half the time where it keeps them as numbers."""
    return rows.with_columns(nw.lit(None, dtype=nw.Enum(texts) if is_polars(rows) else nw.String()).alias(column))


def with_place(rows: LazyFrameT, column: str, texts: Sequence[str], name: str) -> LazyFrameT:
    """Add the place of a column's text among `texts`, null for none."""
    if is_polars(rows):
        return _wrapped(rows.to_native().with_columns(pl.col(column).cast(pl.Enum(texts)).to_physical().alias(name)), rows)
    return rows.with_columns(nw.coalesce(*(nw.when(nw.col(column) == text).then(place) for place, text in enumerate(texts))).alias(name))


def with_class_values(rows: LazyFrameT, values: pl.DataFrame) -> LazyFrameT:
    """Add columns that depend on `label` alone, a class number from 0. A label that is not in `values` gets null."""
    if not is_polars(rows):
        return rows.join(beside(rows, values), on="label", how="left")
    # looked up by position: half the time of a join
    places = pl.DataFrame({"label": range(max(values["label"].to_list(), default=0) + 1)}, schema={"label": pl.Int64})
    table = places.join(values, on="label", how="left", maintain_order="left").drop("label")
    return _wrapped(rows.to_native().with_columns(_at(column, "label") for column in table), rows)


def with_row_values(rows: LazyFrameT, values: LazyFrameT, name: str) -> LazyFrameT:
    """Add the column `name` of `values`, true or a number other than 0 for some `id`s; other rows get null."""
    return row_values(values, name)(rows)


def row_values(values: LazyFrameT, name: str) -> Callable[[LazyFrameT], LazyFrameT]:
    """What does as `with_row_values` to any rows, and reads `values` once."""
    if is_polars(values):
        table = collected(values.select("id", name))
        ids = table["id"].to_numpy()
        if ids.min(initial=0) >= 0 and ids.max(initial=0) < max(_PLACES, _PLACES_OF_ONE * len(table)):
            # looked up by position: a join of 300 million rows with 30 million takes ten times as long
            column, value = pl.Series(name, _placed(ids, table[name].to_numpy())), pl.col(name)
            found = pl.when(value != 0).then(value.cast(table.schema[name]))
            return lambda rows: _wrapped(rows.to_native().with_columns(_at(column, "id")).with_columns(found), rows)
    return lambda rows: rows.join(values.select("id", name), on="id", how="left")


def _placed(places: NDArray[np.int64], numbers: NDArray[np.generic]) -> NDArray[np.generic]:
    """An array with the numbers at their places, 0 at others, as small as they allow."""
    numbers = numbers.astype(np.int64)
    largest = int(np.abs(numbers).max(initial=0))
    kind = next(kind for kind in (np.int8, np.int16, np.int32, np.int64) if largest <= np.iinfo(kind).max)
    column = np.zeros(places.max(initial=-1) + 1, kind)
    column[places] = numbers
    return column


def _at(column: pl.Series, place: str) -> pl.Expr:
    """The values at the places that another column gives, null outside."""
    index = pl.when(pl.col(place) >= 0).then(pl.col(place))  # Polars counts negative ones from the end
    return pl.lit(column).gather(index, null_on_oob=True)


def kept(rows: LazyFrameT, folder: Path) -> LazyFrameT:
    """The rows computed once, as parquet files in `folder`."""
    native = rows.to_native()
    if is_polars(rows):
        folder.mkdir(parents=True)
        native.sink_parquet(folder / "part-0.parquet", compression="lz4", engine="streaming")
        return _wrapped(pl.scan_parquet(folder / "part-0.parquet", glob=False), rows)
    _write_by_spark(native, folder)
    return _wrapped(native.sparkSession.read.schema(native.schema).parquet(_spark_path(folder)), rows)


def _write_by_spark(native: Any, folder: Path) -> None:  # noqa: ANN401 - Spark's frame
    """Raises NstError where the workers' files are not in this machine's folder: Spark itself would read what is there, if only a part."""
    from pyspark.sql import Observation
    from pyspark.sql import functions as sql

    written = Observation()
    native.observe(written, sql.count(sql.lit(1)).alias("rows")).write.parquet(f"file://{folder.absolute()}")
    rows, found = written.get["rows"], sum(pq.read_metadata(file).num_rows for file in folder.glob("*.parquet"))
    if rows != found:
        raise NstError(
            f"{folder}: Spark's workers wrote {rows:,} rows, and {found:,} of them are here; `engine` spark requires a store on a file "
            "system that this machine and all workers share, under the same path"
        )


def kept_in_order(rows: LazyFrameT, folder: Path) -> LazyFrameT:
    """The rows by increasing `id`, computed once, as parquet files in `folder`."""
    if not is_polars(rows):
        return kept(rows.sort("id"), folder)
    found = kept(rows, folder)
    if _is_in_order(found.to_native()):
        return found
    table = found.collect().sort("id")  # labels in another order than nst writes them
    shutil.rmtree(folder)
    return _wrapped(kept(table.lazy(), folder).to_native(), rows)


def _is_in_order(rows: pl.LazyFrame) -> bool:
    last, is_in_order = -1, True

    def look(batch: pl.DataFrame) -> bool:
        nonlocal last, is_in_order
        ids = batch["id"].to_numpy()
        is_in_order = is_in_order and bool((np.diff(ids, prepend=last) > 0).all())
        last = ids[-1] if len(ids) else last
        return not is_in_order  # which ends it

    rows.select("id").sink_batches(look, chunk_size=BATCH_ROWS, maintain_order=True, engine="streaming")
    return is_in_order


def with_hash_number(rows: LazyFrameT, name: str, digits: int) -> LazyFrameT:
    """Add the first hexadecimal digits of `image_hash` as an int64."""
    if is_polars(rows):
        return _wrapped(rows.to_native().with_columns(pl.col("image_hash").str.slice(0, digits).str.to_integer(base=16).alias(name)), rows)
    from pyspark.sql import functions as sql

    return _wrapped(rows.to_native().withColumn(name, sql.conv(sql.substring("image_hash", 1, digits), 16, 10).cast("bigint")), rows)


def _wrapped(native: Any, like: LazyFrameT) -> LazyFrameT:  # noqa: ANN401 - the frame of an engine
    return cast("LazyFrameT", nw.from_native(native))
