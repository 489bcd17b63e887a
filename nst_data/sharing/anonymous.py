"""Versions without anything that identifies their source images: no keys, and row numbers instead of hashes.

An image hash lets anyone test whether they hold an image of the pool; a perceptual hash, even whether they hold a modified copy.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nst_data.errors import NstError
from nst_data.hub.licenses import strip_custom_names
from nst_data.store.files import atomic_write
from nst_data.store.inputs import Input
from nst_data.store.manifest import ANONYMOUS, Manifest, SealedFile, content_digest
from nst_data.store.version import VERSION_REF, Version
from nst_data.tables.shards import parquet_writer, table_files

_TABLES = ("pseudo_labels", "balanced", "answered", "errors")


def anonymous_copy(version: Version, manifest: Manifest, folder: Path, advance: Callable[[int], None] = lambda _: None) -> Manifest:
    """Write a version's tables without keys and hashes below `folder`, with the same row groups. Returns the changed `manifest`.

    Sources are not named either, as the digest of a pool lets others test whether they hold it. The version gets a new digest.
    """
    if problems := version.verify():
        raise NstError(f"{version.ref} is damaged: {'; '.join(problems)}; nothing was pushed")
    files: dict[str, SealedFile] = {}
    for table in _TABLES:
        if not (version.folder / table).is_dir():
            continue
        row_count = 0
        (folder / table).mkdir(parents=True)
        for file in table_files(version.folder, table):
            with pq.ParquetFile(file) as parquet, atomic_write(folder / table / file.name) as out:
                schema = parquet.schema_arrow
                with parquet_writer(out, schema) as writer:
                    for group in range(parquet.num_row_groups):
                        rows = parquet.read_row_group(group)
                        writer.write_table(_anonymize_rows(rows, row_count), row_group_size=max(1, rows.num_rows))
                        row_count += rows.num_rows
            files[f"{table}/{file.name}"] = out.sealed
            advance(1)
    return without_sources(version, manifest, files)


def without_sources(version: Version, manifest: Manifest, files: dict[str, SealedFile]) -> Manifest:
    """The manifest of a version with the given files, in which only inputs that are versions are named."""

    def anonymize_input(_: str, entry: Input) -> Input:
        return (
            entry
            if VERSION_REF.fullmatch(entry.ref)
            else Input(ref="not said", digest="", license=strip_custom_names(entry.license) if entry.license else None)
        )

    inputs = manifest.request.inputs.map_entries(anonymize_input)
    original = Input(ref=version.ref, digest=version.manifest.digest)
    inputs = type(inputs)(**inputs.by_role | {"original": original})
    request = manifest.request.model_copy(update={"settings": manifest.request.settings | {ANONYMOUS: True}, "inputs": inputs})
    digest = content_digest(request, files, manifest.class_names)
    return manifest.model_copy(update={"request": request, "files": files, "digest": digest})


def _anonymize_rows(rows: pa.Table, first_row: int) -> pa.Table:
    numbers = np.arange(first_row, first_row + rows.num_rows)
    columns = {
        "id": pa.array(numbers),
        "key": pa.array([""] * rows.num_rows),
        "image_hash": pa.array([f"{number:032x}" for number in numbers]),
        "phash": pa.array(np.zeros(rows.num_rows, np.int64)),
    }
    for name in rows.column_names:
        if name in columns:
            rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), columns[name].cast(rows.schema.field(name).type))
        elif name == "image":
            images = rows[name].combine_chunks()
            bare = pa.StructArray.from_arrays([images.field("bytes"), pa.nulls(len(images), pa.string())], ["bytes", "path"])
            rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), bare)
        elif name == "reason":  # a reason may name a file
            rows = rows.set_column(
                rows.column_names.index(name), rows.schema.field(name), pa.array(["not said"] * rows.num_rows, pa.string())
            )
    return rows
