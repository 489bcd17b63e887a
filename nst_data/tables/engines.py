"""What Polars and Spark do differently for the same selection: read, write, compute, turn hashes into numbers.

A frame knows which engine it belongs to; everything else is the same Narwhals expression on both.
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
_PLACES, _PLACES_OF_ONE = 2**30, 64  # `id`s are row numbers: a lookup column has a slot for each, unless it would be mostly empty


def scan(files: Sequence[Path], columns: dict[str, Any], engine: EngineName = "polars", master: str | None = None) -> Any:  # noqa: ANN401
    """Columns of parquet files as a lazy frame of the engine. `master` is Spark's; by default its own setting, else this machine."""
    if engine == "polars":
        return pl.scan_parquet([str(file) for file in files], glob=False).select(list(columns))
    sql_types = {pl.Int64: "BIGINT", pl.String: "STRING", pl.Float32: "FLOAT"}
    # with a schema of just these columns: Spark rejects a file because of a float16 column
    schema = ", ".join(f"`{name}` {sql_types[dtype]}" for name, dtype in columns.items())
    return spark_session(master).read.schema(schema).parquet(*(_spark_path(file) for file in files))


def _spark_path(path: Path) -> str:
    """The path as Spark takes it literally: not as a glob, not on a cluster's default file system, not relative to Java's folder."""
    return "file://" + re.sub(r"[\\\[\]{}*?]", r"\\\g<0>", str(path.absolute()))


def is_polars(rows: nw.LazyFrame[Any]) -> bool:
    """Whether a frame belongs to Polars rather than to Spark."""
    return bool(rows.implementation.is_polars())


def collect_small(rows: nw.LazyFrame[Any]) -> pl.DataFrame:
    """Collect a small result into memory."""
    native = rows.to_native()
    if isinstance(native, pl.LazyFrame):
        # text is copied: as read, a few rows would keep everything that was read with them in memory
        text_columns = [
            pl.concat_str(name, pl.lit("")).alias(name) for name, dtype in native.collect_schema().items() if dtype == pl.String
        ]
        return native.with_columns(text_columns).collect(engine="streaming")
    frame: pl.DataFrame = rows.collect("polars").to_native()
    return frame


def count_numbers(rows: LazyFrameT, number: nw.Expr, on_batch: Callable[[pl.DataFrame], None] | None = None) -> pl.DataFrame:
    """Count `rows` by `number`, an integer; the columns `number` and `rows` are int64, and nulls are not counted.

    `on_batch`, for Polars only, is called with the `number` of all rows, in batches and in order.
    """
    numbered = rows.select(number=number.cast(nw.Int64))
    if is_polars(rows):
        counts = _Counts()

        def add(batch: pl.DataFrame) -> None:
            counts.add(batch)
            if on_batch:
                on_batch(batch)

        numbered.to_native().sink_batches(add, chunk_size=BATCH_ROWS, maintain_order=on_batch is not None, engine="streaming")
        return counts.table()
    counted = collect_small(numbered.filter(~nw.col("number").is_null()).group_by("number").agg(rows=nw.len()))
    return counted.select("number", pl.col("rows").cast(pl.Int64))


class _Counts:
    """Counts small numbers by position: a third of the time of a `group_by` with hundreds of thousands of groups."""

    def __init__(self) -> None:
        self._small = np.zeros(0, np.int64)
        self._others = pl.DataFrame(schema={"number": pl.Int64, "rows": pl.Int64})

    def add(self, batch: pl.DataFrame) -> None:
        """Count a batch."""
        numbers = batch["number"].drop_nulls().to_numpy()
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < _COUNTED_PLACES:
            is_small = (numbers >= 0) & (numbers < _COUNTED_PLACES)
            large_counts = pl.DataFrame({"number": numbers[~is_small]}).group_by("number").agg(pl.len().cast(pl.Int64).alias("rows"))
            self._others = pl.concat([self._others, large_counts]).group_by("number").agg(pl.col("rows").sum())
            numbers = numbers[is_small]
        counts = np.bincount(numbers, minlength=len(self._small))
        counts[: len(self._small)] += self._small
        self._small = counts

    def table(self) -> pl.DataFrame:
        """The numbers that occur, with their counts."""
        numbers = np.flatnonzero(self._small)
        return pl.concat([pl.DataFrame({"number": numbers, "rows": self._small[numbers]}, schema=self._others.schema), self._others])


