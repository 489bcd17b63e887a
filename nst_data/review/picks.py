"""Images that a person should look at, as a list in a file and as copies in a folder."""

import csv
import io
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError
from nst_data.images import image_hash, image_suffix
from nst_data.progress import Progress
from nst_data.review.distinct_images import DistinctImages, image_number
from nst_data.review.queues import as_parquet
from nst_data.safe_names import escape_formula
from nst_data.sources import Source
from nst_data.store.files import atomic_write, list_names, overwrite_error
from nst_data.store.version import Version
from nst_data.tables.label_tables import collect, scan_labels


@dataclass(frozen=True)
class Picks:
    """`rows` has the columns `queues.PICK_COLUMNS`, with the image to look at first in the first row.

    They were picked from `images` distinct ones, excluding those already `answered` and those `not_found` in the pool. `estimated_errors`
    is an upper estimate of the number of wrong labels in a labeled set, if one was made; the probe's mistakes count too. `queue` is the
    name under which the picks are kept.
    """

    ref: str
    rows: pl.DataFrame
    images: int
    answered: int = 0
    not_found: int = 0
    estimated_errors: float | None = None
    queue: str | None = None

    def as_json(self) -> list[dict[str, Any]]:
        """The rows as JSON objects."""
        return [{"rank": rank, **row} for rank, row in enumerate(self.rows.to_dicts(), start=1)]


def pick_rows(version: Version, numbers: NDArray[np.uint64], scores: NDArray[np.float32] | None, by: str) -> pl.DataFrame:
    """Rows of picks for image numbers in order; without `scores` the `score` column is null."""
    labels = scan_labels(version).select("id", "image_hash", "key", "label", "confidence", number=image_number(pl.col("image_hash")))
    (chosen,) = collect(version.ref, labels.filter(pl.col("number").is_in(numbers.tolist())))
    ranked = pl.DataFrame({"number": numbers, "rank": np.arange(len(numbers))})
    rows = chosen.sort("id").unique("number", keep="first").join(ranked, on="number").sort("rank")
    confidences = rows["confidence"].to_numpy()
    return to_pick_rows(rows, rows["label"].to_numpy(), confidences, version.manifest.class_names, scores, by, version.ref)


def to_pick_rows(
    rows: pl.DataFrame,
    labels: NDArray[np.int64],
    confidences: NDArray[np.float32],
    class_names: Sequence[str],
    scores: NDArray[np.float32] | None,
    by: str,
    seen_in: str | None = None,
) -> pl.DataFrame:
    """Build `queues.PICK_COLUMNS` for rows with `image_hash` and `key`; `seen_in` is the version they belong to."""
    return rows.select(
        "image_hash",
        "key",
        label=pl.Series([class_names[label] for label in labels], dtype=pl.String),
        confidence=pl.Series(confidences, dtype=pl.Float32).fill_nan(None),
        by=pl.lit(by),
        score=pl.Series([None] * len(rows) if scores is None else scores, dtype=pl.Float32),
        seen_in=pl.lit(seen_in, pl.String),
    )


def suspicion_table(version: Version, images: DistinctImages, suspicion: NDArray[np.float32]) -> pl.DataFrame:
    """`image_hash` and `suspicion` of each image of a version."""
    hashes = scan_labels(version).select("image_hash", number=image_number(pl.col("image_hash")))
    (table,) = collect(version.ref, hashes.unique("number").sort("number"))
    return table.select("image_hash", suspicion=pl.Series(suspicion, dtype=pl.Float32))


