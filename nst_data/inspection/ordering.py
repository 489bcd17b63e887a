"""The first rows in the order of a value, of as many as there are, in little memory."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

_PIECE = 2_000_000
_LAST = np.uint32(2**32 - 1)


def _order_keys(values: pl.Series, rows: pl.Series, largest_first: bool) -> NDArray[np.uint64]:
    """Numbers in the order of values from 0, equal ones in that of their rows; those without a value come last."""
    numbers = values.cast(pl.Float32).fill_null(np.nan).to_numpy()
    is_missing = np.isnan(numbers)
    bits = (np.maximum(numbers, np.float32(0)) + np.float32(0)).view(np.uint32)  # those of numbers from 0 are in their order
    if largest_first:
        np.subtract(_LAST - 1, bits, out=bits)
    bits[is_missing] = _LAST
    keys: NDArray[np.uint64] = bits.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= rows.to_numpy()
    return keys


def first_rows(values: pl.DataFrame, largest_first: bool, offset: int, limit: int) -> NDArray[np.int64]:
    """The rows in some places of the order of a value; `values` has it beside `row`. Piece by piece, which takes little memory."""
    stop, least = offset + limit, np.empty(0, np.uint64)
    for start in range(0, values.height, _PIECE):
        piece = values.slice(start, _PIECE)
        keys = np.concatenate([least, _order_keys(piece.to_series(1), piece.to_series(0), largest_first)])
        if stop < len(keys):
            keys.partition(stop)
        least = keys[:stop].copy()
    return (np.sort(least)[offset:] & np.uint64(_LAST)).astype(np.int64)
