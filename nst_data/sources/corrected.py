"""A labeled source with the answers of reviewers applied: corrected labels, and additional images from a pool."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from nst_data.sources.labels import labels_in
from nst_data.sources.source import Row, RowIndices, Source


@dataclass(frozen=True)
class AddedImages:
    """Labeled images: `rows` of a `source`, their `labels`, and the `image_hash` that each of them must have."""

    source: Source
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    hashes: Sequence[str]


class CorrectedSource(Source):
    """The rows of `labeled` come first and keep their numbers, including those `left_out`; the `added` images follow."""

    def __init__(self, labeled: Source, labels: NDArray[np.int64], left_out: Sequence[int], added: AddedImages | None) -> None:
        super().__init__(labeled.location)
        self._labeled, self._added, self.left_out = labeled, added, tuple(left_out)
        self.labels = labels if added is None else np.concatenate([labels, added.labels])
        self.class_names, self.empty_classes = labeled.class_names, labeled.empty_classes
        self.revision, self.license, self.skipped = labeled.revision, labeled.license, labeled.skipped
        self.image_column, self.label_column = labeled.image_column, labeled.label_column
        self._listing = labeled._listing
        digest = hashlib.sha256(repr((self.left_out, list(added.hashes) if added else [])).encode()).hexdigest()
        self._pins = (*labeled._pins, digest)

    def __len__(self) -> int:
        return len(labels_in(self))

    def key(self, row: int) -> str:
        """The key of the row in the source that it comes from."""
        labeled_count = len(self._labeled)
        if self._added is None or row < labeled_count:
            return self._labeled.key(row)
        return self._added.source.key(int(self._added.rows[row - labeled_count]))

    def read(self, row: int) -> bytes:
        """The encoded bytes of one row. Raises NstError if an added image is not the one that reviewers saw."""
        labeled_count = len(self._labeled)
        if self._added is None or row < labeled_count:
            return self._labeled.read(row)
        source_row = int(self._added.rows[row - labeled_count])
        encoded = self._added.source.read(source_row)
        self._added.source.check_content(source_row, encoded, self._added.hashes[row - labeled_count])
        return encoded

    def rows(self, needed: RowIndices) -> Iterator[Row]:
        """The rows of the labeled source in sequence, added images one by one."""
        numbers = np.asarray(needed, dtype=np.int64)
        is_labeled = numbers < len(self._labeled)
        yield from self._labeled.rows(numbers[is_labeled])
        for row in numbers[~is_labeled].tolist():
            yield Row(row, self.key(row), partial(self.read, row))

    def describe_copy(self) -> str:
        """What must be copied before single rows of the underlying sources can be read."""
        return self._labeled.describe_copy() or (self._added.source.describe_copy() if self._added else "")

    def describe_slow_reads(self) -> str:
        """Why one of the underlying sources is slow to read."""
        return self._labeled.describe_slow_reads() or (self._added.source.describe_slow_reads() if self._added else "")

    def remarks(self) -> list[str]:
        """The remarks of the labeled source."""
        return self._labeled.remarks()

    def stamps(self) -> NDArray[np.uint64]:
        """The stamps of both sources, which are empty for a source that a commit pins."""
        return self._stamps()

    def files(self) -> Iterator[str]:
        """The files of both sources."""
        return self._paths()

    def _stamps(self) -> NDArray[np.uint64]:
        return np.concatenate([self._labeled.stamps(), *([self._added.source.stamps()] if self._added else [])])

    def _paths(self) -> Iterator[str]:
        yield from self._labeled.files()
        yield from self._added.source.files() if self._added else ()
