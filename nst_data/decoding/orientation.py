"""Image orientation, determined in one place for all decoders.

It follows EXIF, as browsers, libvips and OpenCV do. An orientation given only in XMP is ignored, since programs that rotate the pixels
often leave the old value there.
"""

import struct

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from nst_data.decoding.jpeg import jpeg_exif

ORIENTATION_TAG = 0x0112
TRANSPOSED = frozenset({5, 6, 7, 8})  # orientations that swap width and height
_AS_STORED = 1
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # EXIF specifies SHORT; LONG and BYTE occur in practice
_PNG_EXIF_KEY = "Raw profile type exif"


def jpeg_orientation(encoded: bytes | memoryview) -> int:
    """The EXIF orientation from 1 (as stored) to 8; 1 if the bytes are not a JPEG."""
    return exif_orientation(jpeg_exif(encoded))


def orientation_of(image: Image.Image, encoded: bytes | memoryview) -> int:
    """The EXIF orientation of an image in any format that Pillow has opened; `encoded` are its bytes."""
    if image.format in ("JPEG", "MPO"):
        return jpeg_orientation(encoded)
    if isinstance(image, TiffImageFile):
        return _valid_orientation(image.tag_v2.get(ORIENTATION_TAG))
    if image.format == "PNG" and "exif" not in image.info:
        image.load()  # EXIF may follow the pixels
    if isinstance(exif := image.info.get("exif"), bytes):  # a PNG text chunk may have this name, too
        return exif_orientation(exif)
    return exif_orientation(_exif_from_text(image.info.get(_PNG_EXIF_KEY)))


def exif_orientation(exif: bytes) -> int:
    """The orientation in the first directory; 1 (as stored) if it is missing, damaged, not an integer, or not from 1 to 8."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = _BYTE_ORDERS.get(tiff[:4])
    if order is None:
        return _AS_STORED
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", tiff, entry)
            if tag == ORIENTATION_TAG and kind in _INTEGERS and count > 0:
                form, offset = f"{order}{_INTEGERS[kind]}", entry + 8
                if struct.calcsize(form) * count > 4:  # values that do not fit here are stored elsewhere
                    (offset,) = struct.unpack_from(f"{order}I", tiff, offset)
                return _valid_orientation(struct.unpack_from(form, tiff, offset))
    except struct.error:  # truncated
        pass
    return _AS_STORED


def _valid_orientation(value: object) -> int:
    if isinstance(value, bytes | tuple) and value:  # how Pillow returns BYTEs and multiple values
        value = value[0]
    return value if isinstance(value, int) and 1 <= value <= 8 else _AS_STORED


def _exif_from_text(profile: object) -> bytes:
    """The EXIF data that ImageMagick writes as text into a PNG: three lines, then hex digits."""
    try:
        return bytes.fromhex("".join(str(profile).split("\n")[3:]))
    except ValueError:
        return b""
