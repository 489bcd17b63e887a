"""Values of a parquet column that can be read one by one, because its pages are neither compressed nor encoded.

This package and `datasets` write images so. pyarrow shows where the first page of a row group is; from there, the header of each page says
where the next one is. Headers are structures of Apache Parquet (`parquet.thrift`), in Thrift's compact protocol.
"""

import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.parquet_footer import column_chunks
from nst_data.sources.files import OpenFile
from nst_data.thrift import DAMAGE, structure

_LENGTH = struct.Struct("<I")
_DATA_PAGE, _DATA_PAGE_V2, _PLAIN = 0, 3, 0
_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED"}  # the last two are those of the marks of what lacks
_BLOCK_BYTES, _SHORT = 2**16, 2**12  # lengths of short values are read together
_HEADER_BYTES = 2**14  # a page's header holds its smallest and its largest value, where they are short


class Groups(NamedTuple):
    """The row groups of one file: how many rows each has, and where its first page is; int64 each.

    `is_optional` says whether pages begin with marks of the values that lack, even where none does.
    """

    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    is_optional: bool


NO_GROUPS = Groups(np.empty(0, np.int64), np.empty(0, np.int64), is_optional=False)  # of a file without rows


def plain_groups(parquet: pq.ParquetFile, column: Sequence[str]) -> Groups | None:
    """The row groups of a file; None where some value of the column, a path of names, lacks or cannot be read alone."""
    footer, field = parquet.metadata, parquet.schema_arrow.field(column[0])  # not the footer's own schema, which would keep the footer
    is_optional = field.nullable or any(field.type.field(name).nullable for name in column[1:])
    rows, offsets = [], []
    for group, chunks in enumerate(column_chunks(footer, [".".join(column)])):
        if not chunks:  # no such column
            return None
        chunk, *others = chunks
        here = footer.row_group(group).num_rows
        if here and (others or not _is_plain(chunk)):  # a column `a.b` beside a struct `a` with a field `b`
            return None
        rows.append(here)
        offsets.append(chunk.data_page_offset)
    return Groups(np.array(rows, np.int64), np.array(offsets, np.int64), is_optional)


def _is_plain(chunk: pq.ColumnChunkMetaData) -> bool:
    """Whether the bytes of each value stand as they are in the column of a row group: none lacks, is compressed or in a dictionary."""
    is_encoded = chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page or not set(chunk.encodings) <= _ENCODINGS
    if is_encoded or chunk.physical_type != "BYTE_ARRAY" or not chunk.is_stats_set:
        return False
    return bool(chunk.statistics.null_count == 0)


class _Page(NamedTuple):
    first_row: int  # in its row group
    start: int
    end: int
    values: int


@dataclass(frozen=True)
class PlainPages:
    """The values of a column over several files, in 20 bytes of memory for each row group.

    Row group i begins with row `first_rows[i]`, its pages at byte `offsets[i]` of the file `numbers[i]`.
    """

    files: Sequence[str]
    sizes: Sequence[int]
    are_optional: Sequence[bool]
    first_rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    numbers: NDArray[np.int32]

    @classmethod
    def of(cls, files: Sequence[str], sizes: Sequence[int], groups: Sequence[Groups]) -> "PlainPages":
        """The files with their sizes and row groups."""
        ends = np.cumsum(np.concatenate([one.rows for one in groups]))
        numbers = np.repeat(np.arange(len(files), dtype=np.int32), [len(one.rows) for one in groups])
        offsets = np.concatenate([one.offsets for one in groups])
        return cls(files, sizes, [one.is_optional for one in groups], np.concatenate([[0], ends]), offsets, numbers)

    def read(self, row: int) -> bytes:
        """The value in a row. Raises NstError where the file is not what it was."""
        group = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        number, row = int(self.numbers[group]), row - int(self.first_rows[group])
        rows = int(self.first_rows[group + 1] - self.first_rows[group])
        file, size = self.files[number], self.sizes[number]
        opened = _opened(file, size)
        try:
            pages = _pages(file, size, int(self.offsets[group]), rows, self.are_optional[number])
            page = pages[bisect_right(pages, row, key=lambda page: page.first_row) - 1]
            bounds = _bounds(file, size, page)
            start, end = bounds[row - page.first_row], bounds[row - page.first_row + 1]
        except DAMAGE:
            row_group = group - int(np.searchsorted(self.numbers, number))
            raise NstError(f"{file}: the pages of its row group {row_group} are damaged; restore the file") from None
        return opened.read(end - start - 4, start + 4)


@lru_cache(maxsize=128)
def _opened(path: str, size: int) -> OpenFile:
    """For all threads and forked processes. Raises NstError for a file of another size."""
    return OpenFile(path, size)


def close_files() -> None:
    """Let go of what is open, as the space of a deleted file is free only then; who reads on opens it again."""
    _opened.cache_clear()


@lru_cache(maxsize=512)
def _pages(file: str, size: int, offset: int, rows: int, is_optional: bool) -> list[_Page]:
    """The pages of a row group; kept, as its neighbors are read soon. Raises one of `DAMAGE` where they are not what they should be."""
    opened, found, first = _opened(file, size), list[_Page](), 0
    while first < rows:
        header, length = structure(opened.part(_HEADER_BYTES, offset), 0)
        start = offset + length
        offset = start + header[3]
        values = header[5] if header[1] == _DATA_PAGE else header[8] if header[1] == _DATA_PAGE_V2 else {}
        if header[1] == _DATA_PAGE and values[2] == _PLAIN:
            start += 4 + _LENGTH.unpack(opened.part(4, start))[0] if is_optional else 0
        elif header[1] == _DATA_PAGE_V2 and values[4] == _PLAIN:
            start += values[5] + values[6]
        else:
            raise KeyError("a page of another kind")
        if not 0 <= start <= offset <= size or values[1] < 0:
            raise ValueError("a page that goes back, or on behind the end")
        found.append(_Page(first, start, offset, values[1]))
        first += values[1]
    return found


@lru_cache(maxsize=4096)
def _bounds(file: str, size: int, page: _Page) -> "array[int]":
    """Where each value of a page begins, with its length in front, and the end of the last; fewer where the page is damaged.

    8 bytes for each value are kept, as the lengths of all before one have to be read to find it.
    """
    opened, bounds, at = _opened(file, size), array("q", [page.start]), page.start
    block, first, length = b"", at, 0
    while len(bounds) <= page.values:
        if at + 4 - first > len(block):
            block, first = opened.part(_BLOCK_BYTES if length < _SHORT else 4, at), at
            if len(block) < 4:
                break
        (length,) = _LENGTH.unpack_from(block, at - first)
        at += 4 + length
        if at > page.end:
            break
        bounds.append(at)
    return bounds
