"""Records in a file, partitioned by their leading bits, so that equal ones meet while only a small part of them is in memory."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

_MAX_BITS = 10
_PARTITION_ROWS = 2**19  # this many 64-bit numbers are sorted in the processor's cache


class Partitions:
    """Records of `n_values` uint64 values; those of one partition share the leading bits of their first value.

    The file is in `folder`, unnamed if the system supports that, and is deleted when the block or the process ends.
    """

    def __init__(self, folder: Path, n_values: int, n_rows: int) -> None:
        """`n_rows` is the expected number of records, which determines the number of partitions."""
        self._folder, self._n_values, self._bits = folder, n_values, min((n_rows // _PARTITION_ROWS).bit_length(), _MAX_BITS)
        self._starts: list[NDArray[np.int64]] = []  # for each added piece, where its partitions begin in the file
        self.rows = 0

    def __enter__(self) -> Self:
        self._file = TemporaryFile(dir=self._folder)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, *numbers: NDArray[np.uint64]) -> None:
        """Add a record for each position of these arrays. A single array must be sorted."""
        shift = np.uint64(64 - self._bits)
        if self._n_values == 1:
            records = numbers[0]  # sorted by the caller, in threads: faster than partitioning by some bits here
            starts = np.searchsorted(records, np.arange(1, 1 << self._bits, dtype=np.uint64) << shift)
        else:
            partition = (numbers[0] >> shift).astype(np.uint16)
            order = np.argsort(partition, kind="stable")
            records = np.stack([number[order] for number in numbers], axis=1)
            starts = np.cumsum(np.bincount(partition, minlength=1 << self._bits))[:-1]
        self._file.write(records.data)
        self._starts.append(np.array([0, *starts, len(records)]) + self.rows)
        self.rows += len(records)

    def __iter__(self) -> Iterator[NDArray[np.uint64]]:
        """Yield the records of each partition, shape (records, n_values); those of several values in the order in which they were added."""
        for partition in range(1 << self._bits):
            bounds = [(int(starts[partition]), int(starts[partition + 1])) for starts in self._starts]
            records = np.empty((sum(stop - start for start, stop in bounds), self._n_values), np.uint64)
            position = 0
            for start, stop in bounds:
                self._file.seek(start * 8 * self._n_values)
                self._file.readinto(records[position : position + stop - start].data)
                position += stop - start
            yield records
