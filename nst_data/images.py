"""Encoded bytes to the RGB image that a person sees, and the two hashes of an image."""

import io
import struct

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from nst_data.errors import NstError

MAX_PIXELS = 178_956_970  # Pillow's own bound for "decompression bomb": 0.5 GB as RGB
PHASH_SIZE_PX = 32
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
_ALPHA_MODES = {"RGBA", "LA", "PA", "La", "RGBa"}


class ImageError(NstError):
    """The bytes are not an image that can be decoded; the message is the reason."""


def image_hash(encoded: bytes) -> str:
    """xxh3-128 of the encoded bytes, 32 hex digits."""
    return xxhash.xxh3_128_hexdigest(encoded)


def decode(encoded: bytes) -> Image.Image:
    """Decode to 8-bit RGB as a viewer shows it: upright, transparency over white, 16-bit scaled to 8.

    The first frame stands for an animation. Raises ImageError with the reason.
    """
    if not encoded:
        raise ImageError("empty file")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{image.width}x{image.height} pixels, more than the {MAX_PIXELS} that are decoded")
            image.load()
            return _upright(_to_rgb(image), _orientation(image))
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything on hostile bytes; each becomes this image's reason
        reason = "not an image in a known format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise ImageError(reason.splitlines()[0] if reason else type(error).__name__) from error


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
    """The 32x32 gray thumbnail of the whole image that `phash` reads; shape (32, 32)."""
    thumbnail = image.resize((PHASH_SIZE_PX, PHASH_SIZE_PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(thumbnail.convert("L"))


def phash(thumbnails: NDArray[np.uint8]) -> NDArray[np.int64]:
    """64-bit perceptual hashes of a batch: sign of the 8x8 lowest DCT coefficients against their median.

    `thumbnails` has shape (batch, 32, 32). Two images are alike when their hashes differ in few bits.
    """
    if len(thumbnails) == 0:
        return np.empty(0, dtype=np.int64)
    low = _DCT @ thumbnails.astype(np.float64) @ _DCT.T
    flat = low.reshape(len(low), 64).round(6)  # what a plain image leaves there is rounding, and no hash
    bits = (flat > np.median(flat, axis=1, keepdims=True)).astype(np.uint64)
    packed = (bits << np.arange(64, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
    hashes: NDArray[np.int64] = packed.view(np.int64)
    return hashes


def _dct_rows() -> NDArray[np.float64]:
    """The first 8 rows of the orthonormal DCT-II of 32 points."""
    k, n = np.arange(8)[:, None], np.arange(PHASH_SIZE_PX)[None, :]
    rows: NDArray[np.float64] = np.cos(np.pi * (2 * n + 1) * k / (2 * PHASH_SIZE_PX)) * np.sqrt(2 / PHASH_SIZE_PX)
    rows[0] /= np.sqrt(2)
    return rows


_DCT = _dct_rows()
