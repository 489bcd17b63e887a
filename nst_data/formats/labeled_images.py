"""Iterate over the rows of a generation, an edition or a review, with access to their images."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.corpora import newest_labels
from nst_data.errors import NstError, UsageError
from nst_data.inspection.row_images import EmbeddedImages, ImageReader, PoolImages, open_images
from nst_data.store.store import Store, Version
from nst_data.tables.label_tables import TABLES, check_label_range, collect, scan_labels, translate_table_errors
from nst_data.tables.review_table import read_review
from nst_data.tables.schema import soft_label_columns
from nst_data.tables.shards import table_files
from nst_data.tables.soft_labels import dense_probs

_ROWS_AT_ONCE = 1_024
_COLUMNS = ["id", "key", "image_hash", "label", "confidence"]


@dataclass(frozen=True, slots=True)
class LabeledRow:
    """An image and its label.

    `probs`, if requested, has shape (classes,), float32; the mass missing from a top-k label is spread evenly over other classes.
    """

    number: int  # row number in the version in which the image was labeled
    id: int  # row of the image in the pool; for a review, row in the review
    key: str
    image_hash: str
    label: int
    class_name: str
    confidence: float
    probs: NDArray[np.float32] | None = None
    copies: int | None = None  # only in an edition


def labeled_images(store: Store, version: Version, pool: str | None, with_images: bool) -> "LabeledImages":
    """The labeled images of a generation, an edition or a review, with images from `pool` or from where they were labeled.

    `with_images` says whether images will be read; reading raises NstError or UsageError if they cannot be found.
    """
    kind = ReviewedImages if version.manifest.kind == "review" else LabeledImages
    return kind(store, version, pool, with_images)


@dataclass(frozen=True)
class LabeledImages:
    """The rows of a version, and access to their images."""

    store: Store
    version: Version
    pool: str | None
    with_images: bool

    @cached_property
    def _images(self) -> ImageReader:
        return open_images(self.store, self.version, self.pool, wait_seconds=None)

    @cached_property
    def _files(self) -> list[Path]:
        with translate_table_errors(self.version.ref):
            return table_files(self.version.folder, TABLES[self.version.manifest.kind])

    @cached_property
    def count(self) -> int:
        """The number of labeled images, without those that could not be read."""
        with translate_table_errors(self.version.ref):
            return sum(pq.read_metadata(file).num_rows for file in self._files)

    def read(self, row: LabeledRow) -> bytes:
        """The encoded bytes of a row's image. Raises NstError if it is missing or differs from the labeled one."""
        try:
            return self._images.read(row.number, self._pool_row(row), row.key, row.image_hash)
        except OSError as error:
            raise NstError(f"{self.version.ref}: {row.key!r} cannot be read ({error}); restore it and run the same command again") from None

    def file_of(self, row: LabeledRow) -> Path:
        """The image's file. Raises UsageError if the image is in a tar file, a table or on the Hub."""
        if not isinstance(self._images, PoolImages) or not self._pool_files:
            raise UsageError(f"`link`: the images of {self.version.ref} are not single files on this machine; remove `link`")
        return Path(self._pool_files[self._images.find_row(self._pool_row(row), row.key, row.image_hash)])

    def _pool_row(self, row: LabeledRow) -> int:
        return row.id

    @cached_property
    def _pool_files(self) -> list[str]:
        """The file of each image of the pool; empty if images are not individual files."""
        source = self._images.source() if isinstance(self._images, PoolImages) else None
        return list(source.files()) if source is not None and source.rows_per_file == 1 else []

    def rows(self, with_probs: bool = False) -> Iterator[LabeledRow]:
        """All rows, in the order of the version. Raises NstError if its table is damaged."""
        names, number = self.version.manifest.class_names, 0
        with translate_table_errors(self.version.ref):
            for file in self._files:
                with pq.ParquetFile(file) as parquet:
                    plain = [*_COLUMNS, *(["copies"] if "copies" in parquet.schema_arrow.names else [])]
                    columns = [*plain, *(soft_label_columns(parquet.schema_arrow) if with_probs else ())]
                    for batch in parquet.iter_batches(_ROWS_AT_ONCE, columns=columns):
                        check_label_range(pl.Series(batch["label"]), names, self.version.ref)
                        probs = dense_probs(batch, len(names)) if with_probs else repeat(None, len(batch))
                        for row, soft in zip(batch.select(plain).to_pylist(), probs, strict=True):
                            yield LabeledRow(number, class_name=names[row["label"]], probs=soft, **row)
                            number += 1


@dataclass(frozen=True)
class ReviewedImages(LabeledImages):
    """The images of a review to which people gave a class, with probability 1. Images that they excluded are left out."""

    @cached_property
    def _labels(self) -> Version | None:
        """The newest labeled version of that name in the store, whose images were reviewed."""
        return newest_labels(self.store, self.version.name)

    @cached_property
    def _images(self) -> ImageReader:
        if self._labels is not None:
            return open_images(self.store, self._labels, self.pool, wait_seconds=None)
        if self.pool is None:
            raise UsageError(
                f"{self.version.ref}: no labels in the store say where its images are; pass the source they are in with `pool`"
            )
        return PoolImages(self.store, self.version, self.pool, wait_seconds=None)

    @cached_property
    def _rows(self) -> pl.DataFrame:
        """`image_hash`, `key`, `label`, and `number`: the row in the edition if that embeds the images, else 0."""
        rows = read_review(self.version).drop_nulls("label").select("image_hash", "key", "label")
        if not self.with_images or not isinstance(self._images, EmbeddedImages):
            return rows.with_columns(number=pl.lit(0))
        assert self._labels is not None, "it holds them"
        (numbers,) = collect(self._labels.ref, scan_labels(self._labels).select("image_hash").with_row_index("number"))
        rows = rows.join(numbers.unique("image_hash", keep="first"), on="image_hash", how="left", maintain_order="left")
        if missing := rows["number"].null_count():
            raise NstError(f"{self._labels.ref}: holds {missing:,} images less than {self.version.ref}; pass their source with `pool`")
        return rows

    @cached_property
    def count(self) -> int:
        """The number of images to which people gave a class."""
        return self._rows.height

    def rows(self, with_probs: bool = False) -> Iterator[LabeledRow]:
        """All rows, in the order of the review."""
        names = self.version.manifest.class_names
        for index, row in enumerate(self._rows.iter_rows(named=True)):
            probs = (np.arange(len(names)) == row["label"]).astype(np.float32) if with_probs else None
            yield LabeledRow(id=index, class_name=names[row["label"]], confidence=1.0, probs=probs, **row)

    def _pool_row(self, row: LabeledRow) -> int:
        return sys.maxsize  # unknown in a review: images are found by key or by content
