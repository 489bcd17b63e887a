"""The labels of an earlier generation, looked up by the bytes of an image."""

from binascii import unhexlify
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.store.files import HashedWriter, atomic_write
from nst_data.store.store import Version
from nst_data.tables.partitions import Partitions
from nst_data.tables.schema import soft_label_columns
from nst_data.tables.shards import TableReader

_BIG_ENDIAN = np.dtype(">u8")
_HASH = np.dtype("S16")  # compares bytewise; at a fixed 16 bytes, trailing zeros make no difference


class EarlierLabels:
    """The rows of a generation by `image_hash`. The index is in memory-mapped files in `work`, 24 bytes per row.

    It is built once, in partitions of which only one is in memory.
    """

    def __init__(self, generation: Version, work: Path) -> None:
        self._table = TableReader(generation.folder, "pseudo_labels")
        self._columns = ["label", "confidence", *soft_label_columns(self._table.schema), "phash"]
        if not (work / "earlier_positions.npy").exists():
            self._write_index(work)
        self._hashes = np.load(work / "earlier_hashes.npy", mmap_mode="r")
        self._positions = np.load(work / "earlier_positions.npy", mmap_mode="r")

    def _write_index(self, work: Path) -> None:
        start = 0
        with Partitions(work, n_values=3, n_rows=len(self._table)) as partitions:
            for batch in self._table.batches(["image_hash", "confidence"]):
                answered = _labeled_positions(batch)  # rows without an answer are labeled again, and end in `errors` with the reason
                first, second = _as_numbers(batch["image_hash"]).T
                partitions.add(first[answered], second[answered], (start + answered).view(np.uint64))
                start += len(batch)
            with atomic_write(work / "earlier_positions.npy") as positions, atomic_write(work / "earlier_hashes.npy") as hashes:
                _write_array_header(hashes, _HASH, partitions.rows)
                _write_array_header(positions, np.dtype(np.int64), partitions.rows)
                for records in partitions:
                    ordered = records[np.lexsort((records[:, 1], records[:, 0]))]
                    hashes.write(ordered[:, :2].astype(_BIG_ENDIAN).tobytes())
                    positions.write(ordered[:, 2].tobytes())

    def find(self, hashes: Sequence[str]) -> NDArray[np.int64]:
        """The first row with each hash, -1 if there is none; shape (hashes,)."""
        if not len(self._hashes):
            return np.full(len(hashes), -1, np.int64)
        hash_bytes = _as_bytes(pa.array(hashes, pa.string()))
        places = np.minimum(np.searchsorted(self._hashes, hash_bytes), len(self._hashes) - 1)
        positions: NDArray[np.int64] = np.where(self._hashes[places] == hash_bytes, self._positions[places], -1)
        return positions

    def take(self, positions: NDArray[np.int64]) -> pa.Table:
        """Label, confidence, soft label and perceptual hash of the given rows, in the given order."""
        order = np.argsort(positions, kind="stable")
        return self._table.take(positions[order], self._columns).take(np.argsort(order))


@dataclass(frozen=True)
class ReuseCounts:
    """How much of an earlier generation is in a later one: rows taken over, new rows, and images that are gone."""

    taken_over: int
    new: int
    gone: int

    @classmethod
    def count_between(cls, earlier: Version, later: Version, scratch: Path) -> Self:
        """Compare by the first 8 bytes of each `image_hash`. Temporarily needs up to 8 bytes in `scratch` per row of both."""
        n_reused, n_removed = 0, 0
        old_table, new_table = TableReader(earlier.folder, "pseudo_labels"), TableReader(later.folder, "pseudo_labels")
        with (
            Partitions(scratch, n_values=1, n_rows=len(old_table)) as labeled,
            Partitions(scratch, n_values=1, n_rows=len(old_table)) as present,
        ):
            for batch in old_table.batches(["image_hash", "confidence"]):
                labeled.add(np.sort(_as_numbers(batch["image_hash"])[_labeled_positions(batch), 0]))
            for batch in new_table.batches(["image_hash"]):
                present.add(np.sort(_as_numbers(batch["image_hash"])[:, 0]))
            for labeled_records, present_records in zip(labeled, present, strict=True):
                images, rows = np.sort(labeled_records, axis=None), np.sort(present_records, axis=None)
                images = images[np.append(True, images[1:] != images[:-1])[: len(images)]]
                present_rows = np.searchsorted(rows, images, side="right") - np.searchsorted(rows, images)
                n_reused, n_removed = n_reused + int(present_rows.sum()), n_removed + int((present_rows == 0).sum())
        return cls(n_reused, len(new_table) - n_reused, n_removed)


def _labeled_positions(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """The positions of the rows that have a label."""
    return np.flatnonzero(~np.isnan(batch["confidence"].to_numpy()))


def _as_numbers(hashes: pa.Array) -> NDArray[np.uint64]:
    """Shape (hashes, 2): numbers that sort like the bytes."""
    return _as_bytes(hashes).view(_BIG_ENDIAN).reshape(-1, 2).astype(np.uint64)


def _as_bytes(hashes: pa.Array) -> NDArray[np.bytes_]:
    joined = pc.binary_join(pa.ListArray.from_arrays([0, len(hashes)], hashes), "")[0].as_buffer()
    return np.frombuffer(unhexlify(joined), _HASH)


def _write_array_header(file: HashedWriter, dtype: np.dtype[Any], length: int) -> None:
    """Write the header of a one-dimensional .npy file."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)
