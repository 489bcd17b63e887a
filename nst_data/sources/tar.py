"""Tar files of images, as WebDataset writes them."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.sources.files import OpenFile
from nst_data.sources.labels import labels_of
from nst_data.sources.listing import PIECE, Spool, listed, read_listing, utf8, write_listing
from nst_data.sources.members import CLASS_SUFFIX, Member, members
from nst_data.sources.skipped import Skipped, phrase
from nst_data.sources.source import Content, Row, Source, Wanted, in_pieces, rows_of_table

_INDEX = pa.schema(
    [("file", pa.int32()), ("name", pa.large_string()), ("offset", pa.int64()), ("size", pa.int64()), ("problem", pa.large_string())]
)
_SKIPPED = b"skipped"  # counts, in the metadata of an index


class TarFiles(Source):
    """Images in plain tar files, in the order of the files and of the members in them.

    `names` are the files' in keys and in the listing. A member `stem.cls` is the class of `stem.jpg`. Where the members lie is found
    out once, by reading every header, and kept in the folder `indexes`.
    """

    def __init__(self, location: str, files: Sequence[str], names: Sequence[str], labeled: bool, indexes: Path | None = None) -> None:
        super().__init__(location)
        self._files, self._names = files, names
        found = [os.stat(file) for file in files]
        self._stamps = [(stat.st_size, stat.st_mtime_ns) for stat in found]
        self._listing = listed([(list(names), [stat.st_size for stat in found])])
        self._skipped = Skipped()
        classes: dict[tuple[int, str], str] = {}
        self._index = self._read_index(classes) if labeled else self._kept_index(indexes)
        self.skipped = json.loads((self._index.schema.metadata or {}).get(_SKIPPED, b"{}"))
        if not len(self):
            but = f", but {phrase(self.skipped)}" if self.skipped else ""
            raise NstError(f"{location}: expected images in the tar files, found none{but}")
        if labeled:
            self._label(classes)

    def __len__(self) -> int:
        return int(self._index.num_rows)

    def key(self, row: int) -> str:
        """tar:member."""
        return f"{self._names[self._index['file'][row].as_py()]}:{self._index['name'][row]}"

    def read(self, row: int) -> bytes:
        """The member's bytes."""
        return bytes(Row(row, "", self._content(self._index.slice(row, 1).to_pylist()[0])).read())

    def rows(self, wanted: Wanted) -> Iterator[Row]:
        """The wanted members; each is read when its row is."""
        for piece in in_pieces(wanted, 1024):
            for row, entry in zip(piece.tolist(), rows_of_table(self._index, piece).to_pylist(), strict=True):
                yield Row(row, f"{self._names[entry['file']]}:{entry['name']}", self._content(entry))

    def rows_of_files(self, files: NDArray[np.int64]) -> NDArray[np.int64]:
        """As the index says."""
        return np.flatnonzero(pc.is_in(self._index["file"], pa.array(files, pa.int32())).to_numpy(zero_copy_only=False))

    def _paths(self) -> Sequence[str]:
        return self._files

    def _keys(self) -> Iterator[pa.Array]:
        for batch in self._index.to_batches():
            columns = batch["file"].to_pylist(), batch["name"].to_pylist()
            yield pa.array([f"{self._names[file]}:{name}" for file, name in zip(*columns, strict=True)], type=pa.large_string())

    def _content(self, entry: dict[str, Any]) -> Content:
        problem = entry["problem"]
        return NstError(problem) if problem is not None else partial(self._read, entry["file"], entry["offset"], entry["size"])

    def _read(self, file: int, offset: int, size: int) -> bytes:
        return _opened(self._files[file], *self._stamps[file]).read(size, offset)

    def _read_index(self, classes: dict[tuple[int, str], str] | None = None) -> pa.Table:
        spool = Spool(_INDEX)
        for columns in self._indexed(classes):
            spool.append(columns)
        return spool.table().replace_schema_metadata({_SKIPPED: json.dumps(self._skipped.counts)})

    def _kept_index(self, indexes: Path | None) -> pa.Table:
        if indexes is None:
            return self._read_index()
        digest = hashlib.sha256(json.dumps([[os.path.abspath(file) for file in self._files], self._stamps]).encode()).hexdigest()
        kept = indexes / f"{digest}.arrow"
        if not kept.exists():
            index = self._read_index()
            indexes.mkdir(parents=True, exist_ok=True)
            write_listing(kept, index)
        return read_listing(kept)

    def _indexed(self, classes: dict[tuple[int, str], str] | None) -> Iterator[list[pa.Array]]:
        waiting: list[tuple[int, Member]] = []
        for file, path in enumerate(self._files):
            for member in members(path, self._skipped):
                if not member.name.endswith(CLASS_SUFFIX):
                    waiting.append((file, member))
                elif classes is not None:
                    classes[file, member.name.removesuffix(CLASS_SUFFIX)] = self._class(file, member)
                if len(waiting) == PIECE:
                    yield _columns(waiting)
                    waiting.clear()
        yield _columns(waiting)

    def _class(self, file: int, member: Member) -> str:
        where = f"{self._files[file]}: {member.name}"
        if member.problem is not None:
            raise NstError(f"{where}: {member.problem}")
        try:
            return self._read(file, member.offset, min(member.size, 1024)).decode().strip()
        except UnicodeDecodeError:
            raise NstError(f"{where}: expected a class as a number or text in UTF-8") from None

    def _label(self, classes: dict[tuple[int, str], str]) -> None:
        values = []
        for entry in (entry for batch in self._index.to_batches() for entry in batch.to_pylist()):
            file, name = entry["file"], entry["name"]
            value = classes.get((file, os.path.splitext(name)[0])) or classes.get((file, _webdataset_stem(name)))
            if not value:
                why = entry["problem"] if name.startswith("@") else f"{name} has no class; expected a member {_webdataset_stem(name)}.cls"
                raise NstError(f"{self._files[file]}: {why}")
            values.append(value)
        numbers = all(value.isdecimal() for value in values)
        column = pa.chunked_array([pa.array([int(value) for value in values] if numbers else values)])
        self.labels, self.class_names = labels_of(column, None, self.location, CLASS_SUFFIX)


def _columns(found: list[tuple[int, Member]]) -> list[pa.Array]:
    names, offsets, sizes, problems = zip(*(member for _, member in found), strict=True) if found else ((), (), (), ())
    return [
        pa.array([file for file, _ in found], type=pa.int32()),
        utf8(list(names)),
        pa.array(offsets, type=pa.int64()),
        pa.array(sizes, type=pa.int64()),
        pa.array(problems, type=pa.large_string()),
    ]


def _webdataset_stem(name: str) -> str:
    """A member's name up to the first dot after its folders."""
    folders, slash, last = name.rpartition("/")
    return folders + slash + last.partition(".")[0]


@lru_cache(maxsize=64)
def _opened(path: str, size: int, modified_ns: int) -> OpenFile:
    """Reading at an offset moves no position, so threads and forked processes share these."""
    return OpenFile(path, size)
