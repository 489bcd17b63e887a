"""The rows of an edition: those of its generation that were selected, with their soft labels."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nst_data.errors import NstError
from nst_data.store.manifest import GenerationManifest
from nst_data.store.version import Version
from nst_data.tables.label_tables import translate_table_errors
from nst_data.tables.shards import TableReader

ADDED_COLUMNS = ("duplicates", "copies")  # columns of an edition that its generation does not have


def label_batches(generation: Version, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of all labels of a generation, in order; `id` must be among them.

    Raises NstError for a table that cannot be read, a missing value, or rows that are not in pool order.
    """
    last_id, n_read, count = -1, 0, GenerationManifest.from_manifest(generation.manifest).counts.pool
    with translate_table_errors(generation.ref):
        for batch in TableReader(generation.folder, "pseudo_labels").batches(columns):
            for name in batch.schema.names:
                if missing := _count_missing(batch[name]):
                    problem = (
                        f"column `{name}` lacks {missing:,} value{'s' * (missing > 1)} in rows {n_read:,} to {n_read + len(batch) - 1:,}"
                    )
                    raise NstError(f"{generation.ref}: {problem}; the table was made or changed elsewhere")
            ids = batch["id"].to_numpy()
            if (np.diff(ids, prepend=last_id, append=count) <= 0).any():
                order = f"by increasing `id` from 0 to {count - 1}"
                raise NstError(f"{generation.ref}: expected rows {order}, found another order; the table was made or changed elsewhere")
            last_id, n_read = ids[-1], n_read + len(batch)
            yield batch


def rows_in_order(generation: Version, selected_files: Sequence[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the selected rows with their soft labels, `duplicates` and `copies`. Both tables are in pool order and read in step.

    Raises NstError as `label_batches` does.
    """
    remaining = _SelectedRows(selected_files)
    for batch in label_batches(generation, [name for name in schema.names if name not in ADDED_COLUMNS]):
        ids = batch["id"].to_numpy()
        rows = remaining.take_up_to(ids[-1])
        table = pa.Table.from_batches([batch]).take(np.searchsorted(ids, rows["id"].to_numpy()))
        for name in ADDED_COLUMNS:
            table = table.append_column(name, rows[name])
        yield table.select(schema.names).cast(schema)


def _count_missing(column: pa.Array) -> int:
    """The number of missing values, including those in lists."""
    return int(column.null_count or (column.flatten().null_count if pa.types.is_fixed_size_list(column.type) else 0))


class _SelectedRows:
    """The selected rows, taken by increasing `id`."""

    def __init__(self, files: Sequence[Path]) -> None:
        columns = ["id", "duplicates", "copies"]
        self._batches = (
            pa.Table.from_batches([batch]).filter(pc.field("id").is_valid())  # `label_batches` rejects a row without one
            for file in files
            for batch in pq.ParquetFile(file, pre_buffer=False).iter_batches(columns=columns)
        )
        self._left = pa.schema([("id", pa.int64()), ("duplicates", pa.int32()), ("copies", pa.int32())]).empty_table()

    def take_up_to(self, last_id: int) -> pa.Table:
        """All rows that are left with an `id` of at most `last_id`."""
        pieces = [self._left]
        while not pieces[-1].num_rows or pieces[-1]["id"][-1].as_py() <= last_id:
            following = next(self._batches, None)
            if following is None:
                break
            pieces.append(following)
        table = pa.concat_tables([piece.select(self._left.column_names).cast(self._left.schema) for piece in pieces])
        count = int(np.searchsorted(table["id"].to_numpy(), last_id, side="right"))
        self._left = table.slice(count)
        return table.slice(0, count)
