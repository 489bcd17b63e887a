"""Decode images to RGB as a person sees them, and compute the two hashes of an image."""

import ctypes
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, _imaging
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from nst_data.decoding.deep_gray import gray_levels, is_deep_gray
from nst_data.decoding.jpeg import jpeg_header as jpeg_header
from nst_data.decoding.orientation import ORIENTATION_TAG, TRANSPOSED, orientation_of
from nst_data.errors import NstError
from nst_data.freed_memory import release_pixel_memory

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "TGA")
"""The formats that are opened, by Pillow's names, whatever the file name. Other decoders start programs (EPS: Ghostscript) or are rarely
used.

TGA, which has no signature, comes last.
"""
MAX_PIXELS = 178_956_970  # Pillow's own limit for decompression bombs: 0.5 GB as RGB
PHASH_SIZE_PX = 32
_PHASH_ROWS = 128  # height of the image a thumbnail is made from: four rows for each of its own
_LARGE_PIXELS, _LONGEST = 16_000_000, 250
_one_large_image = threading.Lock()  # decoded one at a time: memory is that of the largest, not of one per thread
logging.getLogger("PIL").addHandler(logging.NullHandler())  # otherwise Python prints Pillow's errors to the screen
warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow's warnings about single images are not shown
_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_BIT_DEPTH = 24  # offset of the bit depth in a PNG file
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}  # by Pillow's format name, if they differ from it
_ALPHA_MODES = {"RGBA", "LA", "PA", "La", "RGBa"}


def _silence_libtiff() -> None:
    """Stop Pillow's libtiff from printing to file descriptor 2 for each damaged file; Pillow's own error reports the same."""
    with suppress(AttributeError, OSError):  # Pillow built without libtiff
        libtiff = ctypes.CDLL(_imaging.__file__)
        libtiff.TIFFSetWarningHandler(None)
        libtiff.TIFFSetErrorHandler(None)


_silence_libtiff()


class ImageError(NstError):
    """The bytes cannot be decoded as an image; the message is the reason."""


