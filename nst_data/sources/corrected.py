"""A labeled source with the answers of people: other labels for some of its images, and images of a pool beside them."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nst_data.sources.labels import labels_in
from nst_data.sources.source import Row, Source, Wanted


@dataclass(frozen=True)
class Found:
    """Images with a label: the `rows` of a `source`, their `labels`, and the `image_hash` that each must have."""

    source: Source
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    hashes: Sequence[str]


class Corrected(Source):
    """Its own rows come first and keep their numbers, those that are `left_out` too; `more` images follow."""

    def __init__(self, labeled: Source, labels: NDArray[np.int64], left_out: Sequence[int], more: Found | None) -> None:
        super().__init__(labeled.location)
        self._labeled, self._more, self.left_out = labeled, more, tuple(left_out)
        self.labels = labels if more is None else np.concatenate([labels, more.labels])
        self.class_names, self.empty_classes = labeled.class_names, labeled.empty_classes
        self.revision, self.license, self.skipped = labeled.revision, labeled.license, labeled.skipped
        self.image_column, self.label_column = labeled.image_column, labeled.label_column
        self._listing = labeled._listing
        about = hashlib.sha256(repr((self.left_out, list(more.hashes) if more else [])).encode()).hexdigest()
        self._pins = (*labeled._pins, about)

    def __len__(self) -> int:
        return len(labels_in(self))

    def key(self, row: int) -> str:
        """Where it is in the source that it comes from."""
        own = len(self._labeled)
        if self._more is None or row < own:
            return self._labeled.key(row)
        return self._more.source.key(int(self._more.rows[row - own]))

    def read(self, row: int) -> bytes:
        """Raises NstError for an image that is not the one that people saw."""
        own = len(self._labeled)
        if self._more is None or row < own:
            return self._labeled.read(row)
        there = int(self._more.rows[row - own])
        encoded = self._more.source.read(there)
        self._more.source.check(there, encoded, self._more.hashes[row - own])
        return encoded

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """Its own in sequence, the others one by one."""
        numbers = np.asarray(wanted, dtype=np.int64)
        is_own = numbers < len(self._labeled)
        yield from self._labeled.rows(numbers[is_own])
        for row in numbers[~is_own].tolist():
            yield Row(row, self.key(row), partial(self.read, row))

    def copy_of_images(self) -> str:
        """As of the sources that it comes from."""
        return self._labeled.copy_of_images() or (self._more.source.copy_of_images() if self._more else "")

    def slow_reads(self) -> str:
        """As of the sources that it comes from."""
        return self._labeled.slow_reads() or (self._more.source.slow_reads() if self._more else "")

    def remarks(self) -> list[str]:
        """As of the labeled source."""
        return self._labeled.remarks()

    def stamps(self) -> NDArray[np.uint64]:
        """Of the files of both sources; a commit pins the images of one alone."""
        return self._stamps()

    def files(self) -> Iterator[str]:
        """Those of both sources."""
        return self._paths()

    def _stamps(self) -> NDArray[np.uint64]:
        return np.concatenate([self._labeled.stamps(), *([self._more.source.stamps()] if self._more else [])])

    def _paths(self) -> Iterator[str]:
        yield from self._labeled.files()
        yield from self._more.source.files() if self._more else ()