def frame_like(rows: LazyFrameT, table: pl.DataFrame) -> LazyFrameT:
    """A small table as a lazy frame of the same engine as `rows`, to join with."""
    if is_polars(rows):
        return _wrapped(table.lazy(), rows)
    from pyspark.sql.functions import broadcast

    session = rows.to_native().sparkSession
    return _wrapped(broadcast(session.createDataFrame(table.to_arrow())), rows)


def rows_with_ids(rows: LazyFrameT, ids: pl.Series) -> LazyFrameT:
    """The rows with these few `id`s."""
    if is_polars(rows):  # a predicate that lets Polars skip parts of a file
        return _wrapped(rows.to_native().filter(pl.col("id").is_in(ids.implode())), rows)
    return rows.join(frame_like(rows, ids.to_frame()), on="id", how="semi")


def with_null_text(rows: LazyFrameT, column: str, texts: Sequence[str]) -> LazyFrameT:
    """Add a column of nulls that may later hold these texts. As an Enum, stored as numbers, they take Polars half the time."""
    return rows.with_columns(nw.lit(None, dtype=nw.Enum(texts) if is_polars(rows) else nw.String()).alias(column))


def with_text_index(rows: LazyFrameT, column: str, texts: Sequence[str], name: str) -> LazyFrameT:
    """Add the index in `texts` of a column's text, null if it has none."""
    if is_polars(rows):
        return _wrapped(rows.to_native().with_columns(pl.col(column).cast(pl.Enum(texts)).to_physical().alias(name)), rows)
    return rows.with_columns(nw.coalesce(*(nw.when(nw.col(column) == text).then(index) for index, text in enumerate(texts))).alias(name))


def with_class_values(rows: LazyFrameT, values: pl.DataFrame) -> LazyFrameT:
    """Add columns that depend only on `label`, a class number from 0. A label that is not in `values` gets null."""
    if not is_polars(rows):
        return rows.join(frame_like(rows, values), on="label", how="left")
    # looked up by position: half the time of a join
    labels = pl.DataFrame({"label": range(max(values["label"].to_list(), default=0) + 1)}, schema={"label": pl.Int64})
    table = labels.join(values, on="label", how="left", maintain_order="left").drop("label")
    return _wrapped(rows.to_native().with_columns(_gather(column, "label") for column in table), rows)


def with_row_values(rows: LazyFrameT, values: LazyFrameT, name: str) -> LazyFrameT:
    """Add the column `name` of `values`, which has true or a nonzero number for some `id`s; other rows get null."""
    return row_value_joiner(values, name)(rows)


def row_value_joiner(values: LazyFrameT, name: str) -> Callable[[LazyFrameT], LazyFrameT]:
    """A function that does to any rows what `with_row_values` does, reading `values` only once."""
    if is_polars(values):
        table = collect_small(values.select("id", name))
        ids = table["id"].to_numpy()
        if ids.min(initial=0) >= 0 and ids.max(initial=0) < max(_PLACES, _PLACES_OF_ONE * len(table)):
            # looked up by position: a join of 300 million rows with 30 million takes ten times as long
            column, value = pl.Series(name, _scatter(ids, table[name].to_numpy())), pl.col(name)
            nonzero = pl.when(value != 0).then(value.cast(table.schema[name]))
            return lambda rows: _wrapped(rows.to_native().with_columns(_gather(column, "id")).with_columns(nonzero), rows)
    return lambda rows: rows.join(values.select("id", name), on="id", how="left")


