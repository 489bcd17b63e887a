"""Parse structures in Thrift's compact protocol, in which parquet metadata is written, from untrusted bytes."""

import struct
from typing import Any

Fields = dict[int, Any]  # values of a structure by field number
THRIFT_ERRORS = (struct.error, IndexError, KeyError, ValueError, TypeError, AttributeError, RecursionError)
"""What is raised if bytes are not a Thrift structure, or it lacks a requested field."""
_INTEGER_BITS = 63  # largest shift at which another byte of an integer may start


def parse_struct(data: bytes, offset: int) -> tuple[Fields, int]:
    """Parse a structure; return it and the position after it. Raises one of `THRIFT_ERRORS`."""
    fields: Fields = {}
    number = 0
    while header := data[offset]:
        offset += 1
        if header >> 4:
            number += header >> 4
        else:
            number, offset = _parse_integer(data, offset)
        fields[number], offset = _parse_value(data, offset, header & 15)
    return fields, offset + 1


def _parse_value(data: bytes, offset: int, kind: int) -> tuple[Any, int]:
    """Parse a value of the given Thrift type; return it and the position after it."""
    if kind in (4, 5, 6):
        return _parse_integer(data, offset)
    if kind == 8:
        size, offset = _parse_varint(data, offset)
        return data[offset : offset + size], _check_offset(data, offset + size)
    if kind == 12:
        return parse_struct(data, offset)
    if kind in (1, 2):
        return kind == 1, offset
    if kind == 3:
        return data[offset], offset + 1
    if kind == 7:
        return None, _check_offset(data, offset + 8)  # a double, which nothing here needs
    if kind == 9:
        size, item_kind = data[offset] >> 4, data[offset] & 15
        size, offset = _parse_varint(data, offset + 1) if size == 15 else (size, offset + 1)
        values = []
        for _ in range(size):
            value, offset = _parse_value(data, offset, 3 if item_kind in (1, 2) else item_kind)
            values.append(value)
        return values, offset
    raise ValueError(f"Thrift's kind {kind}")


def _check_offset(data: bytes, offset: int) -> int:
    """Check that a position is within the data: otherwise a list that claims more values than there are bytes would be read forever."""
    if offset > len(data):
        raise IndexError("a value that goes on behind the end")
    return offset


def _parse_integer(data: bytes, offset: int) -> tuple[int, int]:
    """Decode a zigzag integer: 0, -1, 1, -2, ..."""
    value, offset = _parse_varint(data, offset)
    return (value >> 1) ^ -(value & 1), offset


def _parse_varint(data: bytes, offset: int) -> tuple[int, int]:
    """Decode a varint: seven bits per byte, lowest first."""
    value = shift = 0
    while shift <= _INTEGER_BITS:
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
        shift += 7
    raise ValueError("an integer of more than 64 bits")
