"""Index the members of tar files by reading their headers, several files at a time."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from nst_data.errors import NstError
from nst_data.prefetch import map_batches_in_threads
from nst_data.sources.files import check_complete
from nst_data.sources.listing import PIECE, Spool, read_listing, to_utf8_array
from nst_data.sources.members import Member, members
from nst_data.sources.pairing import SampleMember, classes_of_members, is_class_member
from nst_data.sources.skipped import Skipped

_INDEX = pa.schema(
    [("file", pa.int32()), ("name", pa.large_string()), ("offset", pa.int64()), ("size", pa.int64()), ("problem", pa.large_string())]
)
_MAX_CLASS_BYTES = 1024
_SKIPPED = b"skipped"  # key of the counts in the metadata of an index


@dataclass(frozen=True)
class TarHeaders:
    """Reads the headers of tar files, `max_concurrent` files concurrently. `paths` are for errors, `open` opens a file by its number."""

    paths: Sequence[str]
    open: Callable[[int], AbstractContextManager[BinaryIO]]
    max_concurrent: int

    def build_index(self, classes: list[str] | None = None) -> pa.Table:
        """The images, in the order of the files and of their members; if given, `classes` is extended by the class of each.

        Raises NstError for the first file with unsupported content.
        """
        spool, skipped, stopped = Spool(_INDEX), Skipped(), Event()

        def tables() -> Iterator[pa.Table]:
            for _, contents in map_batches_in_threads(
                lambda file: self._read_file(file, classes is not None, stopped), range(len(self.paths)), self.max_concurrent
            ):
                skipped.add(contents.skipped)
                if classes is not None:
                    classes.extend(contents.classes)
                yield contents.table

        try:
            for columns in _regroup(tables()):
                spool.append(columns)
        finally:
            stopped.set()  # else Ctrl-C would wait until the files in progress are read to the end
        return spool.table().replace_schema_metadata({_SKIPPED: json.dumps(skipped.counts)})

    def _read_file(self, file: int, has_classes: bool, stop_event: Event) -> "_FileContents":
        path, skipped = self.paths[file], Skipped()
        spool = Spool(_INDEX, self.max_concurrent)
        waiting: list[Member] = []
        samples: list[SampleMember] = []
        with self.open(file) as opened:
            for member in members(path, opened, skipped):
                if stop_event.is_set():
                    return _FileContents(spool.table(), skipped, [])
                if not (is_class_member(member.name) or member.is_skipped):
                    waiting.append(member)
                if has_classes:
                    samples.append(_sample_member(path, opened, member))
                if len(waiting) == PIECE:
                    spool.append(_member_columns(file, waiting))
                    waiting.clear()
        spool.append(_member_columns(file, waiting))
        return _FileContents(spool.table(), skipped, classes_of_members(samples, path))


@dataclass(frozen=True)
class _FileContents:
    """The content of one tar file."""

    table: pa.Table
    skipped: Skipped
    classes: list[str]


def skipped_counts(index: pa.Table) -> dict[str, int]:
    """Number of files by suffix that were skipped when the index was built."""
    counts: dict[str, int] = json.loads((index.schema.metadata or {}).get(_SKIPPED, b"{}"))
    return counts


def read_index(path: Path, n_files: int) -> pa.Table | None:
    """The stored index of `n_files` tar files, or None if it is damaged."""
    try:
        index = read_listing(path)
        index.validate(full=True)
        skipped_counts(index)
    except (OSError, ValueError, pa.ArrowException):
        return None
    return index if index.schema.equals(_INDEX) and _is_valid(index, n_files) else None


def _is_valid(index: pa.Table, n_files: int) -> bool:
    """Whether every member of an index has a valid offset in one of `n_files` files."""
    is_complete = all(not index[name].null_count for name in ("file", "name", "offset", "size"))
    minima = {name: pc.min(index[name]).as_py() or 0 for name in ("file", "offset", "size")}
    return is_complete and min(minima.values()) >= 0 and (pc.max(index["file"]).as_py() or 0) < n_files


def _regroup(tables: Iterable[pa.Table]) -> Iterator[list[pa.Array]]:
    """Merge tables into pieces of many rows: a tar file may hold a single image."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in (batch for table in tables for batch in table.to_batches()):
        waiting.append(batch)
        rows += len(batch)
        if rows >= PIECE:
            yield _combine(waiting)
            waiting, rows = [], 0
    yield _combine(waiting)


def _combine(batches: list[pa.RecordBatch]) -> list[pa.Array]:
    return [column.combine_chunks() for column in pa.Table.from_batches(batches, schema=_INDEX).columns]


def _member_columns(file: int, entries: list[Member]) -> list[pa.Array]:
    names, offsets, sizes, problems = zip(*(member[:4] for member in entries), strict=True) if entries else ((), (), (), ())
    return [
        pa.array([file] * len(entries), type=pa.int32()),
        to_utf8_array(list(names)),
        pa.array(offsets, type=pa.int64()),
        pa.array(sizes, type=pa.int64()),
        pa.array(problems, type=pa.large_string()),
    ]


def _sample_member(path: str, file: BinaryIO, member: Member) -> SampleMember:
    if member.is_lost_rest:
        raise NstError(f"{path}: {member.problem}")  # the rest may hold the class of any image
    return SampleMember(member.name, _read_class(path, file, member) if is_class_member(member.name) else None, member.is_skipped)


def _read_class(path: str, file: BinaryIO, member: Member) -> str:
    location = f"{path}: {member.name}"
    expected = "expected one line with a class number or UTF-8 name"
    if member.problem is not None:
        raise NstError(f"{location}: {member.problem}")
    if member.size > _MAX_CLASS_BYTES:
        raise NstError(f"{location}: {expected}, found {member.size:,} bytes")
    file.seek(member.offset)
    content = file.read(member.size)
    check_complete(len(content), member.size)
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise NstError(f"{location}: {expected}") from None
    if len(text.splitlines()) > 1 or "\0" in text:
        raise NstError(f"{location}: {expected}, found {text[:40]!r}")
    return text