def _scatter(indices: NDArray[np.int64], numbers: NDArray[np.generic]) -> NDArray[np.generic]:
    """An array with the numbers at their positions and 0 elsewhere, of the smallest dtype that holds them."""
    numbers = numbers.astype(np.int64)
    largest = int(np.abs(numbers).max(initial=0))
    dtype = next(dtype for dtype in (np.int8, np.int16, np.int32, np.int64) if largest <= np.iinfo(dtype).max)
    column = np.zeros(indices.max(initial=-1) + 1, dtype)
    column[indices] = numbers
    return column


def _gather(column: pl.Series, index_column: str) -> pl.Expr:
    """The values at the positions given by another column, null outside."""
    index = pl.when(pl.col(index_column) >= 0).then(pl.col(index_column))  # Polars counts negative indices from the end
    return pl.lit(column).gather(index, null_on_oob=True)


def cache_rows(rows: LazyFrameT, folder: Path) -> LazyFrameT:
    """The rows, computed once and kept as parquet files in `folder`."""
    native = rows.to_native()
    if is_polars(rows):
        folder.mkdir(parents=True)
        native.sink_parquet(folder / "part-0.parquet", compression="lz4", engine="streaming")
        return _wrapped(pl.scan_parquet(folder / "part-0.parquet", glob=False), rows)
    _write_with_spark(native, folder)
    return _wrapped(native.sparkSession.read.schema(native.schema).parquet(_spark_path(folder)), rows)


def _write_with_spark(native: Any, folder: Path) -> None:  # noqa: ANN401 - Spark's frame
    """Write the rows. Raises NstError if the workers' files are not on this machine: Spark itself would read the part that is there."""
    from pyspark.sql import Observation
    from pyspark.sql import functions as sql

    observation = Observation()
    native.observe(observation, sql.count(sql.lit(1)).alias("rows")).write.parquet(f"file://{folder.absolute()}")
    rows, visible = observation.get["rows"], sum(pq.read_metadata(file).num_rows for file in folder.glob("*.parquet"))
    if rows != visible:
        raise NstError(
            f"{folder}: Spark's workers wrote {rows:,} rows, and {visible:,} of them are here; `engine` spark requires a store on a file "
            "system that this machine and all workers share, under the same path"
        )


def cache_sorted_rows(rows: LazyFrameT, folder: Path) -> LazyFrameT:
    """The rows by increasing `id`, computed once and kept as parquet files in `folder`."""
    if not is_polars(rows):
        return cache_rows(rows.sort("id"), folder)
    frame = cache_rows(rows, folder)
    if _is_sorted(frame.to_native()):
        return frame
    table = frame.collect().sort("id")  # labels that are not in the order in which nst writes them
    shutil.rmtree(folder)
    return _wrapped(cache_rows(table.lazy(), folder).to_native(), rows)


def _is_sorted(rows: pl.LazyFrame) -> bool:
    last_id, is_in_order = -1, True

    def check_batch(batch: pl.DataFrame) -> bool:
        nonlocal last_id, is_in_order
        ids = batch["id"].to_numpy()
        is_in_order = is_in_order and bool((np.diff(ids, prepend=last_id) > 0).all())
        last_id = ids[-1] if len(ids) else last_id
        return not is_in_order  # true stops the sink

    rows.select("id").sink_batches(check_batch, chunk_size=BATCH_ROWS, maintain_order=True, engine="streaming")
    return is_in_order


def with_hash_number(rows: LazyFrameT, name: str, digits: int) -> LazyFrameT:
    """Add the number made of the first `digits` hexadecimal digits of `image_hash`, as an int64."""
    if is_polars(rows):
        return _wrapped(rows.to_native().with_columns(pl.col("image_hash").str.slice(0, digits).str.to_integer(base=16).alias(name)), rows)
    from pyspark.sql import functions as sql

    return _wrapped(rows.to_native().withColumn(name, sql.conv(sql.substring("image_hash", 1, digits), 16, 10).cast("bigint")), rows)


def _wrapped(native: Any, like: LazyFrameT) -> LazyFrameT:  # noqa: ANN401 - the frame of an engine
    return cast("LazyFrameT", nw.from_native(native))
