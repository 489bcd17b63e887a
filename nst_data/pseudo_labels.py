"""The table `pseudo_labels`: its shard plan, writing a shard whole or not at all, reading it back."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.files import replacing, write_text
from nst_data.manifest import SealedFile
from nst_data.schema import errors_schema

ROW_GROUP_ROWS = 10_000


@dataclass(frozen=True)
class ShardPlan:
    """How the rows of a pool fall into shards. A shard's rows depend on nothing else."""

    rows: int
    rows_per_shard: int

    def __len__(self) -> int:
        return -(-self.rows // self.rows_per_shard)

    def bounds(self, shard: int) -> tuple[int, int]:
        """First row of a shard, and the row after its last."""
        start = shard * self.rows_per_shard
        return start, min(start + self.rows_per_shard, self.rows)

    def file(self, shard: int, table: str = "pseudo_labels") -> str:
        """The shard's path in the version."""
        return f"{table}/train-{shard:05d}-of-{len(self):05d}.parquet"


@dataclass
class ShardRows:
    """The rows of one shard while it is being labeled. Arrays have one entry per readable image, `probs` C columns."""

    ids: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    labels: list[NDArray[np.int64]] = field(default_factory=list)
    confidences: list[NDArray[np.float32]] = field(default_factory=list)
    probs: list[NDArray[np.float16]] = field(default_factory=list)
    phashes: list[NDArray[np.int64]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def table(self, schema: pa.Schema) -> pa.Table:
        """The rows as Arrow, in the schema of `pseudo_labels`."""
        classes = schema.field("probs").type.list_size
        probs = np.concatenate([np.empty((0, classes), np.float16), *self.probs])
        columns = {
            "id": np.array(self.ids, dtype=np.int64),
            "key": pa.array(self.keys, pa.string()),
            "image_hash": pa.array(self.hashes, pa.string()),
            "label": np.concatenate([np.empty(0, np.int64), *self.labels]),
            "confidence": np.concatenate([np.empty(0, np.float32), *self.confidences]),
            "probs": pa.FixedSizeListArray.from_arrays(pa.array(probs.ravel()), classes),
            "phash": np.concatenate([np.empty(0, np.int64), *self.phashes]),
        }
        return pa.Table.from_arrays([pa.array(columns[name]) for name in schema.names], schema=schema)


def write_shard(build: Path, work: Path, plan: ShardPlan, shard: int, rows: ShardRows, schema: pa.Schema) -> None:
    """Write a shard, then the note that it is done. Killed between the two, the shard is written again with the same bytes."""
    name = plan.file(shard)
    sealed = write_parquet(build / name, [rows.table(schema)], schema)
    labels = np.concatenate([np.empty(0, np.int64), *rows.labels])
    note = {
        "file": name,
        "sealed": sealed.model_dump(),
        "labeled": len(rows.ids),
        "per_class": np.bincount(labels, minlength=schema.field("probs").type.list_size).tolist(),
        "errors": rows.errors,
    }
    write_text(_note(work, shard), json.dumps(note))


def missing_shards(work: Path, plan: ShardPlan) -> list[int]:
    """The shards that are not done yet."""
    return [shard for shard in range(len(plan)) if not _note(work, shard).is_file()]


def finish(build: Path, work: Path, plan: ShardPlan, class_names: Sequence[str]) -> tuple[dict[str, SealedFile], dict[str, Any]]:
    """Write the `errors` table; return the sealed files and the counts of the whole generation."""
    notes = [json.loads(_note(work, shard).read_text("utf-8")) for shard in range(len(plan))]
    errors = [error for note in notes for error in note["errors"]]
    files = {note["file"]: SealedFile(**note["sealed"]) for note in notes}
    name = ShardPlan(1, 1).file(0, "errors")
    schema = errors_schema()
    files[name] = write_parquet(build / name, [pa.Table.from_pylist(errors, schema=schema)], schema)
    per_class = np.sum([note["per_class"] for note in notes], axis=0)
    counts = {
        "pool": plan.rows,
        "labeled": sum(note["labeled"] for note in notes),
        "errors": len(errors),
        "per_class": dict(zip(class_names, per_class.tolist(), strict=True)),
    }
    return files, counts


def write_parquet(path: Path, tables: Sequence[pa.Table], schema: pa.Schema) -> SealedFile:
    """Write tables as one parquet file: page index, content-defined chunks (so that a Hub stores equal parts once)."""
    with (
        replacing(path) as file,
        pq.ParquetWriter(
            file, schema, compression="zstd", write_page_index=True, use_content_defined_chunking=True, store_schema=True
        ) as writer,
    ):
        for table in tables:
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    return file.sealed


def read_columns(folder: Path, table: str, columns: Sequence[str]) -> pa.Table:
    """Some columns of all shards of a table, in order. Raises NstError where there is none."""
    files = sorted((folder / table).glob("*.parquet"))
    if not files:
        raise NstError(f"{folder}: expected parquet files in {table}/, found none")
    return pa.concat_tables([pq.read_table(file, columns=list(columns)) for file in files])


def _note(work: Path, shard: int) -> Path:
    return work / "shards" / f"{shard:05d}.json"
