"""A source made of some of the images of another source, in the same order."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nst_data.sources.source import Row, RowIndices, Source
from nst_data.store.inputs import Input


class Subset(Source):
    """The given `rows` (increasing row numbers) of another source; `part` is a phrase for the user that describes them.

    All classes of the other source remain classes, even those without images here.
    """

    def __init__(self, source: Source, rows: NDArray[np.int64], part: str) -> None:
        super().__init__(source.location)
        self._source, self._rows, self._part = source, rows, part
        self.labels = None if source.labels is None else source.labels[rows]
        self.class_names, self.empty_classes = source.class_names, source.empty_classes
        self.revision, self.license, self.skipped = source.revision, source.license, source.skipped
        self.image_column, self.label_column = source.image_column, source.label_column
        self._listing = source._listing
        self._pins = (*source._pins, hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest())

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, row: int) -> str:
        """The key of the row in the whole source."""
        return self._source.key(int(self._rows[row]))

    def read(self, row: int) -> bytes:
        """The encoded bytes, read from the whole source."""
        return self._source.read(int(self._rows[row]))

    def rows(self, needed: RowIndices) -> Iterator[Row]:
        """The needed rows, numbered within the subset."""
        numbers = np.asarray(needed, dtype=np.int64)
        for number, row in zip(numbers.tolist(), self._source.rows(self._rows[numbers]), strict=True):
            yield replace(row, id=number)

    def describe_copy(self) -> str:
        """What must be copied before single rows of the whole source can be read."""
        return self._source.describe_copy()

    def describe_slow_reads(self) -> str:
        """Why the whole source is slow to read."""
        return self._source.describe_slow_reads()

    def remarks(self) -> list[str]:
        """The remarks of the whole source."""
        return self._source.remarks()

    @property
    def rows_per_file(self) -> int | None:
        """The same as for the whole source."""
        return self._source.rows_per_file

    def rows_of_files(self, files: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows stored in the given files, numbered within the subset, which has fewer files if each holds one image."""
        if self.rows_per_file == 1:
            return files
        return np.flatnonzero(np.isin(self._rows, self._source.rows_of_files(files)))

    @property
    def lineage(self) -> Input:
        """Adds the `part`."""
        return super().lineage.model_copy(update={"part": self._part})

    def _stamps(self) -> NDArray[np.uint64]:
        stamps = self._source.stamps()
        return stamps[self._rows] if self.rows_per_file == 1 and len(stamps) else stamps

    def _paths(self) -> Iterator[str]:
        if self.rows_per_file != 1:
            yield from self._source.files()
            return
        chosen = set(self._rows.tolist())
        yield from (path for number, path in enumerate(self._source.files()) if number in chosen)
