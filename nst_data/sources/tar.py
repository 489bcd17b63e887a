"""Tar files of images, as WebDataset writes them."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, lru_cache, partial
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.sources.files import OpenFile, check_whole
from nst_data.sources.labels import LabelsAsked, encode, number_labels, whole_numbers
from nst_data.sources.listing import PIECE, Spool, listed, read_listing, utf8, write_listing
from nst_data.sources.members import Member, documents, members
from nst_data.sources.pairing import CLASS_SUFFIX, Part, classes_of_members, is_class, key_of
from nst_data.sources.skipped import Skipped, phrase
from nst_data.sources.source import Content, Row, Source, Wanted, in_pieces, rows_of_table
from nst_data.store.indexes import Indexes

_INDEX = pa.schema(
    [("file", pa.int32()), ("name", pa.large_string()), ("offset", pa.int64()), ("size", pa.int64()), ("problem", pa.large_string())]
)
_MOST_CLASS_BYTES = 1024
_INTEGER = re.compile(r"-?\d+")
_SKIPPED = b"skipped"  # counts, in the metadata of an index


class TarFiles(Source):
    """Images in plain tar files, in the order of the files and of the members in them.

    `names` are the files' in keys and in the listing. The member `stem.cls` beside `stem.jpg` is its class. Where the members lie is
    found out once, by reading every header, and kept in `indexes`.
    """

    def __init__(
        self, location: str, files: Sequence[str], names: Sequence[str], labels: LabelsAsked | None, indexes: Indexes | None = None
    ) -> None:
        super().__init__(location)
        self._files, self._names = files, names
        self._marks = self._look()
        self._listing = listed([(list(names), [size for size, _ in self._marks])])
        self._skipped = Skipped()
        classes: list[str] | None = [] if labels else None
        self._index = self._kept_index(indexes) if classes is None else self._read_index(classes)
        self.skipped = json.loads((self._index.schema.metadata or {}).get(_SKIPPED, b"{}"))
        if not len(self):
            but = f", but {phrase(self.skipped)}" if self.skipped else ""
            raise NstError(f"{location}: expected images in the tar files, found none{but}")
        if labels is not None and classes is not None:
            self.labels, self.class_names = _numbered(classes, location, labels.names)

    def __len__(self) -> int:
        return int(self._index.num_rows)

    def key(self, row: int) -> str:
        """tar:member; from the second member of a name on its number too, as in tar:member#2."""
        return self._key(row, self._index["file"][row].as_py(), self._index["name"][row].as_py())

    def read(self, row: int) -> bytes:
        """The member's bytes."""
        return bytes(Row(row, "", self._content(self._index.slice(row, 1).to_pylist()[0])).read())

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """The wanted members; each is read when its row is."""
        for piece in in_pieces(wanted, 1024):
            for row, entry in zip(piece.tolist(), rows_of_table(self._index, piece).to_pylist(), strict=True):
                yield Row(row, self._key(row, entry["file"], entry["name"]), self._content(entry))

    def rows_of_files(self, files: NDArray[np.int64]) -> NDArray[np.int64]:
        """As the index says."""
        return np.flatnonzero(pc.is_in(self._index["file"], pa.array(files, pa.int32())).to_numpy(zero_copy_only=False))

    def documents(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The row of each image with a `.json` member in its sample, and the object in that. Raises NstError for any other content."""
        for file, path in enumerate(self._files):
            found: dict[str, dict[str, Any]] = {}
            with self._opened(file) as opened:
                for name, content in documents(opened):
                    if key_of(name) in found:
                        raise NstError(f"{path}: {name} comes several times; expected one .json member in each sample")
                    found[key_of(name)] = _object(path, name, content)
            rows = self.rows_of_files(np.array([file])) if found else np.empty(0, np.int64)
            for row, name in zip(rows.tolist(), self._index["name"].take(pa.array(rows)).to_pylist(), strict=True):
                if key_of(name) in found:
                    yield row, found[key_of(name)]

    def _paths(self) -> Sequence[str]:
        return self._files

    def _look(self) -> Sequence[tuple[int, int | str]]:
        """Of each file its size, and what changes with its content."""
        found = map(os.stat, self._files)
        return [(stat.st_size, stat.st_mtime_ns) for stat in found]

    def _place(self, file: str) -> str:
        return os.path.abspath(file)

    def _opened(self, file: int) -> AbstractContextManager[BinaryIO]:
        """To read a file once, from header to header."""
        return open(self._files[file], "rb")

    def _keys(self) -> Iterator[pa.Array]:
        start = 0
        for batch in self._index.to_batches():
            rows = zip(range(start, start + len(batch)), batch["file"].to_pylist(), batch["name"].to_pylist(), strict=True)
            yield pa.array([self._key(*row) for row in rows], type=pa.large_string())
            start += len(batch)

    def _key(self, row: int, file: int, name: str) -> str:
        number = f"#{self._repeated[row]}" if row in self._repeated else ""
        return f"{self._names[file]}:{name}{number}"

    @cached_property
    def _repeated(self) -> dict[int, int]:
        """The rows whose name came before in their file, and how many times it has been there with each."""
        found = {}
        ends = np.searchsorted(self._index["file"].to_numpy(), np.arange(len(self._files) + 1))
        for first, last in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
            names = self._index["name"].slice(first, last - first)
            hashes = pl.Series(names).hash().to_numpy()
            values, counts = np.unique(hashes, return_counts=True)
            if len(values) == len(hashes):
                continue
            counted = Counter[str]()
            for row in np.flatnonzero(np.isin(hashes, values[counts > 1])).tolist():
                name = names[row].as_py()
                counted[name] += 1
                if counted[name] > 1:
                    found[first + row] = counted[name]
        return found

    def _content(self, entry: dict[str, Any]) -> Content:
        problem = entry["problem"]
        return NstError(problem) if problem is not None else partial(self._read, entry["file"], entry["offset"], entry["size"])

    def _read(self, file: int, offset: int, size: int) -> bytes:
        return _opened(self._files[file], *self._marks[file]).read(size, offset)

    def _read_index(self, classes: list[str] | None = None) -> pa.Table:
        spool = Spool(_INDEX)
        for columns in self._indexed(classes):
            spool.append(columns)
        return spool.table().replace_schema_metadata({_SKIPPED: json.dumps(self._skipped.counts)})

    def _kept_index(self, indexes: Indexes | None) -> pa.Table:
        if indexes is None:
            return self._read_index()
        index = self._index_in(indexes)
        if index is None:
            index = self._read_index()
            indexes.keep(self._index_name, partial(write_listing, table=index))
            index = self._index_in(indexes) or index  # so that no temporary file stays
        return index

    def _index_in(self, indexes: Indexes) -> pa.Table | None:
        """What is kept there of where the members lie; None where nothing is, or it is damaged."""
        try:
            if (kept := indexes.find(self._index_name)) is None:
                return None
            index = read_listing(kept)
            index.validate(full=True)
            json.loads((index.schema.metadata or {}).get(_SKIPPED, b"{}"))
        except (OSError, ValueError, pa.ArrowException):
            return None
        return index if index.schema.equals(_INDEX) and _is_sound(index, len(self._files)) else None

    @property
    def _index_name(self) -> str:
        """Another one for files that were written to since."""
        digest = hashlib.sha256(json.dumps([[self._place(file) for file in self._files], self._marks]).encode()).hexdigest()
        return f"{digest}.arrow"

    def _indexed(self, classes: list[str] | None) -> Iterator[list[pa.Array]]:
        """The columns of the index, piece by piece; the class of each image is added to `classes`."""
        waiting: list[tuple[int, Member]] = []
        for file, path in enumerate(self._files):
            samples: list[Part] = []
            with self._opened(file) as opened:
                for member in members(path, opened, self._skipped):
                    has_class = is_class(member.name)
                    if not (has_class or member.is_skipped):
                        waiting.append((file, member))
                    if classes is not None and member.name.startswith("@"):
                        raise NstError(f"{path}: {member.problem}")  # the rest may hold the class of any image
                    if classes is not None:
                        samples.append(Part(member.name, _class(path, opened, member) if has_class else None, member.is_skipped))
                    if len(waiting) == PIECE:
                        yield _columns(waiting)
                        waiting.clear()
            if classes is not None:
                classes += classes_of_members(samples, path)
        yield _columns(waiting)


def _is_sound(index: pa.Table, files: int) -> bool:
    """Whether each member of an index is in one of so many files, at a place that there may be."""
    known = all(not index[name].null_count for name in ("file", "name", "offset", "size"))
    least = {name: pc.min(index[name]).as_py() or 0 for name in ("file", "offset", "size")}
    return known and min(least.values()) >= 0 and (pc.max(index["file"]).as_py() or 0) < files


def _class(path: str, file: BinaryIO, member: Member) -> str:
    where = f"{path}: {member.name}"
    expected = "expected one line with a class number or UTF-8 name"
    if member.problem is not None:
        raise NstError(f"{where}: {member.problem}")
    if member.size > _MOST_CLASS_BYTES:
        raise NstError(f"{where}: {expected}, found {member.size:,} bytes")
    file.seek(member.offset)
    content = file.read(member.size)
    check_whole(len(content), member.size)
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise NstError(f"{where}: {expected}") from None
    if len(text.splitlines()) > 1 or "\0" in text:
        raise NstError(f"{where}: {expected}, found {text[:40]!r}")
    return text


def _object(path: str, name: str, content: bytes | None) -> dict[str, Any]:
    if content is None:
        raise NstError(f"{path}: {name}: expected a JSON object, found many megabytes")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise NstError(f"{path}: {name}: expected a JSON object, found other text") from None
    if not isinstance(value, dict):
        raise NstError(f"{path}: {name}: expected a JSON object, found {type(value).__name__}")
    return value


def _numbered(classes: list[str], location: str, most_names: int) -> tuple[NDArray[np.int64], list[str]]:
    """(labels, class names): numbers, where all classes are, else text."""
    what = f"{location}: `{CLASS_SUFFIX}`"
    if all(map(_INTEGER.fullmatch, classes)):
        return number_labels([int(text) for text in classes], None, what, most_names)
    numbers = whole_numbers(words := sorted(set(classes)), what)
    if numbers is None:
        return encode(classes)
    number_of = dict(zip(words, numbers, strict=True))
    return number_labels([number_of[text] for text in classes], None, what, most_names)


def _columns(found: list[tuple[int, Member]]) -> list[pa.Array]:
    names, offsets, sizes, problems = zip(*(member[:4] for _, member in found), strict=True) if found else ((), (), (), ())
    return [
        pa.array([file for file, _ in found], type=pa.int32()),
        utf8(list(names)),
        pa.array(offsets, type=pa.int64()),
        pa.array(sizes, type=pa.int64()),
        pa.array(problems, type=pa.large_string()),
    ]


@lru_cache(maxsize=64)
def _opened(path: str, size: int, modified_ns: int | str) -> OpenFile:
    """Reading at an offset moves no position, so threads and forked processes share these."""
    return OpenFile(path, size)
