"""The distinct images of a generation or an edition, in arrays of a few bytes per row, and their soft labels in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.sources import match_classes
from nst_data.store.version import Version
from nst_data.tables.label_tables import TABLES, check_label_range, collect, scan_labels, translate_table_errors
from nst_data.tables.schema import soft_label_columns
from nst_data.tables.shards import table_files
from nst_data.tables.soft_labels import dense_probs

SoftLabels = Iterator[tuple[NDArray[np.uint64], NDArray[np.float32]]]  # image numbers, and probabilities of shape (images, classes)
_NUMBERS_AT_ONCE = 2**24  # probabilities in memory at once: 64 MB


def image_number(image_hash: pl.Expr) -> pl.Expr:
    """The first 64 bits of an `image_hash`, enough to distinguish the images of a pool."""
    return image_hash.str.head(16).str.to_integer(base=16, dtype=pl.UInt64)


def image_numbers(image_hashes: pa.Array | pa.ChunkedArray | Sequence[str]) -> NDArray[np.uint64]:
    """The `image_number` of each hash in a column, shape (rows,)."""
    hashes = pl.Series("image_hash", image_hashes, dtype=pl.String)
    return hashes.to_frame().select(image_number(pl.col("image_hash"))).to_series().to_numpy()


@dataclass(frozen=True)
class DistinctImages:
    """Each image once, sorted by number; among rows with the same bytes the first counts. All arrays have shape (images,)."""

    numbers: NDArray[np.uint64]
    labels: NDArray[np.int64]
    confidences: NDArray[np.float32]

    @classmethod
    def from_version(cls, version: Version, class_names: Sequence[str] | None = None) -> "DistinctImages":
        """Read the images of a version; labels index into `class_names`, by default the version's own.

        Raises UsageError for a teacher, NstError if a table is damaged or the classes differ.
        """
        rows = scan_labels(version).select("id", "label", "confidence", number=image_number(pl.col("image_hash")))
        distinct = rows.group_by("number").agg(pl.col("label", "confidence").min_by("id")).sort("number")
        (table,) = collect(version.ref, distinct)
        check_label_range(table["label"], version.manifest.class_names, version.ref)
        labels = _class_indices(version, class_names)[table["label"].to_numpy()]
        return cls(table["number"].to_numpy(), labels, table["confidence"].to_numpy())

    def __len__(self) -> int:
        return len(self.numbers)

    def positions_of(self, numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The position of each number in `numbers` here, -1 if it is absent."""
        positions = np.minimum(np.searchsorted(self.numbers, numbers), max(0, len(self) - 1))
        is_present = self.numbers[positions] == numbers if len(self) else np.zeros(len(numbers), bool)
        return np.where(is_present, positions, -1)


def iter_soft_labels(version: Version, class_names: Sequence[str] | None = None) -> SoftLabels:
    """Yield the soft labels of all rows of a table, in order, with classes ordered as in `DistinctImages.from_version`.

    The remaining probability of a top-k label is spread evenly over the other classes.
    """
    classes, class_order = len(version.manifest.class_names), np.argsort(_class_indices(version, class_names))
    rows = max(1, _NUMBERS_AT_ONCE // classes)
    with translate_table_errors(version.ref):
        for path in table_files(version.folder, TABLES[version.manifest.kind]):
            with pq.ParquetFile(path) as file:
                columns = soft_label_columns(file.schema_arrow)
                for batch in file.iter_batches(rows, columns=["image_hash", *columns]):
                    yield image_numbers(batch["image_hash"]), _normalize(dense_probs(batch, classes))[:, class_order]


def _class_indices(version: Version, class_names: Sequence[str] | None) -> NDArray[np.int64]:
    """The position in `class_names` of each class of a version."""
    names = version.manifest.class_names
    return np.arange(len(names)) if class_names is None else match_classes(names, class_names, version.ref)


def _normalize(probs: NDArray[np.float32]) -> NDArray[np.float32]:
    normalized: NDArray[np.float32] = probs / np.maximum(probs.sum(axis=1, keepdims=True), np.float32(1e-9))
    return normalized
