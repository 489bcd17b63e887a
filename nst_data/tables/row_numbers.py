"""A number for each row, kept in a file by the row's `id`, so that memory does not grow with the rows."""

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

_PLACES_OF_ONE = 64  # a file has a place for each `id` up to the largest: few rows with large ones would make a long file


class RowNumbers:
    """What `number` is for each row of a table in Polars, at least 0 and below 2**32; `file` is created by `begin`."""

    def __init__(self, file: Path, number: pl.Expr) -> None:
        self.number = number
        self._file = file

    def begin(self, least: int, most: int, rows: int) -> bool:
        """Make place for as many `rows` with `id`s from `least` to `most`; False, and no file, where that is not worth its place."""
        if not (rows and least >= 0 and most < _PLACES_OF_ONE * rows):
            return False
        with self._file.open("wb") as file:
            file.truncate(4 * (most + 1))
        return True

    @property
    def are_there(self) -> bool:
        """Whether numbers have been put."""
        return self._file.is_file()

    def put(self, ids: NDArray[np.int64], numbers: pl.Series) -> None:
        """Keep the numbers of some rows. Where a row has none, none are kept."""
        if numbers.null_count():
            self._file.unlink(missing_ok=True)
        if self.are_there:  # mapped each time: what was written counts as memory while it is mapped
            np.memmap(self._file, np.uint32, "r+")[ids] = numbers.to_numpy()

    def kept(self) -> pl.Expr:
        """The rows' numbers, by the column `id`, as int64."""

        def read(ids: pl.Series) -> pl.Series:
            return pl.Series(np.memmap(self._file, np.uint32, "r")[ids.to_numpy()].astype(np.int64))

        return pl.col("id").map_batches(read, pl.Int64, is_elementwise=True)