def write_pick_list(picks: Picks, path: Path) -> None:
    """Write the picks as CSV, JSONL or parquet, depending on the suffix, with empty `class` and `excluded` columns to fill in.

    Raises UsageError for another suffix, a missing folder, or an existing file that may have been filled in.
    """
    empty = pl.lit(None, dtype=pl.String)
    rows = picks.rows.select("key", "image_hash", "label", "confidence", "by", "score", "seen_in", **{"class": empty, "excluded": empty})
    suffix = check_list_path(path)
    if suffix == ".parquet":
        content = as_parquet(rows)
    elif suffix == ".jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_dicts()).encode()
    else:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows(
            [rows.columns, *([escape_formula(value) if isinstance(value, str) else value for value in row] for row in rows.rows())]
        )
        content = text.getvalue().encode()
    with atomic_write(path) as file:
        file.write(content)


def check_list_path(path: Path) -> str:
    """Return the suffix of a list, which determines its format.

    Raises UsageError if the path cannot be written, or exists and is not a pick list without answers.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".jsonl", ".parquet"):
        raise UsageError(f"{path}: expected a name that ends in .csv, .jsonl or .parquet")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.absolute().parent}; make it first")
    if path.is_dir():
        raise UsageError(f"{path}: expected a file, found a folder")
    if path.exists() and not _is_unanswered_list(path, suffix):
        raise overwrite_error(path)
    return suffix


def _is_unanswered_list(path: Path, suffix: str) -> bool:
    """Whether a file is a pick list that contains no answers."""
    try:
        if suffix == ".csv":
            rows = pl.read_csv(path, infer_schema=False, glob=False)
        else:
            rows = pl.read_parquet(path, glob=False) if suffix == ".parquet" else pl.read_ndjson(path.read_bytes())
    except (OSError, pl.exceptions.PolarsError):
        return False
    return {"class", "excluded"} <= set(rows.columns) and rows.select("class", "excluded").null_count().row(0) == (len(rows), len(rows))


def check_copy_folder(folder: Path) -> None:
    """Raises UsageError if the folder for copies is not empty."""
    if folder.exists() and (not folder.is_dir() or list_names(folder)):
        raise UsageError(f"{folder}: expected an empty folder, or none; choose another `copy_to`")


def copy_images(picks: Picks, source: Source, folder: Path, progress: Progress) -> None:
    """Copy the image files of the picks from their source into a folder, with names that start with their rank.

    Images are found by key or, in another copy of the source, by content.

    Raises NstError if an image cannot be read or its bytes differ from those of the image that was picked.
    """
    check_copy_folder(folder)
    rows = _find_rows(source, picks.rows)
    folder.mkdir(parents=True, exist_ok=True)
    digits = len(str(len(rows)))
    with progress.task(f"copy to {folder}", len(rows), "images") as task:
        for rank, (row, key, hashed) in enumerate(zip(rows.tolist(), picks.rows["key"], picks.rows["image_hash"], strict=True), start=1):
            try:
                content = source.read(row)
            except OSError as error:
                raise NstError(f"{source.location}: {key!r} cannot be read ({error.strerror})") from None
            source.check_content(row, content, hashed)
            with atomic_write(folder / f"{rank:0{digits}}-{_file_name(key, content)}") as file:
                file.write(content)
            task.advance(1)


def _find_rows(source: Source, picks: pl.DataFrame) -> NDArray[np.int64]:
    keys, hashes, rows = picks["key"].to_arrow(), picks["image_hash"].to_arrow(), np.empty(len(picks), np.int64)
    with suppress(NstError):
        rows = source.rows_of(picks["key"].to_list())
        with suppress(OSError):
            if image_hash(source.read(int(rows[0]))) == picks["image_hash"][0]:
                return rows
    source.find_by_hash(lambda: [hashes], lambda: [keys], rows)
    return rows


def _file_name(key: str, content: bytes) -> str:
    """A file name of letters, digits, dots and dashes from the end of a key, with a suffix that matches the actual image format."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", re.split(r"[/:\\]", key)[-1]).strip(".-")[-80:]
    suffix = image_suffix(content) or ".img"
    stem = re.sub(rf"({re.escape(suffix)}|\.jpeg)$", "", name, flags=re.IGNORECASE)
    return f"{stem or 'image'}{suffix}"
