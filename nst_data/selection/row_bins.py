"""The class and bin of confidence of every row, kept while they are counted, so that the rows that are chosen need not be read again."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nst_data.prefetch import cpus_of_this_process, in_threads
from nst_data.selection.balance import COPIES
from nst_data.selection.cutoffs import BINS, Cutoffs, places_of
from nst_data.selection.seeded_order import HASH_DIGITS, ORDER_SIZE, order_numbers
from nst_data.tables.hash_numbers import HashNumbers
from nst_data.tables.number_file import NumberFile


class RowBins:
    """For each row the number by which `count_bins` counts it, in a file. Written in a `with` block and read after it."""

    def __init__(self, file: Path, classes: int, reasons: Sequence[str]) -> None:
        self._classes, self._places = classes, places_of(reasons)
        self._numbers = NumberFile(file, np.int32, gap=classes * self._places)
        self.are_kept = classes * self._places < np.iinfo(np.int32).max

    def __enter__(self) -> Self:
        self._numbers.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._numbers.__exit__(kind, error, trace)

    def add(self, batch: pl.DataFrame) -> None:
        """Keep the numbers of some more rows."""
        self.are_kept = self.are_kept and self._numbers.add(batch["id"].to_numpy(), batch["number"].to_numpy())

    def first(self, cuts: Cutoffs, repeats: pl.DataFrame, hashes: HashNumbers, seed: int, folder: Path) -> pl.LazyFrame:
        """The first rows of each class, by increasing `id`, as parquet files in `folder`. `cuts` has `ends`.

        They have `id`, `label`, `duplicates` and their place `nst_order` in the seeded order of copies. `repeats` has the `id` of the first
        row of each repeated image, and `duplicates`.
        """
        is_above, ends = self._above(cuts), np.zeros(0, np.int64) if cuts.ends is None else cuts.ends
        repeats = repeats.sort("id")
        repeated_ids, sizes = repeats["id"].to_numpy(), repeats["duplicates"].to_numpy()
        first_digits, (a, b) = hashes.first_digits(HASH_DIGITS), order_numbers(seed, COPIES)
        folder.mkdir()

        def write(span: tuple[int, int]) -> None:
            start, stop = span
            numbers = self._numbers.read(start, stop)
            is_first = is_above[numbers]
            is_first[_of(ends, span) - start] = True
            ids = start + np.flatnonzero(is_first)
            here = slice(*np.searchsorted(repeated_ids, span))
            duplicates = np.ones(stop - start, np.int32)
            duplicates[repeated_ids[here] - start] = sizes[here]
            columns = {
                "id": ids,
                "label": (numbers[ids - start] // self._places).astype(np.int64),
                "duplicates": duplicates[ids - start],
                "nst_order": ((first_digits(ids) * a + b) % ORDER_SIZE).astype(np.int32),
            }
            pl.DataFrame(columns).write_parquet(folder / f"part-{start:015d}.parquet", compression="lz4", statistics=False)

        spans = list(self._numbers.spans()) or [(0, 0)]  # of no rows there is a file too
        for _ in in_threads(write, spans, cpus_of_this_process()):
            pass
        return pl.scan_parquet(sorted(folder.iterdir()), glob=False)

    def _above(self, cuts: Cutoffs) -> NDArray[np.bool_]:
        """By number, whether a row is in a bin above that in which its class ends."""
        ends = np.full(self._classes, -1)
        key = cuts.keys[0]
        ends[cuts.last["label"].to_numpy()] = np.minimum(cuts.last[key].to_numpy() * BINS, BINS).astype(np.int64)
        is_above = np.zeros((self._classes, self._places), np.bool_)
        is_above[:, : BINS + 1] = np.arange(BINS + 1) > ends[:, None]
        return np.append(is_above.ravel(), False)  # the last is for gaps


def _of(ids: NDArray[np.int64], span: tuple[int, int]) -> NDArray[np.int64]:
    """Those of increasing `id`s that are in a span."""
    return ids[slice(*np.searchsorted(ids, span))]
