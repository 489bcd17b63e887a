"""Encoded bytes to the RGB image that a person sees, and the two hashes of an image."""

import io
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from nst_data.errors import NstError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "TGA")
"""What is opened, by Pillow's names, whatever a file is called; others' decoders start programs (EPS: Ghostscript) or are little tried.

TGA, which has no mark at its start, comes last.
"""
MAX_PIXELS = 178_956_970  # Pillow's own bound for "decompression bomb": 0.5 GB as RGB
PHASH_SIZE_PX = 32
_PHASH_ROWS = 128  # of the image that a thumbnail is made from: four for each of its own
_LARGE_PIXELS, _LONGEST = 16_000_000, 250
_one_large_image = threading.Lock()  # decoded one after the other: memory is that of the largest, not of as many as there are threads
warnings.filterwarnings("ignore", module=r"PIL\.")  # what Pillow thinks of an image is that image's affair, not the screen's
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LIES = {5, 6, 7, 8}  # orientations in which width and height change places
_ALPHA_MODES = {"RGBA", "LA", "PA", "La", "RGBa"}


class ImageError(NstError):
    """The bytes are not an image that can be decoded; the message is the reason."""


class JpegHeader(NamedTuple):
    """What a JPEG says of itself before its pixels; `components` is 1 for gray, 3 for color, 4 for CMYK."""

    width: int
    height: int
    components: int


def jpeg_header(encoded: bytes | memoryview) -> JpegHeader | None:
    """The first frame header of a JPEG with 8 bits a sample, baseline or progressive; None for anything else (ITU T.81, B.2.2)."""
    encoded = memoryview(encoded).cast("B")  # Arrow's views hold signed bytes
    if encoded[:2].tobytes() != b"\xff\xd8":
        return None
    position, end = 2, len(encoded) - 9
    while position < end and encoded[position] == 0xFF:
        marker = encoded[position + 1]
        if marker in (0xC0, 0xC1, 0xC2):
            precision, height, width, components = _FRAME.unpack_from(encoded, position + 4)
            return JpegHeader(width, height, components) if precision == 8 else None
        if marker == 0xFF:  # a fill byte
            position += 1
        elif 0xC3 <= marker <= 0xCF and marker != 0xC4 and marker != 0xCC:
            return None  # lossless, arithmetic or hierarchical
        else:
            position += 2 + (encoded[position + 2] << 8 | encoded[position + 3])
    return None


_FRAME = struct.Struct(">BHHB")


def image_hash(encoded: bytes | memoryview) -> str:
    """xxh3-128 of the encoded bytes, 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(encoded)


def check_size(width: int, height: int) -> None:
    """Raises ImageError for an image that is too large to be decoded."""
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width}x{height} pixels, more than the {MAX_PIXELS} that are decoded")


def check_shape(width: int, height: int) -> None:
    """Raises ImageError for an image so long that, resized to a side of some hundred pixels, it would fill the memory."""
    if max(width, height) > _LONGEST * min(width, height):
        raise ImageError(f"{width}x{height} pixels: one side is more than {_LONGEST} times the other")


def large_images_alone(pixels: int) -> AbstractContextManager[object]:
    """What to hold while an image of so many pixels is decoded."""
    return _one_large_image if pixels > _LARGE_PIXELS else nullcontext()


def decode(encoded: bytes | memoryview, least_side_px: int | None = None) -> Image.Image:
    """Decode to 8-bit RGB as a viewer shows it: upright, transparency over white, 16-bit scaled to 8.

    With `least_side_px` a JPEG may come out smaller by 2, 4 or 8, both sides at least as long as that: its decoder leaves out the
    fine detail, at a fraction of the cost. The first frame stands for an animation. Raises ImageError with the reason.
    """
    with _opened(encoded) as image:
        check_size(image.width, image.height)
        with large_images_alone(image.width * image.height):
            if least_side_px and image.format == "JPEG":
                image.draft(None, reduced_size(image.width, image.height, least_side_px))
            image.load()
            return _upright(_to_rgb(image), _orientation(image))


def upright_size(encoded: bytes | memoryview) -> tuple[int, int]:
    """(width, height) of the image as `decode` gives it, read from its header. Raises ImageError with the reason."""
    with _opened(encoded) as image:
        lies = _orientation(image) in _LIES
        return (image.height, image.width) if lies else (image.width, image.height)


@contextmanager
def _opened(encoded: bytes | memoryview) -> Iterator[Image.Image]:
    if not encoded:
        raise ImageError("empty file")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            yield image
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything on hostile bytes; each becomes this image's reason
        reason = f"not an image in a known format ({', '.join(FORMATS)})" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ImageError(reason.splitlines()[0] if reason else type(error).__name__) from error


def reduced_factor(width: int, height: int, least_side_px: int) -> int:
    """The largest of 8, 4, 2 and 1 by which both sides can be divided and are still at least `least_side_px`."""
    return next((factor for factor in (8, 4, 2) if min(width, height) // factor >= least_side_px), 1)


def reduced_size(width: int, height: int, least_side_px: int) -> tuple[int, int]:
    """(width, height) of the smallest of the sizes 1/1, 1/2, 1/4 and 1/8 whose sides are both at least `least_side_px`."""
    factor = reduced_factor(width, height, least_side_px)
    return width // factor, height // factor


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (OSError, SyntaxError, TypeError, ValueError, struct.error):
        return 1  # viewers show an image with broken EXIF as it is stored


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_gray_to_rgb(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _deep_gray_to_rgb(image: Image.Image) -> Image.Image:
    """16-bit integers by 257; floats taken as [0, 1] where they fit, else as [0, 255]."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode != "F":
        values = values / 257.0
    elif (values <= 1.0).all():
        values = values * 255.0
    gray = np.clip(np.nan_to_num(values), 0, 255).round().astype(np.uint8)
    return Image.fromarray(gray).convert("RGB")


