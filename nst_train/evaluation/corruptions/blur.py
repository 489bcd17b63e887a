"""Blur. Arrays are images of shape (height, width, 3) with levels from 0 to 255; lengths are in pixels."""

import math
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Levels = NDArray[np.float32]
LEVEL_TOLERANCE = 1e-3  # of a level: the largest error of float32 sums over a flat image


def smooth(values: NDArray[Any], sigma: float, truncate: float = 4, border: int = cv2.BORDER_REPLICATE) -> Levels:
    """Gaussian filter over the first two axes, truncated at `truncate` standard deviations; the defaults are those of scikit-image."""
    radius = int(truncate * sigma + 0.5)
    values = values.astype(np.float32, copy=False)
    if radius:
        values = cv2.GaussianBlur(values, (2 * radius + 1,) * 2, sigma, borderType=border)
    return values


def gaussian_blur(pixels: NDArray[np.uint8], random: Generator, sigma: float) -> Levels:
    """Gaussian filter."""
    return smooth(pixels, sigma)


def glass_blur(pixels: NDArray[np.uint8], random: Generator, sigma: float, reach: float, rounds: float) -> Levels:
    """Gaussian filter, pixels replaced by their neighbors, and the filter again.

    The published loop visits pixels from the last row and column upward and is meant to swap each with one at most `reach` away; on
    NumPy views the swap becomes a copy, one pixel after the other, and the released sets are made this way. Here the origins of all pixels
    are computed at once.
    """
    blurred = (smooth(pixels, sigma) + np.float32(LEVEL_TOLERANCE)).astype(np.uint8)
    for _ in range(int(rounds)):
        blurred = _copy_neighbors(blurred, int(reach), random)
    return smooth(blurred, sigma)


def _copy_neighbors(pixels: NDArray[np.uint8], reach: int, random: Generator) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    number = np.arange(height * width, dtype=np.int32)
    place = number.reshape(height, width)
    visited = np.zeros((height, width), dtype=np.bool_)
    inside = (slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1))
    visited[inside] = True
    origin = place.copy()
    shift = random.integers(-reach, reach, (2, *place[inside].shape), dtype=np.int32)
    origin[inside] += shift[0] * width + shift[1]
    source = origin.ravel()
    overwritten = visited.ravel()[source] & (source > number)  # the neighbor was visited earlier: its new value counts
    last = np.where(overwritten, source, number)
    while not np.array_equal(further := last[last], last):  # follow the chains of copies, twice as far each time
        last = further
    return pixels.reshape(-1, 3)[source[last]].reshape(pixels.shape)


def defocus_blur(pixels: NDArray[np.uint8], random: Generator, radius: float, softness: float) -> Levels:
    """Blur by a disk whose rim is softened by a Gaussian of standard deviation `softness`; reflected at the borders.

    As published, the softening itself is reflected at the edge of the disk's square, so that disks of 8 or 10 px brighten images by 1%.
    """
    blurred: Levels = cv2.filter2D(pixels, cv2.CV_32F, _disk(radius, softness))
    return blurred


@lru_cache
def _disk(radius: float, softness: float) -> Levels:
    reach = max(8, math.ceil(radius))
    offsets = np.arange(-reach, reach + 1)
    disk = (np.hypot(offsets, offsets[:, None]) <= radius).astype(np.float32)
    softened: Levels = cv2.GaussianBlur(disk / disk.sum(), (3, 3) if radius <= 8 else (5, 5), softness)
    return softened


def motion_blur(pixels: NDArray[np.uint8], random: Generator, radius: float, sigma: float) -> Levels:
    """Motion blur along a line within 45 degrees of the horizontal, rounded to whole levels as in ImageMagick."""
    rounded: Levels = np.rint(blur_along(pixels, radius, sigma, random.uniform(-45, 45)))
    return rounded


def blur_along(values: NDArray[np.uint8], radius: float, sigma: float, degrees: float) -> Levels:
    """ImageMagick's motion blur: half a Gaussian over 2 radius + 1 pixels in one direction (90 degrees is down), with repeated edges."""
    along = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(along**2) / (2 * sigma**2))
    angle = math.radians(degrees)
    right, down = (np.ceil(along * component - 0.5).astype(int) for component in (math.cos(angle), math.sin(angle)))
    kernel = np.zeros((np.ptp(down) + 1, np.ptp(right) + 1), dtype=np.float32)
    left, top = min(right.min(), 0), min(down.min(), 0)
    np.add.at(kernel, (down - top, right - left), weights / weights.sum())
    dragged: Levels = cv2.filter2D(values, cv2.CV_32F, kernel, anchor=(int(-left), int(-top)), borderType=cv2.BORDER_REPLICATE)
    return dragged


def zoom_blur(pixels: NDArray[np.uint8], random: Generator, end: float, step: float) -> Levels:
    """The mean of the image and its enlargements by `numpy.arange(1, end, step)`, which includes `end` or not depending on rounding."""
    factors = np.arange(1, end, step)
    levels = pixels.astype(np.float32)
    total = levels.copy()
    for factor in factors:
        total += enlarge(levels, factor)
    return total / np.float32(len(factors) + 1)


def enlarge(values: Levels, factor: float) -> Levels:
    """The center of the image, enlarged linearly to the shape of the image; the corners of the center stay corners."""
    (a, first_row), (b, first_column) = (_source_mapping(side, factor) for side in values.shape[:2])
    matrix = np.array([[b, 0, first_column], [0, a, first_row]])
    size = (values.shape[1], values.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    enlarged: Levels = cv2.warpAffine(values, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return enlarged


def _source_mapping(side_px: int, factor: float) -> tuple[float, float]:
    """(scale, first) such that pixel p of the enlarged side shows position scale * p + first of the original."""
    crop_px = math.ceil(side_px / factor)
    enlarged = round(crop_px * factor)
    scale = (crop_px - 1) / (enlarged - 1)
    return scale, (side_px - crop_px) // 2 + (enlarged - side_px) // 2 * scale
