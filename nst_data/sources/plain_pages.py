"""Read single values of a parquet column whose pages are neither compressed nor encoded.

This package and `datasets` write images this way. pyarrow gives the offset of the first page of a row group; from there, the header of each
page leads to the next. Headers are structures of Apache Parquet (`parquet.thrift`), in Thrift's compact protocol.
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
from nst_data.thrift import THRIFT_ERRORS, parse_struct

_LENGTH = struct.Struct("<I")
_DATA_PAGE, _DATA_PAGE_V2, _PLAIN = 0, 3, 0
_ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED"}  # the last two encode definition levels, which mark nulls
_BLOCK_BYTES, _SHORT = 2**16, 2**12  # bytes read at a time for the lengths of values shorter than `_SHORT`
_HEADER_BYTES = 2**14  # a page header includes the smallest and largest value, if they are short


class RowGroups(NamedTuple):
    """The row groups of one file: number of rows and offset of the first page of each, as int64.

    `is_optional` says whether pages begin with definition levels, which they do for a nullable column even if no value is null.
    """

    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    is_optional: bool


NO_GROUPS = RowGroups(np.empty(0, np.int64), np.empty(0, np.int64), is_optional=False)  # for a file without rows


def plain_groups(parquet: pq.ParquetFile, column: Sequence[str]) -> RowGroups | None:
    """The row groups of a file, or None if some value of the column (a path of names) is null or cannot be read individually."""
    footer, field = parquet.metadata, parquet.schema_arrow.field(column[0])  # the footer's own schema would keep the footer alive
    is_optional = field.nullable or any(field.type.field(name).nullable for name in column[1:])
    rows, offsets = [], []
    for group, chunks in enumerate(column_chunks(footer, [".".join(column)])):
        if not chunks:  # there is no such column
            return None
        chunk, *other_chunks = chunks
        count = footer.row_group(group).num_rows
        if count and (other_chunks or not _is_plain(chunk)):  # several chunks: a column `a.b` next to a struct `a` with a field `b`
            return None
        rows.append(count)
        offsets.append(chunk.data_page_offset)
    return RowGroups(np.array(rows, np.int64), np.array(offsets, np.int64), is_optional)


def _is_plain(chunk: pq.ColumnChunkMetaData) -> bool:
    """Whether a column chunk stores the bytes of every value as they are: none is null, compressed or dictionary-encoded."""
    is_encoded = chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page or not set(chunk.encodings) <= _ENCODINGS
    if is_encoded or chunk.physical_type != "BYTE_ARRAY" or not chunk.is_stats_set:
        return False
    return bool(chunk.statistics.null_count == 0)


class _Page(NamedTuple):
    first_row: int  # within its row group
    start: int
    end: int
    n_values: int


@dataclass(frozen=True)
class PlainPages:
    """The values of a column across several files, using 20 bytes of memory per row group.

    Row group i begins with row `first_rows[i]`; its pages begin at byte `offsets[i]` of file `file_numbers[i]`.
    """

    files: Sequence[str]
    sizes: Sequence[int]
    are_optional: Sequence[bool]
    first_rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    file_numbers: NDArray[np.int32]

    @classmethod
    def from_files(cls, files: Sequence[str], sizes: Sequence[int], groups: Sequence[RowGroups]) -> "PlainPages":
        """Build from files with their sizes and row groups."""
        ends = np.cumsum(np.concatenate([group.rows for group in groups]))
        numbers = np.repeat(np.arange(len(files), dtype=np.int32), [len(group.rows) for group in groups])
        offsets = np.concatenate([group.offsets for group in groups])
        return cls(files, sizes, [group.is_optional for group in groups], np.concatenate([[0], ends]), offsets, numbers)

    def read(self, row: int) -> bytes:
        """The value in a row. Raises NstError if the file has changed or is damaged."""
        group = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        number, row = int(self.file_numbers[group]), row - int(self.first_rows[group])
        rows = int(self.first_rows[group + 1] - self.first_rows[group])
        file, size = self.files[number], self.sizes[number]
        opened = _open_cached(file, size)
        try:
            pages = _pages(file, size, int(self.offsets[group]), rows, self.are_optional[number])
            page = pages[bisect_right(pages, row, key=lambda page: page.first_row) - 1]
            bounds = _value_offsets(file, size, page)
            start, end = bounds[row - page.first_row], bounds[row - page.first_row + 1]
        except THRIFT_ERRORS:
            row_group = group - int(np.searchsorted(self.file_numbers, number))
            raise NstError(f"{file}: the pages of its row group {row_group} are damaged; restore the file") from None
        return opened.read(end - start - 4, start + 4)


@lru_cache(maxsize=128)
def _open_cached(path: str, size: int) -> OpenFile:
    """An open file shared by all threads and forked processes. Raises NstError if its size has changed."""
    return OpenFile(path, size)


def close_files() -> None:
    """Close the cached files, as the space of a deleted file is freed only then; later reads open them again."""
    _open_cached.cache_clear()


@lru_cache(maxsize=512)
def _pages(file: str, size: int, offset: int, n_rows: int, is_optional: bool) -> list[_Page]:
    """The pages of a row group, cached because neighboring rows are read soon. Raises one of `THRIFT_ERRORS` if they are damaged."""
    opened, pages, first = _open_cached(file, size), list[_Page](), 0
    while first < n_rows:
        header, length = parse_struct(opened.read_up_to(_HEADER_BYTES, offset), 0)
        start = offset + length
        offset = start + header[3]
        values = header[5] if header[1] == _DATA_PAGE else header[8] if header[1] == _DATA_PAGE_V2 else {}
        if header[1] == _DATA_PAGE and values[2] == _PLAIN:
            start += 4 + _LENGTH.unpack(opened.read_up_to(4, start))[0] if is_optional else 0
        elif header[1] == _DATA_PAGE_V2 and values[4] == _PLAIN:
            start += values[5] + values[6]
        else:
            raise KeyError("a page of another kind")
        if not 0 <= start <= offset <= size or values[1] < 0:
            raise ValueError("a page that goes back, or on behind the end")
        pages.append(_Page(first, start, offset, values[1]))
        first += values[1]
    return pages


@lru_cache(maxsize=4096)
def _value_offsets(file: str, size: int, page: _Page) -> "array[int]":
    """The offset of each value of a page, at its length prefix, and the end of the last; fewer if the page is damaged.

    Cached with 8 bytes per value, as finding a value takes reading the lengths of all values before it.
    """
    opened, bounds, position = _open_cached(file, size), array("q", [page.start]), page.start
    block, first, length = b"", position, 0
    while len(bounds) <= page.n_values:
        if position + 4 - first > len(block):
            block, first = opened.read_up_to(_BLOCK_BYTES if length < _SHORT else 4, position), position
            if len(block) < 4:
                break
        (length,) = _LENGTH.unpack_from(block, position - first)
        position += 4 + length
        if position > page.end:
            break
        bounds.append(position)
    return bounds
