"""Find the row of each of many keys: hashes are kept in temporary files and compared part by part, so that memory stays flat."""

import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

_MAX_KEYS_IN_MEMORY = 2**20  # number of keys held in memory


def match_keys(keys: Iterable[pa.Array], available: Iterable[pa.Array], rows: NDArray[np.int64]) -> None:
    """Fill `rows` with the index of each of the `keys` in `available` (the first of several), or -1 if it is absent.

    Keys are equal if their 64-bit hashes are: whoever reads the images verifies their content.
    """
    rows[:] = -1
    key_hashes, available_hashes = _hashes(keys), _hashes(available)
    n_parts = -(-len(available_hashes) // _MAX_KEYS_IN_MEMORY)
    for part in range(n_parts):
        indices = np.concatenate([start + offsets for start, offsets in _positions_in_part(available_hashes, part, n_parts)])
        hashes = available_hashes[indices]
        order = np.argsort(hashes, kind="stable")
        indices, hashes = indices[order], hashes[order]
        for start, offsets in _positions_in_part(key_hashes, part, n_parts):
            positions = np.searchsorted(hashes, key_hashes[start + offsets])
            positions[positions == len(hashes)] = 0
            if len(hashes):
                rows[start + offsets] = np.where(hashes[positions] == key_hashes[start + offsets], indices[positions], -1)


def _hashes(keys: Iterable[pa.Array]) -> NDArray[np.uint64]:
    """Hashes of the keys, memory-mapped from an unnamed temporary file."""
    with tempfile.TemporaryFile() as file:
        for piece in keys:
            pl.Series(piece).cast(pl.String).hash().to_numpy().tofile(file)
        file.flush()
        return np.memmap(file, np.uint64, "r") if file.tell() else np.empty(0, np.uint64)


def _positions_in_part(hashes: NDArray[np.uint64], part: int, n_parts: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Positions of the hashes that belong to a part: pairs of a start and offsets from it."""
    for start in range(0, len(hashes), _MAX_KEYS_IN_MEMORY):
        piece = hashes[start : start + _MAX_KEYS_IN_MEMORY]
        yield start, np.flatnonzero((piece >> np.uint64(32)) * np.uint64(n_parts) >> np.uint64(32) == part)
