"""The columns of an edition, laid out shard by shard for random access, so that memory use does not grow with the edition."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.tables.schema import soft_label_columns

BATCH_ROWS = 8192  # rows in memory at a time


def write_columns(files: Sequence[Path], images: int, class_order: NDArray[np.int64], folder: Path, targets: Sequence[str]) -> None:
    """Write `hashes`, `ends` and the targets of files with `images` images to `folder`.

    Class class_order[i] of the edition becomes class i. ends[i] is the number of entries up to and including image i: entry e belongs to
    the first image with ends > e.
    """
    schema, entries = pq.read_schema(files[0]), 0
    hashes, ends = create_column(images, folder, "hashes", (16,), np.uint8), create_column(images, folder, "ends")
    shapes = {name: _shape_and_dtype(schema.field(name).type) for name in targets}
    outputs = {name: create_column(images, folder, name, *shapes[name]) for name in targets}
    for span, batch in iterate_batches(files, ["image_hash", "copies", *targets]):
        copies = batch["copies"].to_numpy().astype(np.int64)
        ends[span] = entries + np.cumsum(copies)
        entries += int(copies.sum())
        hashes[span] = np.frombuffer(bytes.fromhex("".join(batch["image_hash"].to_pylist())), np.uint8).reshape(-1, 16)
        for name in targets:
            values = batch[name].flatten() if shapes[name][0] else batch[name]
            array = values.to_numpy(zero_copy_only=False).reshape(len(batch), *shapes[name][0])
            outputs[name][span] = _renumber_classes(name, array, class_order)
    for column in (hashes, ends, *outputs.values()):
        column.flush()


def target_columns(schema: pa.Schema, hard: bool) -> tuple[str, ...]:
    """The columns to train on: the soft labels, or only `label`."""
    return ("label",) if hard else soft_label_columns(schema)


def iterate_batches(files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[slice, pa.RecordBatch]]:
    """Iterate over some columns of some files in batches, each with the slice of rows that it covers."""
    start = 0
    for file in files:
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS, columns=list(columns)):
                yield slice(start, start + len(batch)), batch
                start += len(batch)


def create_column(images: int, folder: Path, name: str, shape: tuple[int, ...] = (), dtype: Any = np.int64) -> np.memmap[Any, Any]:  # noqa: ANN401
    """A new file with room for one value per image."""
    return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(images, *shape))


def _shape_and_dtype(column: pa.DataType) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of one row of a column, which is a fixed-size list or a number."""
    if isinstance(column, pa.FixedSizeListType):
        return (column.list_size,), column.value_type.to_pandas_dtype()
    return (), column.to_pandas_dtype()


def _renumber_classes(name: str, rows: NDArray[Any], class_order: NDArray[np.int64]) -> NDArray[Any]:
    """Values of a target column after renumbering: class class_order[i] of the edition becomes class i."""
    if name in ("label", "top_labels"):
        rows = np.argsort(class_order)[rows]
    return rows[:, class_order] if name == "probs" else rows
