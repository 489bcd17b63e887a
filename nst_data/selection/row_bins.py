"""The class and confidence bin of every row, kept while they are counted, so that the chosen rows need not be read again."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from nst_data.prefetch import cpus_of_this_process, map_batches_in_threads
from nst_data.selection.balance import COPIES
from nst_data.selection.cutoffs import BINS, Cutoffs, codes_per_label
from nst_data.selection.seeded_order import HASH_DIGITS, ORDER_SIZE, order_coefficients
from nst_data.tables.hash_numbers import HashNumbers
from nst_data.tables.row_files import RowNumbers

_MAX_CODES = 2**28  # a lookup table has one byte for each


class RowBins:
    """For each row, the number by which `count_bins` counts it, in a file. Written in a `with` block and read after it.

    The numbers are not kept (`is_stored` is false) if there are very many classes.
    """

    def __init__(self, file: Path, n_classes: int, reasons: Sequence[str]) -> None:
        self._n_classes, self._codes_per_label = n_classes, codes_per_label(reasons)
        self._numbers = RowNumbers(file, np.int32)
        self.is_stored = n_classes * self._codes_per_label <= _MAX_CODES

    def __enter__(self) -> Self:
        self._numbers.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._numbers.__exit__(kind, error, trace)

    def add(self, batch: pl.DataFrame) -> None:
        """Keep the numbers of the next rows."""
        if self.is_stored:
            self._numbers.add(batch["number"].to_numpy())

    def write_first_rows(
        self, cuts: Cutoffs, ids_in_last_bins: NDArray[np.int64], repeats: pl.DataFrame, hashes: HashNumbers, seed: int, folder: Path
    ) -> pl.LazyFrame:
        """The first rows of each class, as parquet files in `folder`; the `id`s of all rows must increase.

        They have `id`, `label`, `duplicates` and their place `nst_order` in the seeded order of copies. `ids_in_last_bins` are those of
        `cuts`; `repeats` has the `id` of the first row of each repeated image, and `duplicates`.
        """
        is_above = self._is_above_last_bin(cuts)
        repeats = repeats.sort("id")
        repeated_ids, sizes = repeats["id"].to_numpy(), repeats["duplicates"].to_numpy()
        a, b = order_coefficients(seed, COPIES)
        folder.mkdir()

        def write(span: tuple[int, int]) -> None:
            start, stop = span
            ids, numbers = hashes.ids.read(start, stop), self._numbers.read(start, stop)
            is_first = is_above[numbers]
            is_first[np.searchsorted(ids, ids_in_last_bins[_slice_between(ids_in_last_bins, ids)])] = True
            in_span = _slice_between(repeated_ids, ids)
            duplicates = np.ones(stop - start, np.int32)
            duplicates[np.searchsorted(ids, repeated_ids[in_span])] = sizes[in_span]
            rows = np.flatnonzero(is_first)
            columns = {
                "id": ids[rows],
                "label": (numbers[rows] // self._codes_per_label).astype(np.int64),
                "duplicates": duplicates[rows],
                "nst_order": ((hashes.first_digits(start, stop, HASH_DIGITS)[rows] * a + b) % ORDER_SIZE).astype(np.int32),
            }
            pl.DataFrame(columns).write_parquet(folder / f"part-{start:015d}.parquet", compression="lz4", statistics=False)

        spans = list(hashes.ids.spans()) or [(0, 0)]  # a file is written even for no rows
        for _ in map_batches_in_threads(write, spans, cpus_of_this_process()):
            pass
        return pl.scan_parquet(sorted(folder.glob("[!.]*")), glob=False)

    def _is_above_last_bin(self, cuts: Cutoffs) -> NDArray[np.bool_]:
        """For each number, whether its rows are in a bin above the one in which their class ends."""
        ends = np.full(self._n_classes, -1)
        key = cuts.keys[0]
        ends[cuts.last_rows["label"].to_numpy()] = np.minimum(cuts.last_rows[key].to_numpy() * BINS, BINS).astype(np.int64)
        is_above = np.zeros((self._n_classes, self._codes_per_label), np.bool_)
        is_above[:, : BINS + 1] = np.arange(BINS + 1) > ends[:, None]
        return is_above.ravel()


def _slice_between(sorted_ids: NDArray[np.int64], ids: NDArray[np.int64]) -> slice:
    """The slice of `sorted_ids` between the first and the last of `ids`; both increase."""
    return slice(*np.searchsorted(sorted_ids, [ids[0], ids[-1] + 1])) if len(ids) else slice(0)
