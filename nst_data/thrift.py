"""Structures in Thrift's compact protocol, in which parquet describes itself."""

import mmap
from typing import Any

Fields = dict[int, Any]  # of a Thrift structure, by number
Data = bytes | mmap.mmap


def structure(data: Data, at: int) -> tuple[Fields, int]:
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
        return structure(data, at)
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
