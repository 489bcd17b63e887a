"""Image operations that look up each level in a table.

timm and Pillow build their tables in Python loops, which dominate the time for images of 32 px. Small images are processed by NumPy here,
with the same pixels as a result; large ones still by timm and Pillow, whose look-up is faster for them.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment

_SMALL_PIXELS = 64 * 64
_CHANNEL_STARTS = np.array([0, 256, 512])
_LEVELS = np.arange(256)


def apply_table(image: Image.Image, table: NDArray[np.integer]) -> Image.Image:
    """Replace each level of each channel of an RGB image; the table has shape (256,)."""
    if _is_large(image):
        return image.point(table.tolist() * 3)
    return Image.fromarray(table.astype(np.uint8).take(np.asarray(image)))


def autocontrast(image: Image.Image, dtype: type[np.floating] = np.float64) -> Image.Image:
    """Stretch each channel of an RGB image over all levels, computing in `dtype`: float64 as in Pillow, or float32 as in TensorFlow."""
    if dtype is np.float64 and _is_large(image):
        return auto_augment.auto_contrast(image)  # type: ignore[no-any-return]
    low, high = np.array(image.getextrema(), dtype).T[..., None]
    scale = dtype(255) / np.maximum(high - low, 1)
    stretched = np.clip(_LEVELS.astype(dtype) * scale - low * scale, 0, 255).astype(np.intp)
    tables = np.where(high > low, stretched, _LEVELS)
    if _is_large(image):
        return image.point(tables.ravel().tolist())
    return _apply_channel_tables(np.asarray(image) + _CHANNEL_STARTS, tables)


def equalize(image: Image.Image) -> Image.Image:
    """Equalize the histogram of each channel of an RGB image."""
    if _is_large(image):
        return auto_augment.equalize(image)  # type: ignore[no-any-return]
    pixels = np.asarray(image) + _CHANNEL_STARTS
    counts = np.bincount(pixels.ravel(), minlength=3 * 256).reshape(3, 256)
    highest = np.array(image.getextrema())[:, 1]
    step = (counts.sum(1) - counts[np.arange(3), highest])[:, None] // 255
    below = np.cumsum(counts, axis=1) - counts
    spread = np.minimum((below + step // 2) // np.maximum(step, 1), 255)
    return _apply_channel_tables(pixels, np.where(step > 0, spread, _LEVELS))


def _is_large(image: Image.Image) -> bool:
    return image.width * image.height > _SMALL_PIXELS


def _apply_channel_tables(pixels: NDArray[np.int64], tables: NDArray[np.integer]) -> Image.Image:
    """`pixels` has shape (height, width, 3), with 256 and 512 added to the second and third channel; `tables` has shape (3, 256)."""
    return Image.fromarray(tables.astype(np.uint8).ravel().take(pixels))
