"""Which rows have an `image_hash` that others have too, in Polars: exactly, and in memory that does not grow with the rows.

All hashes pass by twice. First a few of their bits and the row's `id`, one number for each row, are spread over partitions in a file; rows
that share all those bits are few but those of equal images. Then the hashes of these rows are compared whole.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import narwhals as nw
import numpy as np
import polars as pl
from numpy.typing import NDArray

from nst_data.prefetch import cpus_of_this_process, in_threads
from nst_data.tables.engines import BATCH_ROWS, with_row_values
from nst_data.tables.partitions import Partitions

_PARTITION_ROWS = 2**19  # of them 64-bit numbers are sorted in the processor's cache


def _threads() -> int:
    """Each holds a partition and its sorted copies: beyond a few, reading is the limit."""
    return min(4, cpus_of_this_process())


def repeated_hashes(rows: pl.LazyFrame, folder: Path | None = None) -> pl.DataFrame:
    """`id`, the `first_id` with the same `image_hash`, and `duplicates` (int32), the rows with it, where that are more than one.

    What is on its way lies in `folder`, by default in the system's for temporary files.
    """
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        alike = pl.DataFrame({"id": _alike(rows, Path(work, "hashes")), "alike": True}, schema={"id": pl.Int64, "alike": pl.Boolean})
        found = with_row_values(nw.from_native(rows.select("id", "image_hash")), nw.from_native(alike.lazy()), "alike").to_native()
        halves = [pl.col("image_hash").str.slice(at, 16).str.to_integer(base=16, dtype=pl.UInt64).alias(f"half_{at}") for at in (0, 16)]
        found = found.filter("alike").select(*halves, pl.col("id").reinterpret(signed=False))
        with Partitions(Path(work, "halves"), numbers=3, bits=(len(alike) // _PARTITION_ROWS).bit_length()) as partitions:
            _send(found, lambda batch: partitions.add(*(column.to_numpy() for column in batch)))
            return pl.concat([found for _, found in in_threads(_repeated, partitions, _threads())])


def _alike(rows: pl.LazyFrame, file: Path) -> NDArray[np.int64]:
    """The `id`s of all rows whose `image_hash` is repeated, and of few others."""
    count, least, most = rows.select(pl.len(), least=pl.col("id").min(), most=pl.col("id").max()).collect(engine="streaming").row(0)
    id_bits = np.uint64(64 if count and least < 0 else int(most or 0).bit_length())
    bits = min((count // _PARTITION_ROWS).bit_length(), 64 - int(id_bits))
    with Partitions(file, numbers=1, bits=bits) as partitions:
        hashed = rows.select(pl.col("image_hash").hash(), pl.col("id").reinterpret(signed=False))
        _send(hashed, lambda batch: partitions.add(batch["image_hash"].to_numpy() << id_bits | batch["id"].to_numpy()))
        found = in_threads(lambda records: _repeated_above(records.ravel(), id_bits), partitions, _threads())
        return np.concatenate([ids for _, ids in found]).view(np.int64)


def _send(rows: pl.LazyFrame, receiver: Callable[[pl.DataFrame], None]) -> None:
    rows.sink_batches(receiver, chunk_size=BATCH_ROWS, maintain_order=False, engine="streaming")


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
