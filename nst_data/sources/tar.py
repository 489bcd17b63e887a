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
from nst_data.sources.labels import LabelOptions, encode_names, labels_from_numbers, parse_class_numbers
from nst_data.sources.listing import build_listing, write_listing
from nst_data.sources.members import documents
from nst_data.sources.pairing import CLASS_SUFFIX, sample_key
from nst_data.sources.skipped import describe_skipped
from nst_data.sources.source import Content, Row, RowIndices, Source, in_pieces, rows_of_table
from nst_data.sources.tar_index import TarHeaders, read_index, skipped_counts
from nst_data.store.indexes import Indexes

_INTEGER = re.compile(r"-?\d+")


class TarFiles(Source):
    """Images in plain tar files, in the order of the files and of their members.

    `names` are the names of the files in keys and in the listing. The member `stem.cls` next to `stem.jpg` holds its class. The
    positions of members are found once, by reading every header, and stored in `indexes`.
    """

    _files_at_once = 4  # number of files whose headers are read concurrently; few, for disks that seek

    def __init__(
        self, location: str, files: Sequence[str], names: Sequence[str], labels: LabelOptions | None, indexes: Indexes | None = None
    ) -> None:
        super().__init__(location)
        self._files, self._names = files, names
        self._file_stats = self._stat_files()
        self._listing = build_listing([(list(names), [size for size, _ in self._file_stats])])
        classes: list[str] | None = [] if labels else None
        headers = TarHeaders(files, self._open_file, self._files_at_once)
        self._index = self._load_or_build_index(headers, indexes) if classes is None else headers.build_index(classes)
        self.skipped = skipped_counts(self._index)
        if not len(self):
            skipped_note = f", but {describe_skipped(self.skipped)}" if self.skipped else ""
            raise NstError(f"{location}: expected images in the tar files, found none{skipped_note}")
        if labels is not None and classes is not None:
            self.labels, self.class_names = _encode_classes(classes, location, labels.n_names)

    def __len__(self) -> int:
        return int(self._index.num_rows)

    def key(self, row: int) -> str:
        """The key `tar:member`; a repeated member name has its number appended from the second one on, as in `tar:member#2`."""
        return self._key(row, self._index["file"][row].as_py(), self._index["name"][row].as_py())

    def read(self, row: int) -> bytes:
        """The bytes of the row's member."""
        return bytes(Row(row, "", self._content(self._index.slice(row, 1).to_pylist()[0])).read())

    def rows(self, needed: RowIndices) -> Iterator[Row]:
        """The needed members; each is read when its row is read."""
        for piece in in_pieces(needed, 1024):
            for row, entry in zip(piece.tolist(), rows_of_table(self._index, piece).to_pylist(), strict=True):
                yield Row(row, self._key(row, entry["file"], entry["name"]), self._content(entry))

    def rows_of_files(self, files: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row numbers of all images stored in the given tar files."""
        return np.flatnonzero(pc.is_in(self._index["file"], pa.array(files, pa.int32())).to_numpy(zero_copy_only=False))

    def documents(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The row of each image whose sample has a `.json` member, and its JSON object. Raises NstError for any other content."""
        for file, path in enumerate(self._files):
            objects: dict[str, dict[str, Any]] = {}
            with self._open_file(file) as opened:
                for name, content in documents(opened):
                    if sample_key(name) in objects:
                        raise NstError(f"{path}: {name} comes several times; expected one .json member in each sample")
                    objects[sample_key(name)] = _parse_json_object(path, name, content)
            rows = self.rows_of_files(np.array([file])) if objects else np.empty(0, np.int64)
            for row, name in zip(rows.tolist(), self._index["name"].take(pa.array(rows)).to_pylist(), strict=True):
                if sample_key(name) in objects:
                    yield row, objects[sample_key(name)]

    def _paths(self) -> Sequence[str]:
        return self._files

    def _stat_files(self) -> Sequence[tuple[int, int | str]]:
        """Size of each file, and its times: a copying program may restore mtime, but ctime still reveals a change."""
        stats = map(os.stat, self._files)
        return [(stat.st_size, f"{stat.st_mtime_ns} {stat.st_ctime_ns}") for stat in stats]

    def _canonical_path(self, file: str) -> str:
        return os.path.abspath(file)

    def _open_file(self, file: int) -> AbstractContextManager[BinaryIO]:
        """Open a file to read it once, from header to header."""
        return open(self._files[file], "rb")

    def _keys(self) -> Iterator[pa.Array]:
        start = 0
        for batch in self._index.to_batches():
            rows = zip(range(start, start + len(batch)), batch["file"].to_pylist(), batch["name"].to_pylist(), strict=True)
            yield pa.array([self._key(*row) for row in rows], type=pa.large_string())
            start += len(batch)

    def _key(self, row: int, file: int, name: str) -> str:
        number = f"#{self._repeat_counts[row]}" if row in self._repeat_counts else ""
        return f"{self._names[file]}:{name}{number}"

    @cached_property
    def _repeat_counts(self) -> dict[int, int]:
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
        return NstError(problem) if problem is not None else partial(self._read_range, entry["file"], entry["offset"], entry["size"])

    def _read_range(self, file: int, offset: int, size: int) -> bytes:
        return _open_cached(self._files[file], *self._file_stats[file]).read(size, offset)

    def _load_or_build_index(self, headers: TarHeaders, indexes: Indexes | None) -> pa.Table:
        if indexes is None:
            return headers.build_index()
        index = self._stored_index(indexes)
        if index is None:
            index = headers.build_index()
            indexes.save(self._index_name, partial(write_listing, table=index))
            index = self._stored_index(indexes) or index  # the stored index replaces the temporary file
        return index

    def _stored_index(self, indexes: Indexes) -> pa.Table | None:
        """The stored index of these files, or None if there is none or it is damaged."""
        try:
            path = indexes.find(self._index_name)
        except (OSError, ValueError):
            return None
        return None if path is None else read_index(path, len(self._files))

    @property
    def _index_name(self) -> str:
        """The name of the stored index, which changes when a file is rewritten."""
        digest = hashlib.sha256(json.dumps([[self._canonical_path(file) for file in self._files], self._file_stats]).encode()).hexdigest()
        return f"{digest}.arrow"


def _parse_json_object(path: str, name: str, content: bytes | None) -> dict[str, Any]:
    if content is None:
        raise NstError(f"{path}: {name}: expected a JSON object, found many megabytes")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise NstError(f"{path}: {name}: expected a JSON object, found other text") from None
    if not isinstance(value, dict):
        raise NstError(f"{path}: {name}: expected a JSON object, found {type(value).__name__}")
    return value


def _encode_classes(classes: list[str], location: str, n_names: int) -> tuple[NDArray[np.int64], list[str]]:
    """(labels, class names): classes are read as numbers if all are numbers, else as text."""
    subject = f"{location}: `{CLASS_SUFFIX}`"
    if all(map(_INTEGER.fullmatch, classes)):
        return labels_from_numbers([int(text) for text in classes], None, subject, n_names)
    numbers = parse_class_numbers(unique_texts := sorted(set(classes)), subject)
    if numbers is None:
        return encode_names(classes)
    number_of = dict(zip(unique_texts, numbers, strict=True))
    return labels_from_numbers([number_of[text] for text in classes], None, subject, n_names)


@lru_cache(maxsize=64)
def _open_cached(path: str, size: int, modified_ns: int | str) -> OpenFile:
    """An open file, shared by threads and forked processes since reading at an offset moves no file position."""
    return OpenFile(path, size)
