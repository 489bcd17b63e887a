"""The labels of a generation or an edition as one lazy frame."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from nst_data.errors import NstError, UsageError, first_line
from nst_data.parquet_footer import PARQUET_ERRORS
from nst_data.store.store import Version
from nst_data.tables.confidence import count_by_confidence, histogram_from_counts
from nst_data.tables.histogram import Histogram
from nst_data.tables.schema import check_labels
from nst_data.tables.shards import table_files
from nst_data.tables.spark import spark_message

TABLES = {"generation": "pseudo_labels", "edition": "balanced"}


def scan_labels(version: Version) -> pl.LazyFrame:
    """The table of a generation or an edition, with checked columns. Raises UsageError for other kinds, NstError for a damaged table."""
    table = TABLES.get(version.manifest.kind)
    if table is None:
        raise UsageError(f"{version.ref}: expected a generation or an edition, found a {version.manifest.kind}, which has no labels")
    with translate_table_errors(version.ref):
        return check_labels(pl.scan_parquet(table_files(version.folder, table), glob=False), f"{version.ref}: {table}")


def read_errors(folder: Path, ref: str) -> pl.DataFrame:
    """`id`, `key` and `reason` of the images that could not be labeled in the version in `folder`; no rows if it has no such table.

    Raises NstError for a damaged table.
    """
    empty = pl.DataFrame(schema={"id": pl.Int64, "key": pl.String, "reason": pl.String})
    files = sorted((folder / "errors").glob("[!.]*.parquet"))
    with translate_table_errors(ref):
        return pl.read_parquet(files, columns=empty.columns, glob=False) if files else empty


def collect(refs: str, *frames: pl.LazyFrame) -> list[pl.DataFrame]:
    """Compute frames together, streaming. Raises NstError that names `refs` if their tables cannot be read."""
    with translate_table_errors(refs):
        return pl.collect_all(frames, engine="streaming")


def confidence_histograms(refs: str, *labels: pl.LazyFrame) -> list[Histogram]:
    """The confidence histogram of each frame, counted together. Raises NstError as `collect` does."""
    return [histogram_from_counts(counted) for counted in collect(refs, *map(count_by_confidence, labels))]


@contextmanager
def translate_table_errors(refs: str) -> Iterator[None]:
    """Turn errors of reading tables into an NstError that names `refs`."""
    try:
        yield
    except Exception as error:
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EMFILE)):
            raise  # no damage: intermediate files filled the disk, or the system allows too few open files
        if (message := spark_message(error)) is not None:
            if any(phrase in message for phrase in ("Mkdirs failed", "Permission denied")):
                raise NstError(
                    f"{refs}: Spark failed ({message}); its workers must be allowed to write to the store, best as its owner"
                ) from None
            # this machine has already listed the files
            hint = "its workers must see the store under the same path as this machine; if they do, " if "FILE_NOT_EXIST" in message else ""
            raise NstError(f"{refs}: Spark failed ({message}); {hint}`verify()` checks whether the labels have changed") from None
        if not isinstance(error, (pl.exceptions.PolarsError, *PARQUET_ERRORS)):
            raise
        raise NstError(f"{refs}: the labels cannot be read ({first_line(error)}); `verify()` checks whether they have changed") from None


def check_label_range(labels: pl.Series, class_names: Sequence[str], subject: str) -> None:
    """Raise NstError if labels are not indices into the class names."""
    invalid = labels.filter(~labels.is_between(0, len(class_names) - 1))
    if labels.null_count() or len(invalid):
        value = "a missing label" if labels.null_count() else f"label {invalid[0]}"
        raise NstError(
            f"{subject}: expected labels from 0 to {len(class_names) - 1}, found {value}; the table was made or changed elsewhere"
        )