def image_hash(encoded: bytes | memoryview) -> str:
    """xxh3-128 of the encoded bytes, 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(encoded)


def check_dimensions(width: int, height: int) -> None:
    """Raises ImageError if an image has too many pixels to be decoded."""
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels, more than the {MAX_PIXELS} that are decoded")


def check_shape(width: int, height: int) -> None:
    """Raises ImageError if an image is so elongated that resizing its short side to a few hundred pixels would exhaust memory."""
    if max(width, height) > _LONGEST * min(width, height):
        raise ImageError(f"{width}x{height} pixels: one side is more than {_LONGEST} times the other")


def large_image_lock(pixels: int) -> AbstractContextManager[None]:
    """A context for decoding an image with this many pixels: large ones are decoded one at a time, and their memory is not kept."""
    return _one_at_a_time() if pixels > _LARGE_PIXELS else nullcontext()


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    with _one_large_image, release_pixel_memory():
        yield


def decode(encoded: bytes | memoryview, min_side_px: int | None = None) -> Image.Image:
    """Decode to 8-bit RGB as a viewer shows it: upright, transparency over white, 16-bit scaled to 8.

    With `min_side_px`, a JPEG may be returned at 1/2, 1/4 or 1/8 of its size, with both sides at least this long: the decoder then skips
    fine detail, at a fraction of the cost. Of an animation the first frame is used. Raises ImageError with the reason.
    """
    with _open_image(encoded) as image:
        check_dimensions(image.width, image.height)
        with large_image_lock(image.width * image.height):
            if min_side_px and image.format == "JPEG":
                image.draft(None, reduced_size(image.width, image.height, min_side_px))
            if isinstance(image, TiffImageFile):  # Pillow rotates TIFFs while loading, so give it our reading of the orientation
                image.getexif()[ORIENTATION_TAG] = orientation_of(image, encoded)
                image.load()
                return _to_rgb(image, encoded)
            image.load()
            return _rotate_upright(_to_rgb(image, encoded), orientation_of(image, encoded))


def upright_size(encoded: bytes | memoryview) -> tuple[int, int]:
    """(width, height) of the image as returned by `decode`, read from the header. Raises ImageError with the reason."""
    with _open_image(encoded) as image:
        width, height = image.size
        if isinstance(image, TiffImageFile):  # Pillow has already swapped image.size
            width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
        check_dimensions(width, height)
        return (height, width) if orientation_of(image, encoded) in TRANSPOSED else (width, height)


def image_suffix(encoded: bytes | memoryview) -> str:
    """The file name extension for these bytes, such as `.jpg`; empty if they are not an image."""
    try:
        with _open_image(encoded) as image:
            kind = str(image.format)
    except ImageError:
        return ""
    return _SUFFIXES.get(kind, f".{kind.lower()}")


@contextmanager
def _open_image(encoded: bytes | memoryview) -> Iterator[Image.Image]:
    if not encoded:
        raise ImageError("empty file")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            yield image
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything on hostile bytes; it becomes the reason of the ImageError
        reason = _unidentified_reason(encoded) if isinstance(error, UnidentifiedImageError) else str(error)
        raise ImageError(reason.splitlines()[0] if reason else type(error).__name__) from error


def _unidentified_reason(encoded: bytes | memoryview) -> str:
    if bytes(encoded[:4]) in (b"II*\0", b"MM\0*"):
        return "a damaged TIFF, or one with an unsupported pixel format"
    return "not an image in a known format"


def reduced_factor(width: int, height: int, min_side_px: int) -> int:
    """The largest of 8, 4, 2 and 1 by which both sides can be divided while staying at least `min_side_px`."""
    return next((factor for factor in (8, 4, 2) if min(width, height) // factor >= min_side_px), 1)


def reduced_size(width: int, height: int, min_side_px: int) -> tuple[int, int]:
    """(width, height) at the smallest scale among 1/1, 1/2, 1/4 and 1/8 for which both sides are at least `min_side_px`."""
    factor = reduced_factor(width, height, min_side_px)
    return width // factor, height // factor


def _rotate_upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TRANSPOSE_BY_ORIENTATION[orientation]) if orientation in _TRANSPOSE_BY_ORIENTATION else image


def _to_rgb(image: Image.Image, encoded: bytes | memoryview) -> Image.Image:
    if isinstance(image.info.get("transparency"), str):
        del image.info["transparency"]  # a PNG text chunk with this name
    if is_deep_gray(image):
        return Image.fromarray(gray_levels(image)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct conversion
    if image.format == "PNG":
        _scale_transparent_color(image, encoded[_PNG_BIT_DEPTH])
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _scale_transparent_color(image: Image.Image, bits: int) -> None:
    """Scale a PNG's transparent color like its pixels, which Pillow has converted to 8 bits without converting the color.

    At 16 bits, pixels of the transparent color can no longer be told apart from similar ones; these images are treated as opaque.
    """
    color = image.info.get("transparency")
    if image.mode == "L" and isinstance(color, int) and bits < 8:
        image.info["transparency"] = color * 255 // (2**bits - 1)
    elif image.mode == "RGB" and isinstance(color, tuple) and bits == 16:
        del image.info["transparency"]


def phash_thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """A thumbnail of the whole image as input for `phash`; shape (32, 32, 3)."""
    pixels = np.asarray(image)
    if pixels.shape[:2] == (PHASH_SIZE_PX, PHASH_SIZE_PX):
        return pixels
    rows = Image.fromarray(np.ascontiguousarray(pixels[:: phash_row_step(len(pixels))]))
    return np.asarray(rows.resize((PHASH_SIZE_PX, PHASH_SIZE_PX), Image.Resampling.BILINEAR))


def phash_row_step(height: int) -> int:
    """The step between the rows of an image that its thumbnail is made from: using all rows would cost more and add nothing."""
    return max(1, height // _PHASH_ROWS)


def phash(thumbnails: NDArray[np.uint8]) -> NDArray[np.int64]:
    """64-bit perceptual hashes of a batch: signs of the 8x8 lowest DCT coefficients of the gray image relative to their median.

    `thumbnails` has shape (batch, 32, 32, 3). Similar images have hashes that differ in few bits.
    """
    if len(thumbnails) == 0:
        return np.empty(0, dtype=np.int64)
    flat = low_frequencies(thumbnails).reshape(len(thumbnails), 64).round(6)  # uniform images have only numerical noise here
    ranked = np.sort(flat, axis=1)
    bits = flat > (ranked[:, 31:32] + ranked[:, 32:33]) / 2
    hashes: NDArray[np.int64] = np.packbits(bits, axis=1, bitorder="little").view("<i8").astype(np.int64).ravel()
    return hashes


def low_frequencies(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The lowest coefficients of an orthonormal DCT-II of the gray images; (batch, 32, 32, 3) to (batch, 8, 8)."""
    red, green, blue = np.moveaxis(thumbnails, -1, 0)
    gray = red * np.uint32(19595) + green * np.uint32(38470) + blue * np.uint32(7471) + np.uint32(1 << 15) >> 16  # BT.601, as in Pillow
    coefficients: NDArray[np.float64] = _DCT @ gray.astype(np.float64) @ _DCT.T
    return coefficients


def _dct_rows() -> NDArray[np.float64]:
    """The first 8 rows of the orthonormal 32-point DCT-II matrix."""
    k, n = np.arange(8)[:, None], np.arange(PHASH_SIZE_PX)[None, :]
    rows: NDArray[np.float64] = np.cos(np.pi * (2 * n + 1) * k / (2 * PHASH_SIZE_PX)) * np.sqrt(2 / PHASH_SIZE_PX)
    rows[0] /= np.sqrt(2)
    return rows


_DCT = _dct_rows()
