"""Values of a parquet column that can be read one by one, because its pages are neither compressed nor encoded.

This package and `datasets` write images so. Where the pages lie stands in a file's offset index, which pyarrow does not show: the
structures and their field numbers are Apache Parquet's (`parquet.thrift`), in Thrift's compact protocol.
"""

import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.sources.files import check_size

_LENGTH = struct.Struct("<I")
_DATA_PAGE, _DATA_PAGE_V2, _PLAIN, _UNCOMPRESSED, _BYTE_ARRAY = 0, 3, 0, 0, 6
_ENCODINGS = {_PLAIN, 3, 4}  # 3 and 4 are those of the marks of what lacks
_HEADER_BYTES = 2**14  # a page's header holds its smallest and its largest value, where they are short
_DAMAGE = (struct.error, IndexError, KeyError, ValueError, TypeError, RecursionError)

Fields = dict[int, Any]  # of a Thrift structure, by number
Data = bytes | mmap.mmap


@dataclass(frozen=True)
class PlainPages:
    """Where the pages of a column begin, over several files: 20 bytes of memory for each page of up to a megabyte.

    Page i begins with row `first_rows[i]` and at byte `offsets[i]` of the file `numbers[i]`. `are_optional` says of each file whether its
    pages begin with marks of the values that lack, even where none does.
    """

    files: Sequence[str]
    sizes: Sequence[int]
    are_optional: Sequence[bool]
    first_rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    numbers: NDArray[np.int32]

    @classmethod
    def find(cls, files: Sequence[str], sizes: Sequence[int], column: str) -> "PlainPages | None":
        """The pages of a column, given as parquet's path of it; None where some value lacks or cannot be read alone."""
        found = []
        start = 0
        for number, file in enumerate(files):
            pages = _pages(file, column)
            if pages is None:
                return None
            is_optional, count, rows, offsets = pages
            found.append((is_optional, rows + start, offsets, np.full(len(rows), number, np.int32)))
            start += count
        are_optional, *columns = zip(*found, strict=True)
        return cls(files, sizes, are_optional, *map(np.concatenate, columns))

    def read(self, row: int) -> bytes:
        """The value in a row. Raises NstError where the file is not what it was."""
        page = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        number = int(self.numbers[page])
        data = _mapped(self.files[number], self.sizes[number])
        try:
            at, end = _values(data, int(self.offsets[page]), self.are_optional[number])
            for _ in range(row - int(self.first_rows[page])):
                at += 4 + _LENGTH.unpack_from(data, at)[0]
            (length,) = _LENGTH.unpack_from(data, at)
        except _DAMAGE:
            at = length = end = 0
        if at + 4 + length > end:
            raise NstError(f"{self.files[number]}: the page of row {row} is damaged")
        return data[at + 4 : at + 4 + length]


@lru_cache(maxsize=1024)
def _mapped(file: str, size: int) -> mmap.mmap:
    """A file in memory, for all threads and forked processes. Raises NstError for one of another size."""
    with open(file, "rb") as opened:
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    check_size(len(data), size)
    return data


def _values(data: Data, offset: int, is_optional: bool) -> tuple[int, int]:
    """Where the values of a page begin, and where they end."""
    header, size = _structure(data[offset : offset + _HEADER_BYTES], 0)
    at, end = offset + size, offset + size + header[3]
    if header[1] == _DATA_PAGE_V2 and header[8][4] == _PLAIN:
        return at + header[8][5] + header[8][6], end
    if header[1] == _DATA_PAGE and header[5][2] == _PLAIN:
        return at + (4 + _LENGTH.unpack_from(data, at)[0] if is_optional else 0), end
    raise KeyError("a page of another kind")


def _pages(file: str, column: str) -> tuple[bool, int, NDArray[np.int64], NDArray[np.int64]] | None:
    """Whether the column is optional, the rows of the file, and the first row and the place of each page."""
    schema = pq.read_metadata(file).schema
    leaf = [schema.column(index).path for index in range(len(schema))].index(column)
    if schema.column(leaf).max_repetition_level:
        return None
    start = 0
    rows: list[int] = []
    offsets: list[int] = []
    with open(file, "rb") as opened:
        opened.seek(-8, 2)
        (size,) = _LENGTH.unpack(opened.read(4))
        opened.seek(-8 - size, 2)
        try:
            for group in _structure(opened.read(size), 0)[0][4]:
                chunk = group[1][leaf]
                if not _is_plain(chunk[3]):
                    return None
                opened.seek(chunk[4])
                pages = _structure(opened.read(chunk[5]), 0)[0][1]
                rows += [start + page[3] for page in pages]
                offsets += [page[1] for page in pages]
                start += group[3]
        except _DAMAGE:  # there is no such index, or none that this module can read
            return None
    return schema.column(leaf).max_definition_level > 0, start, np.array(rows, np.int64), np.array(offsets, np.int64)


def _is_plain(chunk: Fields) -> bool:
    """Whether the bytes of each value stand as they are in the column of a row group: none lacks, is compressed or in a dictionary."""
    is_plain = chunk[1] == _BYTE_ARRAY and chunk[4] == _UNCOMPRESSED and set(chunk[2]) <= _ENCODINGS and 11 not in chunk
    return bool(is_plain and chunk[12][3] == 0)


def _structure(data: Data, at: int) -> tuple[Fields, int]:
    """A Thrift structure, and the place after it."""
    fields: Fields = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(data, at)
        fields[number], at = _value(data, at, head & 15)
    return fields, at + 1


def _value(data: Data, at: int, kind: int) -> tuple[Any, int]:
    """A value of one of Thrift's kinds, and the place after it."""
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind == 7:
        return None, at + 8  # a number that nothing here asks for
    if kind == 8:
        size, at = _varint(data, at)
        return None if at + size > len(data) else data[at : at + size], at + size
    if kind == 9:
        size, inside = data[at] >> 4, data[at] & 15
        size, at = _varint(data, at + 1) if size == 15 else (size, at + 1)
        values = []
        for _ in range(size):
            value, at = _value(data, at, 3 if inside in (1, 2) else inside)
            values.append(value)
        return values, at
    if kind == 12:
        return _structure(data, at)
    raise ValueError(f"Thrift's kind {kind}")


def _integer(data: Data, at: int) -> tuple[int, int]:
    """Positive and negative ones in turn: 0, -1, 1, -2."""
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: Data, at: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
