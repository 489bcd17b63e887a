"""Contrast, distortion and compression. Arrays are images of shape (height, width, 3) with levels from 0 to 255; lengths are in pixels."""

import io

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from nst_train.evaluation.corruptions.blur import smooth

Levels = NDArray[np.float32]


def contrast(pixels: NDArray[np.uint8], random: Generator, factor: float) -> Levels:
    """Scale the distance from each channel's mean by a factor."""
    means = pixels.mean(axis=(0, 1)).astype(np.float32)
    levels: Levels = (pixels - means) * np.float32(factor) + means
    return levels


def elastic_transform(pixels: NDArray[np.uint8], random: Generator, strength: float, sigma: float, affine: float) -> Levels:
    """A random affine map, followed by displacing each pixel by smooth noise.

    Three corners of the centered square, whose half side is a third of the image's shorter side, move by up to `affine` in each direction;
    displacements are uniform noise from -1 to 1, smoothed by a Gaussian filter of `sigma`, times `strength`. Reflected at the borders.
    """
    height, width = pixels.shape[:2]
    center, reach = np.array([width // 2, height // 2]), min(height, width) // 3
    corners = (center + reach * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    moved = corners + random.uniform(-affine, affine, corners.shape).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    turned = cv2.warpAffine(pixels.astype(np.float32), matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    noise = random.random((2, height, width), dtype=np.float32) * 2 - 1
    down, right = (smooth(layer, sigma, truncate=3, border=cv2.BORDER_REFLECT) * np.float32(strength) for layer in noise)
    columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    bent: Levels = cv2.remap(turned, columns + right, rows + down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return bent


def pixelate(pixels: NDArray[np.uint8], random: Generator, factor: float) -> NDArray[np.uint8]:
    """Shrink to this share of each side and enlarge again, by box filters."""
    image = Image.fromarray(pixels)
    small = image.resize((int(image.width * factor), int(image.height * factor)), Image.Resampling.BOX)
    return np.array(small.resize(image.size, Image.Resampling.BOX))


def jpeg_compression(pixels: NDArray[np.uint8], random: Generator, quality: float) -> NDArray[np.uint8]:
    """Encode as a JPEG of this quality with Pillow, and decode it."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=int(quality))
    return np.array(Image.open(file, formats=["JPEG"]))


def saturate(pixels: NDArray[np.uint8], random: Generator, factor: float, shift: float) -> Levels:
    """HSV's saturation s becomes factor * s + shift, at most 1; gray counts as red."""
    levels = pixels.astype(np.float32)
    value = levels.max(axis=2, keepdims=True)
    chroma = value - levels.min(axis=2, keepdims=True)
    saturation = np.divide(chroma, value, out=np.zeros_like(value), where=value > 0)
    scaled = np.clip(saturation * np.float32(factor) + np.float32(shift), 0, 1)
    below = np.divide(value - levels, chroma, out=np.zeros_like(levels), where=chroma > 0)  # 0 to 1 for each channel
    gray = np.array([0, 1, 1], dtype=np.float32)
    saturated: Levels = value * (1 - scaled * np.where(chroma > 0, below, gray))
    return saturated
