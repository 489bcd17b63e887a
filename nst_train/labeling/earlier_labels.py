"""Rows that were labeled before: a grown pool takes them over (`--extend`), a new teacher looks at them again (`--like`)."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.images import image_hash
from nst_data.sources import Row, Source
from nst_data.store.files import replacing
from nst_data.store.store import Version
from nst_data.tables.schema import soft_label_columns
from nst_data.tables.shards import TableReader
from nst_train.device import cpus_of_this_process
from nst_train.labeling.labeling import OTHER_BYTES, Errors

_PIECE = 256  # rows in memory at a time: those of a parquet file hold their bytes
_HASH = np.dtype("S16")  # compares bytewise; 16 bytes differ or do not, trailing zeros or not


class EarlierLabels:
    """A generation's rows by `image_hash`. The index lies in memory-mapped files below `work`, 24 bytes for each row."""

    def __init__(self, generation: Version, work: Path) -> None:
        self._table = TableReader(generation.folder, "pseudo_labels")
        self._columns = ["label", "confidence", *soft_label_columns(self._table.schema), "phash"]
        if not (work / "earlier_positions.npy").exists():
            self._write_index(work)
        self._hashes = np.load(work / "earlier_hashes.npy", mmap_mode="r")
        self._positions = np.load(work / "earlier_positions.npy", mmap_mode="r")

    def _write_index(self, work: Path) -> None:
        batches = [
            (_as_bytes(one["image_hash"]), one["confidence"].to_numpy()) for one in self._table.batches(["image_hash", "confidence"])
        ]
        hashes = np.concatenate([np.empty(0, _HASH), *(found for found, _ in batches)])
        confidences = np.concatenate([np.empty(0, np.float32), *(found for _, found in batches)])
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
        found: NDArray[np.int64] = np.where(self._hashes[places] == wanted, self._positions[places], -1)
        return found

    def take(self, positions: NDArray[np.int64]) -> pa.Table:
        """Label, confidence, soft label and perceptual hash of rows, in the order given."""
        order = np.argsort(positions, kind="stable")
        return self._table.take(positions[order], self._columns).take(np.argsort(order))


@dataclass
class ExtensionPart:
    """Rows of a grown pool: those whose bytes were labeled before are taken over, the others labeled."""

    to_label: NDArray[np.int64]
    _known: pa.Table  # id, key, image_hash, and `position` among the earlier rows; by id
    _earlier: EarlierLabels

    def complete(self, labels: pa.Table, errors: Errors, stop: int | None) -> tuple[pa.Table, Errors]:
        """New and earlier rows, by their number in the pool."""
        count = self._known.num_rows if stop is None else int(np.searchsorted(self._known["id"].to_numpy(), stop))
        known, self._known = self._known.slice(0, count), self._known.slice(count)
        values = self._earlier.take(known["position"].to_numpy())
        for name in ("id", "key", "image_hash"):
            values = values.append_column(name, known[name])
        rows = pa.concat_tables([labels, values.select(labels.column_names).cast(labels.schema)])
        return rows.sort_by("id"), errors


def extension_part(
    pool: Source, earlier: EarlierLabels, start: int, stop: int, threads: int | None, show_life: Callable[[], None]
) -> ExtensionPart:
    """Rows `start` to `stop` of a pool; every image is read and hashed, none decoded. `show_life` is called on the way."""
    rows, keys, hashes = pool.rows(range(start, stop)), list[str](), list[str]()
    with ThreadPoolExecutor(threads or cpus_of_this_process()) as pool_of_threads:
        while piece := list(itertools.islice(rows, _PIECE)):
            keys += [row.key for row in piece]
            hashes += pool_of_threads.map(_hash, piece)
            show_life()
    readable = [index for index, found in enumerate(hashes) if found]
    positions = np.full(len(keys), -1, np.int64)
    positions[readable] = earlier.find([hashes[index] for index in readable])
    known = np.flatnonzero(positions >= 0)
    columns = {
        "id": start + known,
        "key": pa.array([keys[index] for index in known], pa.string()),
        "image_hash": pa.array([hashes[index] for index in known], pa.string()),
        "position": positions[known],
    }
    return ExtensionPart(start + np.flatnonzero(positions < 0), pa.table(columns), earlier)


@dataclass
class LikePart:
    """Rows of an edition: the same images with the same copies, labeled again."""

    to_label: NDArray[np.int64]
    _rows: pa.Table  # image_hash, duplicates, copies; in the order of `to_label`

    def complete(self, labels: pa.Table, errors: Errors, stop: int | None) -> tuple[pa.Table, Errors]:
        """New labels beside the edition's own columns. An image that holds other bytes now goes to the errors."""
        rows = self._rows.take(np.searchsorted(self.to_label, labels["id"].to_numpy()))
        same = pc.equal(labels["image_hash"], rows["image_hash"])
        for row in labels.filter(pc.invert(same)).select(["id", "key"]).to_pylist():
            errors = [*errors, {**row, "reason": OTHER_BYTES}]
        for name in ("duplicates", "copies"):
            labels = labels.append_column(name, rows[name])
        return labels.filter(same), sorted(errors, key=lambda error: error["id"])


def like_part(pool: Source, edition: TableReader, same_pool: bool, start: int, stop: int) -> LikePart:
    """The images at positions `start` to `stop` of an edition, found in the pool by row or, in another copy of it, by key."""
    rows = edition.take(np.arange(start, stop), ["id", "key", "image_hash", "duplicates", "copies"])
    numbers = rows["id"].to_numpy() if same_pool else pool.rows_of(rows["key"].to_pylist())
    order = np.argsort(numbers, kind="stable")
    return LikePart(numbers[order], rows.take(order))


def _as_bytes(hashes: pa.Array | pa.ChunkedArray) -> NDArray[np.bytes_]:
    return np.frombuffer(bytes.fromhex("".join(hashes.to_pylist())), _HASH)


def _hash(row: Row) -> str:
    """The hash of a row's bytes; empty where they cannot be read, which labeling will find too."""
    try:
        return image_hash(row.read())
    except (NstError, OSError):
        return ""
