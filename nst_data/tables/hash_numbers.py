"""The `image_hash` of every row as numbers in files, so that a selection reads and parses the text once.

Which rows have a hash that others have too is found in them, in memory that does not grow with the rows. First a few bits of each hash and
the row's `id`, one number for each row, are spread over partitions; rows that share all those bits are few but those of equal images. Then
these rows are compared by 128 bits, as many as an `image_hash` of nst has: by its first 64, and by 64 that Polars makes of all its digits.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nst_data.prefetch import cpus_of_this_process, in_threads
from nst_data.tables.engines import BATCH_ROWS
from nst_data.tables.number_file import NumberFile
from nst_data.tables.partitions import Partitions

_DIGITS = 16  # that 64 bits hold
_PARTITION_ROWS = 2**19  # of them 64-bit numbers are sorted in the processor's cache


class HashNumbers:
    """The hashes of rows whose `id`s increase from 0, 128 bits of each in files."""

    def __init__(self, folder: Path, first: NumberFile, whole: NumberFile) -> None:
        self._folder, self._first, self._whole = folder, first, whole

    @classmethod
    def written(cls, rows: pl.LazyFrame, folder: Path) -> Self | None:
        """Read the `image_hash` of all rows into files in `folder`, which is made.

        None for rows with other `id`s, such as negative ones or in another order, and for hashes that do not begin with 16 hexadecimal
        digits.
        """
        folder.mkdir(parents=True)
        hashed, fits = pl.col("image_hash"), True
        digits = pl.when(hashed.str.len_bytes() >= _DIGITS).then(hashed.str.slice(0, _DIGITS))
        number = digits.str.to_integer(base=16, dtype=pl.UInt64, strict=False)

        def add(batch: pl.DataFrame) -> bool:
            nonlocal fits
            fits = not any(column.null_count() for column in batch)
            if fits:
                ids, *numbers = (column.to_numpy() for column in batch)
                fits = first.add(ids, numbers[0]) and whole.add(ids, numbers[1])
            return not fits  # which ends it

        with NumberFile(folder / "first", np.uint64) as first, NumberFile(folder / "whole", np.uint64) as whole:
            columns = rows.select("id", number.alias("first"), hashed.hash())
            columns.sink_batches(add, chunk_size=BATCH_ROWS, maintain_order=True, engine="streaming")
        return cls(folder, first, whole) if fits else None

    def first_digits(self, digits: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
        """What gives, for `id`s of rows, the first hexadecimal digits of their hashes, 15 at most, as numbers."""
        shift = np.uint64(4 * (_DIGITS - digits))

        def numbers(ids: NDArray[np.int64]) -> NDArray[np.int64]:
            if not len(ids):
                return ids
            start = int(ids.min())
            found: NDArray[np.uint64] = self._first.read(start, int(ids.max()) + 1)[ids - start]
            return (found >> shift).view(np.int64)

        return numbers

    def repeated(self) -> pl.DataFrame:
        """`id`, the `first_id` with the same `image_hash`, and `duplicates` (int32), the rows with it, where that are more than one."""
        ids = self._alike()
        with Partitions(self._folder / "records", numbers=3, bits=(len(ids) // _PARTITION_ROWS).bit_length()) as partitions:
            for start, stop in self._first.spans():
                some = ids[slice(*np.searchsorted(ids, [start, stop]))]
                halves = (half.read(start, stop)[some - start] for half in (self._first, self._whole))
                partitions.add(*halves, some.view(np.uint64))
            return pl.concat([found for _, found in in_threads(_repeated, partitions, _threads())])

    def _alike(self) -> NDArray[np.int64]:
        """The increasing `id`s of all rows whose hash is repeated, and of few others."""
        id_bits, partition_bits = np.uint64(self._first.ids.bit_length()), (self._first.ids // _PARTITION_ROWS).bit_length()
        with Partitions(self._folder / "bits", numbers=1, bits=partition_bits) as partitions:
            for _, numbers in in_threads(lambda span: self._numbers(*span, id_bits), self._first.spans(), _threads()):
                partitions.add(numbers)
            found = in_threads(lambda records: _repeated_above(records.ravel(), id_bits), partitions, _threads())
            ids = np.concatenate([some for _, some in found]).view(np.int64)
        ids.sort()
        return ids

    def _numbers(self, start: int, stop: int, id_bits: np.uint64) -> NDArray[np.uint64]:
        """Some bits of each hash, followed by its `id`, sorted."""
        numbers: NDArray[np.uint64] = self._whole.read(start, stop) << id_bits | np.arange(start, stop, dtype=np.uint64)
        if len(gaps := self._first.gaps(start, stop)):
            numbers = np.delete(numbers, gaps - start)
        numbers.sort()
        return numbers


def _threads() -> int:
    """Each holds a partition and its sorted copies: beyond a few, reading is the limit."""
    return min(4, cpus_of_this_process())


def _repeated_above(numbers: NDArray[np.uint64], bits: np.uint64) -> NDArray[np.uint64]:
    """The lowest `bits` of those numbers that equal others in all higher ones."""
    numbers.sort()
    high = numbers >> bits
    are_equal = np.zeros(len(numbers) + 1, np.bool_)  # each number and the one before it
    are_equal[1:-1] = high[1:] == high[:-1]
    return numbers[are_equal[1:] | are_equal[:-1]] & ~(~np.uint64(0) << bits)


def _repeated(records: NDArray[np.uint64]) -> pl.DataFrame:
    """Of records (half of a hash, its other half, `id`): those with a hash that others have."""
    order = np.argsort(records[:, 0])
    half, other, ids = records[order].T
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = half[1:] != half[:-1]
    if (~is_new[1:] & (other[1:] != other[:-1])).any():  # hashes that share one half
        order = np.lexsort((records[:, 1], records[:, 0]))
        half, other, ids = records[order].T
        is_new[1:] = (half[1:] != half[:-1]) | (other[1:] != other[:-1])
    starts = np.flatnonzero(is_new)
    sizes = np.diff(starts, append=len(ids))
    firsts = np.minimum.reduceat(ids.view(np.int64), starts) if len(starts) else starts
    found = {"id": ids.view(np.int64), "first_id": np.repeat(firsts, sizes), "duplicates": np.repeat(sizes, sizes).astype(np.int32)}
    return pl.DataFrame(found).filter(pl.col("duplicates") > 1)
