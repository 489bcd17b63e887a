"""Records in a file, spread by their leading bits, so that equal ones meet while memory holds a small part of them."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

_MOST_BITS = 10
_PARTITION_ROWS = 2**19  # of them 64-bit numbers are sorted in the processor's cache


class Partitions:
    """Records of some uint64 numbers; those of one partition share the leading bits of their first number.

    The file lies in `folder`, without a name where the system has such files, and is gone when the block or the process ends.
    """

    def __init__(self, folder: Path, numbers: int, rows: int) -> None:
        """`rows` is how many there may be: it says how many partitions are worth it."""
        self._folder, self._numbers, self._bits = folder, numbers, min((rows // _PARTITION_ROWS).bit_length(), _MOST_BITS)
        self._starts: list[NDArray[np.int64]] = []  # of each piece that was added: where its partitions begin in the file
        self.rows = 0

    def __enter__(self) -> Self:
        self._file = TemporaryFile(dir=self._folder)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, *numbers: NDArray[np.uint64]) -> None:
        """Add a record for each place of these arrays. Numbers without others must come sorted."""
        shift = np.uint64(64 - self._bits)
        if self._numbers == 1:
            records = numbers[0]  # whoever adds them sorts them, in threads: faster than to order them by some bits here
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
        """Partition by partition its records, shape (records, numbers), of several numbers in the order in which they were added."""
        for partition in range(1 << self._bits):
            bounds = [(int(starts[partition]), int(starts[partition + 1])) for starts in self._starts]
            records = np.empty((sum(stop - start for start, stop in bounds), self._numbers), np.uint64)
            place = 0
            for start, stop in bounds:
                self._file.seek(start * 8 * self._numbers)
                self._file.readinto(records[place : place + stop - start].data)
                place += stop - start
            yield records
