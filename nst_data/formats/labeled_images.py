"""The rows of a generation or an edition one by one, each with its image."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError, UsageError
from nst_data.inspection.row_images import Images, PoolImages, images_of
from nst_data.store.store import Store, Version
from nst_data.tables.label_tables import TABLES, check_classes, damage_is_named
from nst_data.tables.schema import soft_label_columns
from nst_data.tables.shards import table_files

_ROWS_AT_ONCE = 1_024
_COLUMNS = ["id", "key", "image_hash", "label", "confidence"]


@dataclass(frozen=True, slots=True)
class LabeledRow:
    """An image and its label. `probs` has shape (classes,), float32: what a top-k label leaves is even over the other classes."""

    number: int  # of the row in its version
    id: int  # of the image in the pool
    key: str
    image_hash: str
    label: int
    class_name: str
    confidence: float
    probs: NDArray[np.float32]


@dataclass(frozen=True)
class LabeledImages:
    """A version's rows, and where their images are."""

    store: Store
    version: Version
    pool: str | None
    with_images: bool

    @cached_property
    def _images(self) -> Images:
        return images_of(self.store, self.version, self.pool, wait_seconds=None)

    @cached_property
    def _files(self) -> list[Path]:
        with damage_is_named(self.version.ref):
            return table_files(self.version.folder, TABLES[self.version.manifest.kind])

    @cached_property
    def count(self) -> int:
        """How many images there are; those that could not be read are none."""
        with damage_is_named(self.version.ref):
            return sum(pq.read_metadata(file).num_rows for file in self._files)

    def read(self, row: LabeledRow) -> bytes:
        """The encoded bytes of a row's image. Raises NstError where it is not there, or is another than was labeled."""
        try:
            return self._images.read(row.number, row.id, row.key, row.image_hash)
        except OSError as error:
            raise NstError(f"{self.version.ref}: {row.key!r} cannot be read ({error}); restore it and run the same command again") from None

    def file_of(self, row: LabeledRow) -> Path:
        """The image's own file. Raises UsageError where it lies in a tar file, in a table or on the Hub."""
        if not isinstance(self._images, PoolImages) or not self._pool_files:
            raise UsageError(f"`link`: the images of {self.version.ref} are not single files on this machine; remove `link`")
        return Path(self._pool_files[self._images.place_of(row.id, row.key, row.image_hash)])

    @cached_property
    def _pool_files(self) -> list[str]:
        """The file of each image of the pool; empty where they lie in others."""
        source = self._images.source() if isinstance(self._images, PoolImages) else None
        return list(source.files()) if source is not None and source.rows_per_file == 1 else []

    def rows(self) -> Iterator[LabeledRow]:
        """All of them, in the order of the version. Raises NstError where its table is damaged."""
        names, number = self.version.manifest.class_names, 0
        with damage_is_named(self.version.ref):
            for file in self._files:
                with pq.ParquetFile(file) as parquet:
                    columns = [*_COLUMNS, *soft_label_columns(parquet.schema_arrow)]
                    for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=columns):
                        check_classes(pl.Series(batch["label"]), names, self.version.ref)
                        probs = _dense(batch, len(names))
                        for row, soft in zip(batch.select(_COLUMNS).to_pylist(), probs, strict=True):
                            yield LabeledRow(number, class_name=names[row["label"]], probs=soft, **row)
                            number += 1


def _dense(batch: pa.RecordBatch, classes: int) -> NDArray[np.float32]:
    """Soft labels of shape (rows, classes); what a top-k label leaves is even over the other classes."""
    if "probs" in batch.schema.names:
        return _values(batch["probs"]).reshape(-1, classes)
    top = _values(batch["top_probs"]).reshape(len(batch), -1)
    rest = (1 - top.sum(axis=1, keepdims=True)).clip(0) / max(1, classes - top.shape[1])
    dense = np.broadcast_to(rest, (len(batch), classes)).copy()
    np.put_along_axis(dense, batch["top_labels"].flatten().to_numpy().reshape(len(batch), -1), top, axis=1)
    return dense


def _values(column: pa.FixedSizeListArray) -> NDArray[np.float32]:
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32)
