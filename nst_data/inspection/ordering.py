"""The first rows when sorted by a value, in little memory however many rows there are."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

_ROWS_AT_ONCE = 2_000_000
_LAST = np.uint32(2**32 - 1)


def _sort_keys(values: pl.Series, rows: pl.Series, largest_first: bool) -> NDArray[np.uint64]:
    """Integers that sort like the values, which must not be negative, then by row; rows without a value come last."""
    numbers = values.cast(pl.Float32).fill_null(np.nan).to_numpy()
    is_missing = np.isnan(numbers)
    bits = (np.maximum(numbers, np.float32(0)) + np.float32(0)).view(np.uint32)  # bits of non-negative floats sort like the floats
    if largest_first:
        np.subtract(_LAST - 1, bits, out=bits)
    bits[is_missing] = _LAST
    keys: NDArray[np.uint64] = bits.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= rows.to_numpy()
    return keys


def first_rows(values: pl.DataFrame, largest_first: bool, offset: int, limit: int) -> NDArray[np.int64]:
    """Rows `offset` to `offset + limit` when sorted by a value; `values` has the columns `row` and that value.

    Works piece by piece, which takes little memory.
    """
    stop, smallest_keys = offset + limit, np.empty(0, np.uint64)
    for start in range(0, values.height, _ROWS_AT_ONCE):
        piece = values.slice(start, _ROWS_AT_ONCE)
        keys = np.concatenate([smallest_keys, _sort_keys(piece.to_series(1), piece.to_series(0), largest_first)])
        if stop < len(keys):
            keys.partition(stop)
        smallest_keys = keys[:stop].copy()
    return (np.sort(smallest_keys)[offset:] & np.uint64(_LAST)).astype(np.int64)
