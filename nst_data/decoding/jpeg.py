"""The segments of a JPEG before its first scan, read without decoding it (ITU T.81, annex B)."""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)  # fill bytes and junk before a marker are skipped, as in decoders
_STARTS_WITH, _SCAN = b"\xff\xd8", 0xDA
_WITHOUT_CONTENT = frozenset({0x01, *range(0xD0, 0xDA)})
_LENGTH, _FRAME = struct.Struct(">H"), struct.Struct(">BHHB")
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive
_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xCC}  # lossless, arithmetic, hierarchical
_SKIPPED_MARKERS = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})  # tables, restart intervals, comments, application data
_HEADER_BYTES = 4096  # bytes that usually include the frame header
_APP1, _EXIF = 0xE1, b"Exif\0\0"
_APP2, _SEVERAL = 0xE2, b"MPF\0"
_SMALL_IMAGE_BYTES = 2**16  # in images up to this size, searching all bytes for a string is cheaper than walking through the segments


class JpegHeader(NamedTuple):
    """The contents of a JPEG's frame header; `components` is 1 for gray, 3 for color, 4 for CMYK."""

    width: int
    height: int
    components: int


def jpeg_header(encoded: bytes | memoryview) -> JpegHeader | None:
    """The first frame header of a baseline or progressive JPEG with 8 bits per sample; None for anything else."""
    if (frame := _first_frame(encoded)) is not None:
        precision, height, width, components = _FRAME.unpack_from(frame)
        return JpegHeader(width, height, components) if precision == 8 else None
    for marker, content in _segments(encoded):
        if marker in _HUFFMAN_FRAMES and len(content) >= _FRAME.size:
            precision, height, width, components = _FRAME.unpack_from(content)
            return JpegHeader(width, height, components) if precision == 8 else None
        if marker in _OTHER_FRAMES:
            return None
    return None


def jpeg_exif(encoded: bytes | memoryview) -> bytes:
    """The EXIF data of a JPEG, from any of its segments and joined if split over several; empty if there is none."""
    if len(encoded) <= _SMALL_IMAGE_BYTES and _EXIF not in bytes(encoded):
        return b""
    contents = (content for marker, content in _segments(encoded) if marker == _APP1 and content[: len(_EXIF)] == _EXIF)
    return b"".join(content[len(_EXIF) :] for content in contents)


def may_hold_more_images(encoded: bytes | memoryview) -> bool:
    """Whether a JPEG says that more images follow, such as a preview or gain map (CIPA DC-007); Pillow never decodes it at reduced size."""
    if len(encoded) <= _SMALL_IMAGE_BYTES and _SEVERAL not in bytes(encoded):
        return False
    return any(marker == _APP2 and content[: len(_SEVERAL)] == _SEVERAL for marker, content in _segments(encoded))


def _first_frame(encoded: bytes | memoryview) -> bytes | None:
    """Fast path to the content of the first frame header, for files whose segments are complete and follow one another without gaps.

    Returns None for any other file, which is left to `_segments`.
    """
    start = bytes(encoded[:_HEADER_BYTES])
    position, max_position = len(_STARTS_WITH), len(start) - _LENGTH.size - 2 - _FRAME.size
    if not start.startswith(_STARTS_WITH):
        return None
    while position <= max_position and start[position] == 0xFF:
        marker, length = start[position + 1], start[position + 2] << 8 | start[position + 3]
        if marker in _HUFFMAN_FRAMES and _FRAME.size + _LENGTH.size <= length <= len(encoded) - position - 2:
            return start[position + 4 : position + 4 + _FRAME.size]
        if marker not in _SKIPPED_MARKERS or length < _LENGTH.size:
            return None
        position += 2 + length
    return None


def _segments(encoded: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield (marker, content) of each complete segment."""
    encoded = memoryview(encoded).cast("B")  # Arrow's buffers hold signed bytes
    position = len(_STARTS_WITH)
    if encoded[:position] != _STARTS_WITH:
        return
    while match := _MARKER.search(encoded, position):
        marker, position = match[1][0], match.end()
        if marker == _SCAN:
            return
        if marker in _WITHOUT_CONTENT:
            continue
        if position + _LENGTH.size > len(encoded):
            return
        (length,) = _LENGTH.unpack_from(encoded, position)
        if length < _LENGTH.size or position + length > len(encoded):
            return
        yield marker, encoded[position + _LENGTH.size : position + length]
        position += length
