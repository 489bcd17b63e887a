"""What is known of an edition's images, laid out shard by shard for random access: memory does not grow with the edition."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.self_contained.shard_folders import ShardFolders
from nst_data.sources.plain_pages import close_files
from nst_data.tables.schema import soft_label_columns

AT_ONCE = 8192  # rows in memory while they are laid out


class Columns:
    """The columns of all shards; each lies in a memory-mapped file in the folder of its shard.

    Shard s has the images from `starts[s]` on and below `starts[s + 1]`.
    """

    def __init__(self, shards: ShardFolders, images: NDArray[np.int64]) -> None:
        """`images` are how many each shard has."""
        self.shards, self.starts = shards, np.concatenate([[0], np.cumsum(images)])
        self._open: dict[int, dict[str, NDArray[Any]]] = {}

    def of(self, shard: int, name: str) -> NDArray[Any]:
        """A column of a shard, once that is here."""
        columns = self._open.setdefault(shard, {})
        if name not in columns:
            columns[name] = np.load(self.shards.wait_for(shard) / f"{name}.npy", mmap_mode="r")
        return columns[name]

    def take(self, name: str, images: NDArray[np.int64]) -> NDArray[Any]:
        """The values of some images in a column, in their order."""
        shards = np.searchsorted(self.starts, images, side="right") - 1
        values: NDArray[Any] | None = None
        for shard in np.unique(shards).tolist():
            column, here = self.of(shard, name), shards == shard
            values = np.empty((len(images), *column.shape[1:]), column.dtype) if values is None else values
            values[here] = column[images[here] - self.starts[shard]]
        assert values is not None, "some images are asked for"
        return values

    def close_all_but(self, shards: Sequence[int]) -> None:
        """Let go of other shards, so that their space is free once they are deleted."""
        closing = self._open.keys() - set(shards)
        for shard in closing:
            del self._open[shard]
        if closing:
            close_files()


def lay_out(files: Sequence[Path], images: int, order: NDArray[np.int64], folder: Path, targets: Sequence[str]) -> None:
    """Lay out some files with so many images in `folder`: `hashes`, `ends` and the targets, class order[i] of the edition as class i.

    ends[i] is the number of entries up to and with image i: entry e is of the first image with ends > e.
    """
    schema, entries = pq.read_schema(files[0]), 0
    hashes, ends = new_column(images, folder, "hashes", (16,), np.uint8), new_column(images, folder, "ends")
    shapes = {name: _shape_and_dtype(schema.field(name).type) for name in targets}
    out = {name: new_column(images, folder, name, *shapes[name]) for name in targets}
    for here, batch in pieces(files, ["image_hash", "copies", *targets]):
        copies = batch["copies"].to_numpy().astype(np.int64)
        ends[here] = entries + np.cumsum(copies)
        entries += int(copies.sum())
        hashes[here] = np.frombuffer(bytes.fromhex("".join(batch["image_hash"].to_pylist())), np.uint8).reshape(-1, 16)
        for name in targets:
            values = batch[name].flatten() if shapes[name][0] else batch[name]
            stored = values.to_numpy(zero_copy_only=False).reshape(len(batch), *shapes[name][0])
            out[name][here] = _renumbered(name, stored, order)
    for column in (hashes, ends, *out.values()):
        column.flush()


def target_columns(schema: pa.Schema, hard: bool) -> tuple[str, ...]:
    """The columns to train on: the soft labels, or the label alone."""
    return ("label",) if hard else soft_label_columns(schema)


def pieces(files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[slice, pa.RecordBatch]]:
    """Some columns of some files, piece by piece, and where each piece belongs."""
    done = 0
    for file in files:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(AT_ONCE, columns=list(columns)):
                yield slice(done, done + len(batch)), batch
                done += len(batch)


def new_column(images: int, folder: Path, name: str, shape: tuple[int, ...] = (), dtype: Any = np.int64) -> np.memmap[Any, Any]:  # noqa: ANN401
    """A file with a place for each image, to be filled."""
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(images, *shape))


def _shape_and_dtype(column: pa.DataType) -> tuple[tuple[int, ...], Any]:
    """Of one row of a column: a list of fixed length, or a number."""
    if isinstance(column, pa.FixedSizeListType):
        return (column.list_size,), column.value_type.to_pandas_dtype()
    return (), column.to_pandas_dtype()


def _renumbered(name: str, rows: NDArray[Any], order: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of a target's column, where class order[i] of the edition becomes class i."""
    if name in ("label", "top_labels"):
        rows = np.argsort(order)[rows]
    return rows[:, order] if name == "probs" else rows
