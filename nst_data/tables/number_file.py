"""A number for each row in a file, so that a later step need not compute it again."""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nst_data.tables.engines import BATCH_ROWS

_MOST_GAPS = 2**20  # `id`s without a row, beside as many as there are rows: each takes the place of one


class NumberFile:
    """Numbers of rows whose `id`s increase from 0, each at the place that `id` gives. `gap` stands where there is no row.

    It is written in a `with` block and read after it.
    """

    def __init__(self, path: Path, kind: DTypeLike, gap: int = 0) -> None:
        self._path, self._kind, self._gap = path, np.dtype(kind), gap
        self._gaps, self._rows = [np.zeros(0, np.int64)], 0
        self.ids = 0
        """The `id` after the last row's."""

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, ids: NDArray[np.int64], numbers: NDArray[np.generic]) -> bool:
        """Write the numbers of the rows that follow. False, and nothing written, where their `id`s are in another order or far apart."""
        if not len(ids):
            return True
        rows, start, stop = self._rows + len(ids), self.ids, int(ids[-1]) + 1
        if ids[0] < start or stop > 2 * rows + _MOST_GAPS or (np.diff(ids) <= 0).any():
            return False
        self._rows, self.ids = rows, stop
        numbers = numbers.astype(self._kind, copy=False)
        if stop - start > len(ids):
            placed, is_gap = np.full(stop - start, self._gap, self._kind), np.ones(stop - start, np.bool_)
            placed[ids - start], is_gap[ids - start] = numbers, False
            self._gaps.append(start + np.flatnonzero(is_gap))
            numbers = placed
        self._file.write(numbers.data)
        return True

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """The numbers of these `id`s, one for each."""
        return np.fromfile(self._path, self._kind, stop - start, offset=self._kind.itemsize * start)

    def gaps(self, start: int, stop: int) -> NDArray[np.int64]:
        """Those `id`s among these that no row has."""
        if len(self._gaps) > 1:
            self._gaps = [np.concatenate(self._gaps)]
        return self._gaps[0][slice(*np.searchsorted(self._gaps[0], [start, stop]))]

    def spans(self) -> Iterator[tuple[int, int]]:
        """Where pieces of all `id`s begin and end."""
        return ((start, min(start + BATCH_ROWS, self.ids)) for start in range(0, self.ids, BATCH_ROWS))
