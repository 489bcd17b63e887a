"""Which row of a source each of many keys is: by their hashes in temporary files, compared part by part, so that memory stays flat."""

import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

_AT_ONCE = 2**20  # keys in memory


def match_keys(wanted: Iterable[pa.Array], there: Iterable[pa.Array], rows: NDArray[np.int64]) -> None:
    """Fill `rows` with the place of each wanted key among those that are there, the first of several; -1 where it is not.

    Keys count as equal where 64-bit hashes are: whoever reads the images compares those.
    """
    rows[:] = -1
    asked, known = _hashes(wanted), _hashes(there)
    parts = -(-len(known) // _AT_ONCE)
    for part in range(parts):
        places = np.concatenate([start + here for start, here in _of_part(known, part, parts)])
        hashes = known[places]
        order = np.argsort(hashes, kind="stable")
        places, hashes = places[order], hashes[order]
        for start, here in _of_part(asked, part, parts):
            found = np.searchsorted(hashes, asked[start + here])
            found[found == len(hashes)] = 0
            if len(hashes):
                rows[start + here] = np.where(hashes[found] == asked[start + here], places[found], -1)


def _hashes(keys: Iterable[pa.Array]) -> NDArray[np.uint64]:
    """In a nameless file that is memory-mapped."""
    with tempfile.TemporaryFile() as file:
        for piece in keys:
            pl.Series(piece).cast(pl.String).hash().to_numpy().tofile(file)
        file.flush()
        return np.memmap(file, np.uint64, "r") if file.tell() else np.empty(0, np.uint64)


def _of_part(hashes: NDArray[np.uint64], part: int, parts: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Where the hashes of a part stand: a start, and places from there on."""
    for start in range(0, len(hashes), _AT_ONCE):
        piece = hashes[start : start + _AT_ONCE]
        yield start, np.flatnonzero((piece >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32) == part)