def phash_thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """The thumbnail of the whole image that `phash` reads; shape (32, 32, 3)."""
    pixels = np.asarray(image)
    if pixels.shape[:2] == (PHASH_SIZE_PX, PHASH_SIZE_PX):
        return pixels
    rows = Image.fromarray(np.ascontiguousarray(pixels[:: phash_row_step(len(pixels))]))
    return np.asarray(rows.resize((PHASH_SIZE_PX, PHASH_SIZE_PX), Image.Resampling.BILINEAR))


def phash_row_step(height: int) -> int:
    """Every how many rows of an image its thumbnail is made from: all would cost more and tell no more."""
    return max(1, height // _PHASH_ROWS)


def phash(thumbnails: NDArray[np.uint8]) -> NDArray[np.int64]:
    """64-bit perceptual hashes of a batch: sign of the 8x8 lowest DCT coefficients of the gray image against their median.

    `thumbnails` has shape (batch, 32, 32, 3). Two images are alike when their hashes differ in few bits.
    """
    if len(thumbnails) == 0:
        return np.empty(0, dtype=np.int64)
    flat = low_frequencies(thumbnails).reshape(len(thumbnails), 64).round(6)  # a plain image leaves rounding there, and no hash
    ranked = np.sort(flat, axis=1)
    bits = flat > (ranked[:, 31:32] + ranked[:, 32:33]) / 2
    hashes: NDArray[np.int64] = np.packbits(bits, axis=1, bitorder="little").view("<i8").astype(np.int64).ravel()
    return hashes


def low_frequencies(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The lowest DCT-II coefficients of the gray images, orthonormal; (batch, 32, 32, 3) to (batch, 8, 8)."""
    red, green, blue = np.moveaxis(thumbnails, -1, 0)
    gray = red * np.uint32(19595) + green * np.uint32(38470) + blue * np.uint32(7471) + np.uint32(1 << 15) >> 16  # BT.601, as Pillow's "L"
    coefficients: NDArray[np.float64] = _DCT @ gray.astype(np.float64) @ _DCT.T
    return coefficients


def _dct_rows() -> NDArray[np.float64]:
    """The first 8 rows of the orthonormal DCT-II of 32 points."""
    k, n = np.arange(8)[:, None], np.arange(PHASH_SIZE_PX)[None, :]
    rows: NDArray[np.float64] = np.cos(np.pi * (2 * n + 1) * k / (2 * PHASH_SIZE_PX)) * np.sqrt(2 / PHASH_SIZE_PX)
    rows[0] /= np.sqrt(2)
    return rows


_DCT = _dct_rows()
