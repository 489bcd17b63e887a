"""What Polars and Spark do each in their own way for one selection: read, write, compute, number hashes.

A frame says itself which engine it belongs to; everything else is the same Narwhals expression on both.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import narwhals as nw
import polars as pl
from narwhals.typing import LazyFrameT

from nst_data.errors import NstError, UsageError

EngineName = Literal["polars", "spark"]
HASH_DIGITS = 15  # of an image hash: as many as an int64 holds


def scan(files: Sequence[Path], columns: dict[str, Any], engine: EngineName = "polars", master: str | None = None) -> Any:  # noqa: ANN401
    """Some columns of parquet files as a lazy frame of the engine. `master` is Spark's; by default its own setting, else this machine."""
    names = [str(file) for file in files]
    if engine == "polars":
        return pl.scan_parquet(names, glob=False).select(list(columns))
    kinds = {pl.Int64: "BIGINT", pl.String: "STRING", pl.Float32: "FLOAT"}
    # with a schema of these columns alone: Spark refuses a file for its column of float16
    return _spark(master).read.schema(", ".join(f"`{name}` {kinds[kind]}" for name, kind in columns.items())).parquet(*names)


def _spark(master: str | None) -> Any:  # noqa: ANN401 - a SparkSession
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError:
        raise UsageError("--engine spark: expected pyspark, found none; pip install 'nst[spark]', or leave out --engine") from None
    if master is None and (running := SparkSession.getActiveSession()) is not None:
        return running
    builder = SparkSession.builder.appName("nst balance").config("spark.ui.showConsoleProgress", "false")
    try:
        session = (builder.master(master) if master else builder).getOrCreate()
    except PySparkException as error:
        first = str(error).splitlines()[0]
        raise NstError(f"--engine spark: Spark did not start ({first}); it needs Java 17 (JAVA_HOME) and a --master that answers") from None
    session.sparkContext.setLogLevel("ERROR")
    return session


def is_polars(rows: nw.LazyFrame[Any]) -> bool:
    """Whether a frame belongs to Polars rather than to Spark."""
    return bool(rows.implementation.is_polars())


def collected(rows: nw.LazyFrame[Any]) -> pl.DataFrame:
    """A small result, in memory."""
    native = rows.to_native()
    if isinstance(native, pl.LazyFrame):
        return native.collect(engine="streaming")
    frame: pl.DataFrame = rows.collect("polars").to_native()
    return frame


def beside(rows: LazyFrameT, small: pl.DataFrame) -> LazyFrameT:
    """A small table as a lazy frame of the engine of `rows`, to join them with."""
    if is_polars(rows):
        return _wrapped(small.lazy(), rows)
    from pyspark.sql.functions import broadcast

    session = rows.to_native().sparkSession
    return _wrapped(broadcast(session.createDataFrame(small.to_arrow())), rows)


def with_class_values(rows: LazyFrameT, values: pl.DataFrame) -> LazyFrameT:
    """Add columns that depend on `label` alone, a class number from 0. A label that is not in `values` gets null."""
    if not is_polars(rows):
        return rows.join(beside(rows, values), on="label", how="left")
    # looked up by position: half the time of a join
    places = pl.DataFrame({"label": range(max(values["label"].to_list(), default=0) + 1)}, schema={"label": pl.Int64})
    table = places.join(values, on="label", how="left", maintain_order="left").drop("label")
    return _wrapped(rows.to_native().with_columns(pl.lit(column).gather("label", null_on_oob=True) for column in table), rows)


def kept(rows: LazyFrameT, folder: Path) -> LazyFrameT:
    """The rows computed once, as parquet files in `folder`."""
    native = rows.to_native()
    if is_polars(rows):
        folder.mkdir(parents=True)
        native.sink_parquet(folder / "part-0.parquet", compression="lz4", engine="streaming")
        return _wrapped(pl.scan_parquet(folder / "part-0.parquet"), rows)
    native.write.parquet(str(folder))
    return _wrapped(native.sparkSession.read.schema(native.schema).parquet(str(folder)), rows)


def with_hash_number(rows: LazyFrameT, name: str, digits: int = HASH_DIGITS) -> LazyFrameT:
    """Add the first hexadecimal digits of `image_hash` as an int64."""
    if is_polars(rows):
        return _wrapped(rows.to_native().with_columns(pl.col("image_hash").str.slice(0, digits).str.to_integer(base=16).alias(name)), rows)
    from pyspark.sql import functions as sql

    return _wrapped(rows.to_native().withColumn(name, sql.conv(sql.substring("image_hash", 1, digits), 16, 10).cast("bigint")), rows)


def may_repeat(rows: LazyFrameT) -> LazyFrameT:
    """The rows whose `image_hash` may occur more than once, and few others: all that a search for duplicates needs to group.

    Polars groups in memory, where 300 million strings take ten times the room of as many numbers. Spark spreads them as they are.
    """
    if not is_polars(rows):
        return rows
    numbered = with_hash_number(rows, "nst_number")
    numbers = collected(numbered.select("nst_number"))["nst_number"].sort()
    repeated = numbers.filter(numbers == numbers.shift(1)).unique().to_frame().lazy()
    return _wrapped(numbered.to_native().join(repeated, on="nst_number", how="semi").drop("nst_number"), rows)


def _wrapped(native: Any, like: LazyFrameT) -> LazyFrameT:  # noqa: ANN401 - the frame of an engine
    return cast("LazyFrameT", nw.from_native(native))
