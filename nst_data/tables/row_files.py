"""One number per row in a file, in row order, so that a later step need not compute it again."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nst_data.tables.engines import BATCH_ROWS


class RowNumbers:
    """One number per row. Written in a `with` block and read after it."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        self._path, self._kind = path, np.dtype(dtype)

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, numbers: NDArray[np.generic]) -> None:
        """Write the numbers of the next rows."""
        self._file.write(np.ascontiguousarray(numbers, self._kind).data)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The numbers of the rows in [start, stop)."""
        return np.fromfile(self._path, self._kind, stop - start, offset=self._kind.itemsize * start)

    def remove(self) -> None:
        """Delete the file."""
        self._path.unlink()


class RowIds:
    """The `id` of each row. Nothing is written as long as it equals the row number, counted from 0."""

    def __init__(self, path: Path) -> None:
        self._ids = RowNumbers(path, np.int64)
        self._are_written, self._last = False, -1
        self.rows = 0
        self.are_increasing = True  # and not negative

    def __enter__(self) -> Self:
        self._ids.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ids.__exit__(kind, error, trace)

    def add(self, ids: NDArray[np.int64]) -> None:
        """Write the `id`s of the next rows."""
        if not len(ids):
            return
        numbers = np.arange(self.rows, self.rows + len(ids))
        if not self._are_written and not np.array_equal(ids, numbers):
            self._are_written = True
            for start, stop in self.spans():
                self._ids.add(np.arange(start, stop))
        if self._are_written:
            self._ids.add(ids)
        self.are_increasing = self.are_increasing and bool(ids[0] > self._last and (ids[1:] > ids[:-1]).all())
        self.rows, self._last = self.rows + len(ids), int(ids[-1])

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """The `id`s of the rows in [start, stop)."""
        return self._ids.read(start, stop) if self._are_written else np.arange(start, stop)

    def spans(self) -> Iterator[tuple[int, int]]:
        """The bounds of consecutive pieces that cover all rows."""
        return ((start, min(start + BATCH_ROWS, self.rows)) for start in range(0, self.rows, BATCH_ROWS))
