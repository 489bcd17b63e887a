"""An index that finds the perceptual hashes that differ from others in only a few bits, without comparing all pairs."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Four bands of 16 bits: if two hashes differ in at most 7 bits, some band differs in at most one bit, so that 4 x 17 lookups find every
# near hash. Copies (as in benchmarks/results/overlap.md) differ in at most 6 bits; an even number, as half of the bits are set.
MAX_DISTANCE = 7
_BANDS, _BITS = 4, 16
_PROBES = np.array([0, *(1 << np.arange(_BITS))], dtype=np.int64)
_PAIRS_AT_ONCE = 2**20  # pairs that are compared at once: this bounds memory, however often a hash occurs


class HashIndex:
    """An index of 64-bit hashes, given as int64; they may repeat. Which ones are near does not depend on their order."""

    def __init__(self, hashes: NDArray[np.int64]) -> None:
        unique, group = np.unique(hashes.view(np.uint64), return_inverse=True)
        self._members = np.argsort(group, kind="stable")
        self._starts = np.cumsum([0, *np.bincount(group, minlength=len(unique))])
        self._bands = [_Band(unique, band) for band in range(_BANDS)]

    def __len__(self) -> int:
        return len(self._members)

    def any_near(self, hashes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of these hashes is within MAX_DISTANCE bits of one in the index."""
        unique, group = np.unique(hashes.view(np.uint64), return_inverse=True)
        near = np.zeros(len(unique), dtype=np.bool_)
        for band in self._bands:
            remaining = np.flatnonzero(~near)
            for queries, _ in band.find_near_pairs(unique[remaining]):
                near[remaining[queries]] = True
        return near[group]

    def find_near(self, query_hash: int) -> NDArray[np.int64]:
        """The increasing positions in the index of all hashes within MAX_DISTANCE bits of this one."""
        query = np.array([query_hash], dtype=np.int64).view(np.uint64)
        groups = np.unique(
            np.concatenate([numbers for band in self._bands for _, numbers in band.find_near_pairs(query)] or [np.empty(0, np.int64)])
        )
        return np.sort(_gather_ranges(self._members, self._starts[groups], self._starts[groups + 1]))


class _Band:
    """The hashes sorted by 16 of their bits, and where each value of these bits begins."""

    def __init__(self, hashes: NDArray[np.uint64], band: int) -> None:
        self._shift = np.uint64(band * _BITS)
        values = self._band_values(hashes)
        self._order = np.argsort(values, kind="stable")
        self._hashes = hashes[self._order]
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(values, minlength=1 << _BITS))])

    def find_near_pairs(self, hashes: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield (position in `hashes`, number of a hash in the index) of the pairs that this band finds, piece by piece."""
        buckets = (self._band_values(hashes)[:, None] ^ _PROBES).ravel()
        first, stop = self._starts[buckets], self._starts[buckets + 1]
        occupied = np.flatnonzero(stop > first)
        queries, first, stop = occupied // len(_PROBES), first[occupied], stop[occupied]
        ends = np.cumsum(stop - first)
        start = 0
        while start < len(ends):
            offset = ends[start - 1] if start else 0
            end = max(start + 1, int(np.searchsorted(ends, offset + _PAIRS_AT_ONCE, side="right")))
            position = _gather_ranges(None, first[start:end], stop[start:end])
            query = np.repeat(queries[start:end], stop[start:end] - first[start:end])
            near = np.bitwise_count(self._hashes[position] ^ hashes[query]) <= MAX_DISTANCE
            yield query[near], self._order[position[near]]
            start = end

    def _band_values(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        return (hashes >> self._shift & np.uint64((1 << _BITS) - 1)).astype(np.int64)


def _gather_ranges(values: NDArray[np.int64] | None, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers from each start up to its stop, one range after the other; with `values`, the values at these positions."""
    lengths = stops - starts
    numbers = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    return numbers if values is None else values[numbers]
