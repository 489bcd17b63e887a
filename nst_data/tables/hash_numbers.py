"""The `image_hash` of every row as numbers in files, so that a selection reads and parses the text only once.

Rows that share their hash with others are found in these files, in memory that does not grow with the rows. First, a few bits of each hash
and its row number are spread over partitions; apart from equal images, few rows share all those bits. Then these rows are compared by 128
bits, as many as an `image_hash` of nst has: by its first 64 bits, and by a 64-bit hash that Polars computes of all its digits.
"""

from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nst_data.prefetch import cpus_of_this_process, map_batches_in_threads
from nst_data.tables.engines import BATCH_ROWS
from nst_data.tables.partitions import Partitions
from nst_data.tables.row_files import RowIds, RowNumbers

_DIGITS = 16  # hexadecimal digits in 64 bits


class HashNumbers:
    """The hashes of rows, 128 bits of each, and the rows' `ids`, in files."""

    def __init__(self, folder: Path, ids: RowIds, leading_bits: RowNumbers, polars_hashes: RowNumbers) -> None:
        self._folder, self._leading_bits, self._polars_hashes = folder, leading_bits, polars_hashes
        self.ids = ids

    @classmethod
    def write(cls, rows: pl.LazyFrame, folder: Path) -> Self | None:
        """Write `id` and `image_hash` of all rows to files in `folder`, which is created.

        Returns None if a value is missing, or if a hash does not begin with 16 hexadecimal digits.
        """
        folder.mkdir(parents=True)
        hashed, fits = pl.col("image_hash"), True
        digits = pl.when(hashed.str.len_bytes() >= _DIGITS).then(hashed.str.slice(0, _DIGITS))
        number = digits.str.to_integer(base=16, dtype=pl.UInt64, strict=False)

        def add(batch: pl.DataFrame) -> bool:
            nonlocal fits
            fits = not any(column.null_count() for column in batch)
            if fits:
                ids.add(batch["id"].to_numpy())
                first.add(batch["first"].to_numpy())
                polars_hashes.add(batch["image_hash"].to_numpy())
            return not fits  # true stops the sink

        with (
            RowIds(folder / "ids") as ids,
            RowNumbers(folder / "first", np.uint64) as first,
            RowNumbers(folder / "whole", np.uint64) as polars_hashes,
        ):
            columns = rows.select("id", number.alias("first"), hashed.hash())
            columns.sink_batches(add, chunk_size=BATCH_ROWS, maintain_order=True, engine="streaming")
        return cls(folder, ids, first, polars_hashes) if fits else None

    def first_digits(self, start: int, stop: int, digits: int) -> NDArray[np.int64]:
        """The first hexadecimal digits, at most 15, of the hashes of the rows in [start, stop), as numbers."""
        numbers: NDArray[np.uint64] = self._leading_bits.read(start, stop) >> np.uint64(4 * (_DIGITS - digits))
        return numbers.view(np.int64)

    def find_repeated(self) -> pl.DataFrame:
        """The rows whose `image_hash` repeats: `id`, the `first_id` with that hash, and `duplicates` (int32), the number of rows with it.

        This can be called only once: it deletes the half of each hash that is needed for nothing else.
        """
        rows = self._candidate_rows()
        with Partitions(self._folder, n_values=3, n_rows=len(rows)) as partitions:
            for start, stop in self.ids.spans():
                positions = rows[slice(*np.searchsorted(rows, [start, stop]))] - start
                columns = (column.read(start, stop)[positions] for column in (self._leading_bits, self._polars_hashes, self.ids))
                partitions.add(*(column.view(np.uint64) for column in columns))
            self._polars_hashes.remove()
            return pl.concat([frame for _, frame in map_batches_in_threads(_repeated_rows, partitions, _n_threads())])

    def _candidate_rows(self) -> NDArray[np.int64]:
        """The increasing row numbers of all rows whose hash repeats, and of few others."""
        row_bits = np.uint64(self.ids.rows.bit_length())
        with Partitions(self._folder, n_values=1, n_rows=self.ids.rows) as partitions:
            for _, numbers in map_batches_in_threads(lambda span: self._sortable_numbers(*span, row_bits), self.ids.spans(), _n_threads()):
                partitions.add(numbers)
            results = map_batches_in_threads(lambda records: _rows_with_equal_bits(records.ravel(), row_bits), partitions, _n_threads())
            rows = np.concatenate([repeated for _, repeated in results]).view(np.int64)
        rows.sort()
        return rows

    def _sortable_numbers(self, start: int, stop: int, row_bits: np.uint64) -> NDArray[np.uint64]:
        """Some bits of each hash followed by its row number, sorted."""
        numbers: NDArray[np.uint64] = self._polars_hashes.read(start, stop) << row_bits | np.arange(start, stop, dtype=np.uint64)
        numbers.sort()
        return numbers


def _n_threads() -> int:
    """The number of threads: each holds a partition and its sorted copies, and beyond a few, reading is the limit."""
    return min(4, cpus_of_this_process())


def _rows_with_equal_bits(numbers: NDArray[np.uint64], bits: np.uint64) -> NDArray[np.uint64]:
    """The lowest `bits` bits of the numbers that equal others in all higher bits."""
    numbers.sort()
    high = numbers >> bits
    are_equal = np.zeros(len(numbers) + 1, np.bool_)  # whether each number equals the one before it
    are_equal[1:-1] = high[1:] == high[:-1]
    return numbers[are_equal[1:] | are_equal[:-1]] & ~(~np.uint64(0) << bits)


def _repeated_rows(records: NDArray[np.uint64]) -> pl.DataFrame:
    """Of records (half of a hash, its other half, `id`), those whose hash repeats."""
    order = np.argsort(records[:, 0])
    half, other_half, ids = records[order].T
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = half[1:] != half[:-1]
    if (~is_new[1:] & (other_half[1:] != other_half[:-1])).any():  # different hashes share a half
        order = np.lexsort((records[:, 1], records[:, 0]))
        half, other_half, ids = records[order].T
        is_new[1:] = (half[1:] != half[:-1]) | (other_half[1:] != other_half[:-1])
    starts = np.flatnonzero(is_new)
    sizes = np.diff(starts, append=len(ids))
    firsts = np.minimum.reduceat(ids.view(np.int64), starts) if len(starts) else starts
    columns = {"id": ids.view(np.int64), "first_id": np.repeat(firsts, sizes), "duplicates": np.repeat(sizes, sizes).astype(np.int32)}
    return pl.DataFrame(columns).filter(pl.col("duplicates") > 1)
