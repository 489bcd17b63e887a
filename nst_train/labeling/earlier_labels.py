"""Labels that a generation has, found again by the bytes of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nst_data.store.files import replacing
from nst_data.store.store import Version
from nst_data.tables.schema import soft_label_columns
from nst_data.tables.shards import TableReader

_HASH = np.dtype("S16")  # compares bytewise; 16 bytes differ or do not, trailing zeros or not


class EarlierLabels:
    """A generation's rows by `image_hash`. The index lies in memory-mapped files below `work`, 24 bytes for each row.

    It is made once, in memory: about 60 bytes for each row.
    """

    def __init__(self, generation: Version, work: Path) -> None:
        self._table = TableReader(generation.folder, "pseudo_labels")
        self._columns = ["label", "confidence", *soft_label_columns(self._table.schema), "phash"]
        if not (work / "earlier_positions.npy").exists():
            self._write_index(work)
        self._hashes = np.load(work / "earlier_hashes.npy", mmap_mode="r")
        self._positions = np.load(work / "earlier_positions.npy", mmap_mode="r")

    def _write_index(self, work: Path) -> None:
        batches = self._table.batches(["image_hash", "confidence"])
        pieces = [(_as_bytes(batch["image_hash"]), batch["confidence"].to_numpy()) for batch in batches]
        hashes = np.concatenate([np.empty(0, _HASH), *(piece for piece, _ in pieces)])
        confidences = np.concatenate([np.empty(0, np.float32), *(piece for _, piece in pieces)])
        answered = np.flatnonzero(~np.isnan(confidences))  # the others are labeled again: they end in `errors`, with the reason
        order = answered[np.argsort(hashes[answered], kind="stable")]
        for name, values in (("earlier_hashes", hashes[order]), ("earlier_positions", order)):
            with replacing(work / f"{name}.npy") as file:
                np.lib.format.write_array(file, values)

    def find(self, hashes: Sequence[str]) -> NDArray[np.int64]:
        """The first row with each hash, -1 where there is none; shape (hashes,)."""
        if not len(self._hashes):
            return np.full(len(hashes), -1, np.int64)
        wanted = _as_bytes(pa.array(hashes, pa.string()))
        places = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        positions: NDArray[np.int64] = np.where(self._hashes[places] == wanted, self._positions[places], -1)
        return positions

    def take(self, positions: NDArray[np.int64]) -> pa.Table:
        """Label, confidence, soft label and perceptual hash of rows, in the order given."""
        order = np.argsort(positions, kind="stable")
        return self._table.take(positions[order], self._columns).take(np.argsort(order))


@dataclass(frozen=True)
class Reused:
    """How much of an earlier generation stands in a later one: rows taken over, rows that are new, and images that are gone."""

    taken_over: int
    new: int
    gone: int

    @classmethod
    def between(cls, earlier: Version, later: Version) -> Self:
        """By the first 8 bytes of each `image_hash`. Memory: about 25 bytes for each row of `earlier`."""
        before = _answered(earlier)
        found, taken_over, rows = np.zeros(len(before), bool), 0, 0
        for batch in TableReader(later.folder, "pseudo_labels").batches(["image_hash"]):
            hashes = _as_numbers(batch["image_hash"])
            places = np.searchsorted(before, hashes)
            here = np.flatnonzero(places < len(before))
            same = places[here[before[places[here]] == hashes[here]]]
            found[same] = True
            taken_over, rows = taken_over + len(same), rows + len(hashes)
        return cls(taken_over, rows - taken_over, int((~found).sum()))


def _answered(generation: Version) -> NDArray[np.uint64]:
    """The different images that have a label, in order."""
    batches = TableReader(generation.folder, "pseudo_labels").batches(["image_hash", "confidence"])
    pieces = [_as_numbers(batch["image_hash"])[~np.isnan(batch["confidence"].to_numpy())] for batch in batches]
    return np.unique(np.concatenate([np.empty(0, np.uint64), *pieces]))


def _as_numbers(hashes: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    return np.frombuffer(_as_bytes(hashes).tobytes(), np.uint64)[::2]


def _as_bytes(hashes: pa.Array | pa.ChunkedArray) -> NDArray[np.bytes_]:
    return np.frombuffer(bytes.fromhex("".join(hashes.to_pylist())), _HASH)
