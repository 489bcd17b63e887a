"""True labels from a labeled source that has some of the images, joined to labels by key, by content, or row by row."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError, first_line
from nst_data.images import image_hash
from nst_data.progress import Progress
from nst_data.sources import Source, labels_in, match_classes, open_source
from nst_data.sources.cells import holds_images
from nst_data.sources.features import feature_names
from nst_data.sources.hashing import image_hashes
from nst_data.sources.labels import ClassNames, class_values, label_column, labels_of, names_origin, read_class_names, rename_classes
from nst_data.sources.patterns import is_pattern, matching_files
from nst_data.store.manifest import GenerationManifest
from nst_data.store.parent import parent_of
from nst_data.store.store import Store, Version
from nst_data.tables.label_tables import collect, scan_labels
from nst_data.tables.review_table import read_review

_SAMPLE_ROWS = 32


@dataclass(frozen=True)
class Truth:
    """`table` has the column `join_column` (`key`, `image_hash` or `id`, unique) and `truth`, an index into the class names of the labels.

    `rows` counts the rows of the source. The table excludes `ambiguous` ones, whose key or bytes occur with several classes, and
    `unreadable` ones.
    """

    location: str
    join_column: str
    table: pl.DataFrame
    rows: int
    ambiguous: int = 0
    unreadable: int = 0


def read_truth(
    location: Source | str,
    version: Version,
    store: Store,
    *,
    class_names: ClassNames | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    progress: Progress | None = None,
) -> Truth:
    """Read the truth about the images of a generation or an edition.

    A source is joined by `key` if all keys of one side occur on the other and the images under them have the same bytes; otherwise by
    `image_hash`, for which its images are read. A parquet table of labels without images is joined by its column `image_hash` or `key`, or
    else row by row with the pool. Raises NstError if that is not possible.
    """
    if isinstance(location, Source):
        return _from_source(location, version, progress or Progress())
    files = [] if image_column else _tables_without_images(location)
    if files:
        return _from_tables(location, files, version, store, class_names, label_column)
    source = open_source(
        location, labeled=True, class_names=class_names, image_column=image_column, indexes=store.indexes, label_column=label_column
    )
    return _from_source(source, version, progress or Progress())


def truth_from_review(review: Version, class_indices: NDArray[np.int64]) -> Truth:
    """People's answers as truth; `class_indices` maps the review's classes to those of the labels."""
    rows = read_review(review).drop_nulls("label")
    table = rows.select("image_hash", truth=pl.Series(class_indices)[rows["label"]])
    return Truth(review.ref, "image_hash", table, table.height)


def _from_source(source: Source, version: Version, progress: Progress) -> Truth:
    classes = match_classes(source.class_names or [], version.manifest.class_names, source.location, subset=True)
    truth = classes[labels_in(source)]
    keyed = pl.DataFrame({"key": [source.key(row) for row in range(len(source))], "row": np.arange(len(source)), "truth": truth})
    if _keys_match(version, source, keyed):
        table, ambiguous = _drop_ambiguous(keyed, "key")
        return Truth(source.location, "key", table, len(source), ambiguous)
    hashes = _hash_images(source, progress)
    table, ambiguous = _drop_ambiguous(pl.DataFrame({"image_hash": hashes, "truth": truth}).drop_nulls(), "image_hash")
    return Truth(source.location, "image_hash", table, len(source), ambiguous, hashes.null_count())


def _from_tables(
    location: str, files: list[str], version: Version, store: Store, class_names: ClassNames | None, requested_column: str | None
) -> Truth:
    table, column = _read_tables(location, files, requested_column)
    custom_names = read_class_names(class_names) if class_names is not None else []
    labels, names = labels_of(table[column], feature_names(table.schema, column), location, column, len(custom_names))
    if class_names is not None:
        labels, names = rename_classes(labels, names, location, custom_names, names_origin(class_names))
    truth = match_classes(names, version.manifest.class_names, location, subset=True)[labels]
    join_column = next((name for name in ("image_hash", "key") if name in table.column_names), "id")
    if join_column == "id":
        _check_row_count(len(labels), version, store, location)
    values = np.arange(len(labels)) if join_column == "id" else table[join_column].cast(pa.string())
    joined, ambiguous = _drop_ambiguous(pl.DataFrame({join_column: values, "truth": truth}), join_column)
    return Truth(location, join_column, joined, len(labels), ambiguous)


def _drop_ambiguous(rows: pl.DataFrame, join_column: str) -> tuple[pl.DataFrame, int]:
    """Deduplicate by column `join_column`, and count the rows whose value has several classes, which are dropped."""
    grouped = rows.group_by(join_column).agg(pl.col("truth").first(), classes=pl.col("truth").n_unique(), rows=pl.len())
    several = pl.col("classes") > 1
    return grouped.filter(~several).select(join_column, "truth"), int(grouped.filter(several)["rows"].sum())


def _keys_match(version: Version, source: Source, keyed: pl.DataFrame) -> bool:
    """Whether all keys of one side occur on the other and, in a sample, stand for the same bytes."""
    labels = scan_labels(version)
    joined = labels.select("key", "image_hash").join(keyed.lazy().unique("key").select("key", "row"), on="key")
    matches, sample, rows = collect(
        version.ref,
        joined.select(pl.len()),
        joined.bottom_k(_SAMPLE_ROWS, by=pl.col("row").hash(seed=0)).select("row", "image_hash"),
        labels.select(pl.len()),
    )
    if matches.item() == 0 or matches.item() not in (keyed["key"].n_unique(), rows.item()):
        return False
    expected = dict(sample.sort("row").iter_rows())
    for row in source.rows(np.array(list(expected), dtype=np.int64)):
        with suppress(OSError, NstError):  # an unreadable image does not count as different
            if image_hash(row.read()) != expected[row.id]:
                return False
    return True


def _hash_images(source: Source, progress: Progress) -> pl.Series:
    """The `image_hash` of each row, null if it cannot be read."""
    hashes: list[str | None] = [None] * len(source)
    with progress.task(f"read {source.location}", len(source), "images") as task:
        for row, hashed in image_hashes(source.rows(range(len(source)))):
            hashes[row.id] = hashed or None
            task.advance(1)
    return pl.Series(hashes, dtype=pl.String)


def _tables_without_images(location: str) -> list[str]:
    """The parquet files that a path or a pattern names if they contain no images, else an empty list."""
    path = Path(location).absolute()
    files = [str(path)] if path.is_file() else matching_files(location) if not path.exists() and is_pattern(location) else []
    if not files or any(Path(file).suffix.lower() != ".parquet" for file in files):
        return []
    with suppress(pa.ArrowException, OSError):  # `open_source` reports damaged files
        if not any(holds_images(field.type) for field in pq.read_schema(files[0])):
            return sorted(files)
    return []


def _read_tables(location: str, files: list[str], requested_column: str | None) -> tuple[pa.Table, str]:
    """Read the label column and possible join columns of all files, and return the name of the label column."""
    try:
        schemas = [pq.read_schema(file) for file in files]
        label = label_column(schemas[0], location, requested_column)
        if any(feature_names(schema, label) != feature_names(schemas[0], label) for schema in schemas):
            raise NstError(f"{location}: expected one set of classes in all files, found others than in {files[0]}")
        columns = [name for name in ("image_hash", "key") if name in schemas[0].names and name != label]
        tables = []
        for file in files:
            table = pq.read_table(file, columns=[label, *columns], partitioning=None)
            values = class_values(table[label], file, label)
            tables.append(table.set_column(table.column_names.index(label), label, values))
        return pa.concat_tables(tables), label
    except (pa.ArrowException, OSError) as error:
        raise NstError(f"{location}: expected parquet files of one schema, found {first_line(error)}") from None


def _check_row_count(rows: int, version: Version, store: Store, location: str) -> None:
    """Raises UsageError unless labels without images have exactly one row per row of the pool (or more, if labeling had a limit)."""
    remedy = "give the labeled images, or labels with a column `key` or `image_hash`"
    generation = _find_labeling(version, store)
    if generation is None:
        raise UsageError(
            f"{location}: has labels without images, and the generation that {version.ref} was drawn from is not in the store "
            f"to say how many rows their pool has; {remedy}"
        )
    pool, is_limited = generation.counts.pool, generation.request.limit is not None
    if rows < pool or (rows > pool and not is_limited):
        expected = f"at least {pool:,}" if is_limited else f"{pool:,}"
        raise UsageError(f"{location}: expected {expected} labels, one for each row of the pool of {version.ref}, found {rows:,}; {remedy}")


def _find_labeling(version: Version, store: Store) -> GenerationManifest | None:
    """The generation that a version derives from, if it labels the same pool; None if it does not, or is not in the store."""
    pool, labels = version.manifest.request.inputs.pool, version
    while not isinstance(manifest := labels.manifest, GenerationManifest):
        if (parent := parent_of(labels, store)) is None:
            return None
        labels = parent
    return manifest if pool is not None and manifest.request.inputs.pool.digest == pool.digest else None
