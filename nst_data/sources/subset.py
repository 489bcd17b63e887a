"""A source made of some of the images of another source, in the same order."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from nst_data.sources.source import Row, Source, Wanted
from nst_data.store.inputs import Input


class Subset(Source):
    """The given `rows` (increasing row numbers) of another source; `part` is a phrase for the user that describes them.

    All classes of the other source remain classes, even those without images here.
    """

    def __init__(self, whole: Source, rows: NDArray[np.int64], part: str) -> None:
        super().__init__(whole.location)
        self._whole, self._rows, self._part = whole, rows, part
        self.labels = None if whole.labels is None else whole.labels[rows]
        self.class_names, self.empty_classes = whole.class_names, whole.empty_classes
        self.revision, self.license, self.skipped = whole.revision, whole.license, whole.skipped
        self.image_column, self.label_column = whole.image_column, whole.label_column
        self._listing = whole._listing
        self._pins = (*whole._pins, hashlib.sha256(np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest())

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, row: int) -> str:
        """The key of the row in the whole source."""
        return self._whole.key(int(self._rows[row]))

    def read(self, row: int) -> bytes:
        """The encoded bytes, read from the whole source."""
        return self._whole.read(int(self._rows[row]))

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """The wanted rows, numbered within the subset."""
        numbers = np.asarray(wanted, dtype=np.int64)
        for number, row in zip(numbers.tolist(), self._whole.rows(self._rows[numbers]), strict=True):
            yield replace(row, id=number)

    def copy_of_images(self) -> str:
        """What must be copied before single rows of the whole source can be read."""
        return self._whole.copy_of_images()

    def slow_reads(self) -> str:
        """Why the whole source is slow to read."""
        return self._whole.slow_reads()

    def remarks(self) -> list[str]:
        """The remarks of the whole source."""
        return self._whole.remarks()

    @property
    def rows_per_file(self) -> int | None:
        """The same as for the whole source."""
        return self._whole.rows_per_file

    def rows_of_files(self, files: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows stored in the given files, numbered within the subset, which has fewer files if each holds one image."""
        if self.rows_per_file == 1:
            return files
        return np.flatnonzero(np.isin(self._rows, self._whole.rows_of_files(files)))

    @property
    def lineage(self) -> Input:
        """Adds the `part`."""
        return super().lineage.model_copy(update={"part": self._part})

    def _stamps(self) -> NDArray[np.uint64]:
        stamps = self._whole.stamps()
        return stamps[self._rows] if self.rows_per_file == 1 and len(stamps) else stamps

    def _paths(self) -> Iterator[str]:
        if self.rows_per_file != 1:
            yield from self._whole.files()
            return
        chosen = set(self._rows.tolist())
        yield from (path for number, path in enumerate(self._whole.files()) if number in chosen)
