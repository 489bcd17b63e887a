"""Tar files of images, as written by WebDataset."""

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
from nst_data.sources.files import OpenFile
from nst_data.sources.labels import LabelsAsked, encode, number_labels, whole_numbers
from nst_data.sources.listing import listed, write_listing
from nst_data.sources.members import documents
from nst_data.sources.pairing import CLASS_SUFFIX, key_of
from nst_data.sources.skipped import phrase
from nst_data.sources.source import Content, Row, Source, Wanted, in_pieces, rows_of_table
from nst_data.sources.tar_index import TarHeaders, read_index, skipped_in
from nst_data.store.indexes import Indexes

_INTEGER = re.compile(r"-?\d+")


class TarFiles(Source):
    """Images in plain tar files, in the order of the files and of their members.

    `names` are the names of the files in keys and in the listing. The member `stem.cls` next to `stem.jpg` holds its class. The
    positions of members are found once, by reading every header, and stored in `indexes`.
    """

    _files_at_once = 4  # number of files whose headers are read concurrently; few, for disks that seek

    def __init__(
        self, location: str, files: Sequence[str], names: Sequence[str], labels: LabelsAsked | None, indexes: Indexes | None = None
    ) -> None:
        super().__init__(location)
        self._files, self._names = files, names
        self._marks = self._look()
        self._listing = listed([(list(names), [size for size, _ in self._marks])])
        classes: list[str] | None = [] if labels else None
        headers = TarHeaders(files, self._opened, self._files_at_once)
        self._index = self._kept_index(headers, indexes) if classes is None else headers.index(classes)
        self.skipped = skipped_in(self._index)
        if not len(self):
            but = f", but {phrase(self.skipped)}" if self.skipped else ""
            raise NstError(f"{location}: expected images in the tar files, found none{but}")
        if labels is not None and classes is not None:
            self.labels, self.class_names = _numbered(classes, location, labels.names)

    def __len__(self) -> int:
        return int(self._index.num_rows)

    def key(self, row: int) -> str:
        """The key `tar:member`; a repeated member name has its number appended from the second one on, as in `tar:member#2`."""
        return self._key(row, self._index["file"][row].as_py(), self._index["name"][row].as_py())

    def read(self, row: int) -> bytes:
        """The bytes of the row's member."""
        return bytes(Row(row, "", self._content(self._index.slice(row, 1).to_pylist()[0])).read())

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """The wanted members; each is read when its row is read."""
        for piece in in_pieces(wanted, 1024):
            for row, entry in zip(piece.tolist(), rows_of_table(self._index, piece).to_pylist(), strict=True):
                yield Row(row, self._key(row, entry["file"], entry["name"]), self._content(entry))

    def rows_of_files(self, files: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row numbers of all images stored in the given tar files."""
        return np.flatnonzero(pc.is_in(self._index["file"], pa.array(files, pa.int32())).to_numpy(zero_copy_only=False))

    def documents(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The row of each image whose sample has a `.json` member, and its JSON object. Raises NstError for any other content."""
        for file, path in enumerate(self._files):
            objects: dict[str, dict[str, Any]] = {}
            with self._opened(file) as opened:
                for name, content in documents(opened):
                    if key_of(name) in objects:
                        raise NstError(f"{path}: {name} comes several times; expected one .json member in each sample")
                    objects[key_of(name)] = _object(path, name, content)
            rows = self.rows_of_files(np.array([file])) if objects else np.empty(0, np.int64)
            for row, name in zip(rows.tolist(), self._index["name"].take(pa.array(rows)).to_pylist(), strict=True):
                if key_of(name) in objects:
                    yield row, objects[key_of(name)]

    def _paths(self) -> Sequence[str]:
        return self._files

    def _look(self) -> Sequence[tuple[int, int | str]]:
        """Size of each file, and its times: a copying program may restore mtime, but ctime still reveals a change."""
        stats = map(os.stat, self._files)
        return [(stat.st_size, f"{stat.st_mtime_ns} {stat.st_ctime_ns}") for stat in stats]

    def _place(self, file: str) -> str:
        return os.path.abspath(file)

    def _opened(self, file: int) -> AbstractContextManager[BinaryIO]:
        """Open a file to read it once, from header to header."""
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
        """The rows whose member name occurred earlier in their file, each with how often it has occurred so far, itself included."""
        repeats = {}
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
                    repeats[first + row] = counted[name]
        return repeats

    def _content(self, entry: dict[str, Any]) -> Content:
        problem = entry["problem"]
        return NstError(problem) if problem is not None else partial(self._read, entry["file"], entry["offset"], entry["size"])

    def _read(self, file: int, offset: int, size: int) -> bytes:
        return _opened(self._files[file], *self._marks[file]).read(size, offset)

    def _kept_index(self, headers: TarHeaders, indexes: Indexes | None) -> pa.Table:
        if indexes is None:
            return headers.index()
        index = self._index_in(indexes)
        if index is None:
            index = headers.index()
            indexes.keep(self._index_name, partial(write_listing, table=index))
            index = self._index_in(indexes) or index  # the stored index replaces the temporary file
        return index

    def _index_in(self, indexes: Indexes) -> pa.Table | None:
        """The stored index of these files, or None if there is none or it is damaged."""
        try:
            path = indexes.find(self._index_name)
        except (OSError, ValueError):
            return None
        return None if path is None else read_index(path, len(self._files))

    @property
    def _index_name(self) -> str:
        """The name of the stored index, which changes when a file is rewritten."""
        digest = hashlib.sha256(json.dumps([[self._place(file) for file in self._files], self._marks]).encode()).hexdigest()
        return f"{digest}.arrow"


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
    """(labels, class names): classes are read as numbers if all are numbers, else as text."""
    what = f"{location}: `{CLASS_SUFFIX}`"
    if all(map(_INTEGER.fullmatch, classes)):
        return number_labels([int(text) for text in classes], None, what, most_names)
    numbers = whole_numbers(words := sorted(set(classes)), what)
    if numbers is None:
        return encode(classes)
    number_of = dict(zip(words, numbers, strict=True))
    return number_labels([number_of[text] for text in classes], None, what, most_names)


@lru_cache(maxsize=64)
def _opened(path: str, size: int, modified_ns: int | str) -> OpenFile:
    """An open file, shared by threads and forked processes since reading at an offset moves no file position."""
    return OpenFile(path, size)
