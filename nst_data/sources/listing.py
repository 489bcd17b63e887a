"""The names and sizes that pin a pool, as an Arrow table; kept in a file, processes share its pages and memory stays flat."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from nst_data.errors import NstError
from nst_data.files import fsync_folder, replacing

PIECE = 65_536
_SCHEMA = pa.schema([("name", pa.large_string()), ("bytes", pa.int64())])


@dataclass(frozen=True)
class Listing:
    """`table` has the columns name and bytes; `fingerprint` is a sha256 over both."""

    table: pa.Table
    fingerprint: str


class Spool:
    """Record batches one after the other: in memory or, where a folder is given, in a file there that is memory-mapped at the end."""

    def __init__(self, schema: pa.Schema, folder: Path | None) -> None:
        self._schema, self._folder = schema, folder
        self._batches: list[pa.RecordBatch] = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            number, self._temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
            os.fchmod(number, 0o644)
            self._file = os.fdopen(number, "wb")
            self._writer = pa.ipc.new_file(self._file, schema)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._file.close()
            Path(self._temporary).unlink(missing_ok=True)

    def append(self, columns: list[pa.Array]) -> None:
        """Add one batch."""
        batch = pa.record_batch(columns, schema=self._schema)
        if self._folder is None:
            self._batches.append(batch)
        else:
            self._writer.write_batch(batch)

    def table(self, name: str) -> pa.Table:
        """All batches; in the folder the file has this name from now on."""
        if self._folder is None:
            return pa.Table.from_batches(self._batches, schema=self._schema)
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        Path(self._temporary).replace(self._folder / name)
        fsync_folder(self._folder)
        return read_listing(self._folder / name)


def write_listing(file: Path, table: pa.Table) -> None:
    """Keep a listing in a file, for `read_listing`."""
    with replacing(file) as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)


def read_listing(file: Path) -> pa.Table:
    """The memory-mapped table in a file that a source wrote."""
    with pa.memory_map(str(file)) as mapped:
        return pa.ipc.open_file(mapped).read_all()


def listed(entries: Iterable[tuple[list[str], list[int]]], folder: Path | None = None) -> Listing:
    """A listing of (names, sizes), given piece by piece; in `folder`, where given, as `<fingerprint>.arrow`."""
    all_names, all_sizes, separator = hashlib.sha256(), hashlib.sha256(), b""
    with Spool(_SCHEMA, folder) as spool:
        for names, sizes in _regrouped(entries):
            column, numbers = utf8(names), np.array(sizes, dtype=np.int64)
            all_names.update(separator + "\0".join(names).encode())
            all_sizes.update(numbers.tobytes())
            separator = b"\0"
            spool.append([column, pa.array(numbers)])
        digest = hashlib.sha256(json.dumps([all_names.hexdigest(), all_sizes.hexdigest()]).encode()).hexdigest()
        return Listing(spool.table(f"{digest}.arrow"), digest)


def _regrouped(entries: Iterable[tuple[list[str], list[int]]]) -> Iterator[tuple[list[str], list[int]]]:
    """Pieces of some size from many small ones: a folder may hold a single image."""
    names: list[str] = []
    sizes: list[int] = []
    for more_names, more_sizes in entries:
        names += more_names
        sizes += more_sizes
        if len(names) >= PIECE:
            yield names, sizes
            names, sizes = [], []
    if names:
        yield names, sizes


def utf8(names: list[str]) -> pa.Array:
    """File names as Arrow text. Raises NstError for one that is not in UTF-8."""
    try:
        return pa.array(names, type=pa.large_string())
    except UnicodeEncodeError:
        odd = next(name for name in names if not _is_utf8(name))
        raise NstError(f"{os.fsencode(odd)!r}: expected file names in UTF-8; rename this file") from None


def _is_utf8(name: str) -> bool:
    try:
        return bool(name.encode()) or True
    except UnicodeEncodeError:
        return False


def what_changed(before: pa.Table, now: pa.Table) -> str:
    """How one listing differs from an earlier one, in a phrase for a person; empty where they are equal."""
    if before.equals(now):
        return ""
    if before.num_rows == now.num_rows == 1 and before["name"] != now["name"]:
        return f"{before['name'][0].as_py()!r} before, {now['name'][0].as_py()!r} now"
    old, new = (_once(table) for table in (before, now))
    more = new.join(old, on="name", how="anti", maintain_order="left")
    gone = old.join(new, on="name", how="anti", maintain_order="left")
    resized = old.join(new, on="name", maintain_order="left", suffix="_now").filter(pl.col("bytes") != pl.col("bytes_now"))
    firsts = pl.collect_all([frame.select(pl.len().alias("count"), pl.all().first()) for frame in (more, gone, resized)])
    found = [(first.row(0, named=True), what) for first, what in zip(firsts, ("more", "gone", "of another size"), strict=True)]
    return _phrase([(first, what) for first, what in found if first["count"]]) or "the same images in another order or number"


def _once(table: pa.Table) -> pl.LazyFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy().unique("name", keep="first", maintain_order=True)


def _phrase(found: list[tuple[dict[str, Any], str]]) -> str:
    parts: list[str] = []
    for first, what in found:
        count, example = first["count"], repr(first["name"])
        if "bytes_now" in first:
            example += f": {first['bytes']:,} bytes before, {first['bytes_now']:,} now"
        noun = "" if parts else (" file" if first["name"].endswith((".parquet", ".tar")) else " image") + "s" * (count > 1)
        parts.append(f"{count:,}{noun} {what} ({example if count == 1 else 'the first is ' + example})")
    return ", ".join(parts)
