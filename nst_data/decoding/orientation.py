"""Which side of an image is up: one reader for every decoder.

It follows EXIF, as browsers, libvips and OpenCV do. An orientation that stands in XMP alone does not count: programs that turn
the pixels often leave the old one there.
"""

import struct

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from nst_data.decoding.jpeg import jpeg_exif

ORIENTATION_TAG = 0x0112
LYING = frozenset({5, 6, 7, 8})  # orientations in which width and height change places
_AS_STORED = 1
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # EXIF says SHORT; LONG and BYTE are seen
_IN_PNG_TEXT = "Raw profile type exif"


def jpeg_orientation(encoded: bytes | memoryview) -> int:
    """EXIF's number from 1 (as stored) to 8; 1 for what is no JPEG."""
    return exif_orientation(jpeg_exif(encoded))


def orientation_of(image: Image.Image, encoded: bytes | memoryview) -> int:
    """The same of an image of any format that Pillow has opened; `encoded` are its bytes."""
    if image.format in ("JPEG", "MPO"):
        return jpeg_orientation(encoded)
    if isinstance(image, TiffImageFile):
        return _valid(image.tag_v2.get(ORIENTATION_TAG))
    if image.format == "PNG" and "exif" not in image.info:
        image.load()  # its EXIF may follow the pixels
    if isinstance(exif := image.info.get("exif"), bytes):  # a text chunk of a PNG may have this name too
        return exif_orientation(exif)
    return exif_orientation(_from_text(image.info.get(_IN_PNG_TEXT)))


def exif_orientation(exif: bytes) -> int:
    """The number in the first directory; 1 (as stored) where it is missing, damaged, no integer or none from 1 to 8."""
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
                form, place = f"{order}{_INTEGERS[kind]}", entry + 8
                if struct.calcsize(form) * count > 4:  # more values than fit here stand elsewhere
                    (place,) = struct.unpack_from(f"{order}I", tiff, place)
                return _valid(struct.unpack_from(form, tiff, place))
    except struct.error:  # cut off
        pass
    return _AS_STORED


def _valid(value: object) -> int:
    if isinstance(value, bytes | tuple) and value:  # Pillow's forms of BYTEs, and of several values
        value = value[0]
    return value if isinstance(value, int) and 1 <= value <= 8 else _AS_STORED


def _from_text(profile: object) -> bytes:
    """The EXIF that ImageMagick writes into a PNG's text: three lines, then hex digits."""
    try:
        return bytes.fromhex("".join(str(profile).split("\n")[3:]))
    except ValueError:
        return b""
