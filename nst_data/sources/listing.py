"""The names and sizes that identify a pool, as an Arrow table; with millions of files it is kept in a temporary file to save memory."""

import hashlib
import json
import mmap
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.store.files import atomic_write

PIECE, IN_MEMORY_ROWS = 65_536, 2**20
_SCHEMA = pa.schema([("name", pa.large_string()), ("bytes", pa.int64())])


@dataclass(frozen=True)
class Listing:
    """`table` has the columns `name` and `bytes`; `fingerprint` is a SHA-256 over both."""

    table: pa.Table
    fingerprint: str


class Spool:
    """Collects record batches in memory or, beyond a number of rows, in an unnamed temporary file that is memory-mapped.

    `n_spools` is how many are in use at a time; together they use the memory of one.
    """

    def __init__(self, schema: pa.Schema, n_spools: int = 1) -> None:
        self._schema, self._in_memory_rows = schema, IN_MEMORY_ROWS // n_spools
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        self._file: IO[bytes] | None = None

    def append(self, columns: list[pa.Array]) -> None:
        """Add one batch."""
        self._batches.append(pa.record_batch(columns, schema=self._schema))
        self._rows += self._batches[-1].num_rows
        if self._rows > self._in_memory_rows:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - `table` closes it
                self._writer = pa.ipc.new_file(self._file, self._schema)
            for batch in self._batches:
                self._writer.write_batch(batch)
            self._batches.clear()

    def table(self) -> pa.Table:
        """All batches as one table."""
        if self._file is None:
            return pa.Table.from_batches(self._batches, schema=self._schema)
        self._writer.close()
        self._file.flush()
        with self._file:  # the mapping stays valid after the file is closed
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return pa.ipc.open_file(pa.py_buffer(mapped)).read_all()


def write_listing(file: Path, table: pa.Table) -> None:
    """Write a listing to a file, for `read_listing`."""
    with atomic_write(file) as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)


def read_listing(file: Path) -> pa.Table:
    """The memory-mapped table in a file that `write_listing` wrote."""
    with pa.memory_map(str(file)) as mapped:
        return pa.ipc.open_file(mapped).read_all()


def build_listing(entries: Iterable[tuple[list[str], list[int]]]) -> Listing:
    """The listing of (names, sizes), given in pieces."""
    spool, fingerprint = Spool(_SCHEMA), _Fingerprint()
    for names, sizes in _regroup(entries):
        column, numbers = to_utf8_array(names), np.array(sizes, dtype=np.int64)
        fingerprint.add("\0".join(names).encode(), numbers)
        spool.append([column, pa.Int64Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])])
    return Listing(spool.table(), fingerprint.hexdigest())


def listing_from_table(table: pa.Table) -> Listing:
    """The listing in the `name` and `bytes` columns of a table, which must not contain nulls."""
    table, fingerprint = table.select(_SCHEMA.names), _Fingerprint()
    for batch in table.to_batches(PIECE):
        names = pa.ListArray.from_arrays(pa.array([0, len(batch)], pa.int32()), batch["name"].cast(pa.string()))
        fingerprint.add(pc.binary_join(names, "\0")[0].as_buffer(), batch["bytes"].to_numpy())
    return Listing(table, fingerprint.hexdigest())


class _Fingerprint:
    """Fingerprint of names and sizes, independent of the pieces in which they are added."""

    def __init__(self) -> None:
        self._names, self._sizes, self._separator = hashlib.sha256(), hashlib.sha256(), b""

    def add(self, names: bytes, sizes: NDArray[np.int64]) -> None:
        """Add names, joined by zero bytes, and their sizes."""
        self._names.update(self._separator)
        self._names.update(names)
        self._sizes.update(sizes.tobytes())
        self._separator = b"\0"

    def hexdigest(self) -> str:
        """The SHA-256 over everything added."""
        return hashlib.sha256(json.dumps([self._names.hexdigest(), self._sizes.hexdigest()]).encode()).hexdigest()


def _regroup(entries: Iterable[tuple[list[str], list[int]]]) -> Iterator[tuple[list[str], list[int]]]:
    """Merge small pieces into larger ones: a folder may hold a single image."""
    names: list[str] = []
    sizes: list[int] = []
    for new_names, new_sizes in entries:
        names += new_names
        sizes += new_sizes
        if len(names) >= PIECE:
            yield names, sizes
            names, sizes = [], []
    if names:
        yield names, sizes


def to_utf8_array(names: list[str]) -> pa.Array:
    """Names as an Arrow array of UTF-8 text.

    Built from buffers, because `pa.array` would import pandas to check for a Series.
    """
    encoded = [name.encode() for name in names]
    offsets = np.zeros(len(names) + 1, np.int64)
    np.cumsum([len(name) for name in encoded], out=offsets[1:])
    return pa.LargeStringArray.from_buffers(len(names), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def what_changed(before: pa.Table, now: pa.Table) -> str:
    """A phrase for the user about how a listing differs from an earlier one; empty if they are equal."""
    if before.equals(now):
        return ""
    if before.num_rows == now.num_rows == 1 and before["name"] != now["name"]:
        return f"{before['name'][0].as_py()!r} before, {now['name'][0].as_py()!r} now"
    old, new = (_unique_names(table) for table in (before, now))
    added = new.join(old, on="name", how="anti", maintain_order="left")
    removed = old.join(new, on="name", how="anti", maintain_order="left")
    resized = old.join(new, on="name", maintain_order="left", suffix="_now").filter(pl.col("bytes") != pl.col("bytes_now"))
    firsts = pl.collect_all([frame.select(pl.len().alias("count"), pl.all().first()) for frame in (added, removed, resized)])
    changes = [(first.row(0, named=True), change) for first, change in zip(firsts, ("more", "gone", "of another size"), strict=True)]
    return (
        _describe_changes([(first, change) for first, change in changes if first["count"]]) or "the same images in another order or number"
    )


def _unique_names(table: pa.Table) -> pl.LazyFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy().unique("name", keep="first", maintain_order=True)


def _describe_changes(changes: list[tuple[dict[str, Any], str]]) -> str:
    phrases: list[str] = []
    for first, change in changes:
        count, example = first["count"], repr(first["name"])
        if "bytes_now" in first:
            example += f": {first['bytes']:,} bytes before, {first['bytes_now']:,} now"
        noun = "" if phrases else (" file" if first["name"].endswith((".parquet", ".tar")) else " image") + "s" * (count > 1)
        phrases.append(f"{count:,}{noun} {change} ({example if count == 1 else 'the first is ' + example})")
    return ", ".join(phrases)
