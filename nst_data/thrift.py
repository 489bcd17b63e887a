"""Parse structures in Thrift's compact protocol, in which parquet metadata is written, from untrusted bytes."""

import struct
from typing import Any

Fields = dict[int, Any]  # values of a structure by field number
DAMAGE = (struct.error, IndexError, KeyError, ValueError, TypeError, AttributeError, RecursionError)
"""What is raised if bytes are not a Thrift structure, or it lacks a requested field."""
_INTEGER_BITS = 63  # largest shift at which another byte of an integer may start


def structure(data: bytes, at: int) -> tuple[Fields, int]:
    """Parse a structure; return it and the position after it. Raises one of `DAMAGE`."""
    fields: Fields = {}
    number = 0
    while header := data[at]:
        at += 1
        if header >> 4:
            number += header >> 4
        else:
            number, at = _integer(data, at)
        fields[number], at = _value(data, at, header & 15)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    """Parse a value of the given Thrift type; return it and the position after it."""
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind == 8:
        size, at = _varint(data, at)
        return data[at : at + size], _inside(data, at + size)
    if kind == 12:
        return structure(data, at)
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind == 7:
        return None, _inside(data, at + 8)  # a double, which nothing here needs
    if kind == 9:
        size, item_kind = data[at] >> 4, data[at] & 15
        size, at = _varint(data, at + 1) if size == 15 else (size, at + 1)
        values = []
        for _ in range(size):
            value, at = _value(data, at, 3 if item_kind in (1, 2) else item_kind)
            values.append(value)
        return values, at
    raise ValueError(f"Thrift's kind {kind}")


def _inside(data: bytes, at: int) -> int:
    """Check that a position is within the data: otherwise a list that claims more values than there are bytes would be read forever."""
    if at > len(data):
        raise IndexError("a value that goes on behind the end")
    return at


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """Decode a zigzag integer: 0, -1, 1, -2, ..."""
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Decode a varint: seven bits per byte, lowest first."""
    value = shift = 0
    while shift <= _INTEGER_BITS:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("an integer of more than 64 bits")
