"""Pictures of ice flowers on a window, drawn by a seeded procedure: the photographs of the released sets are not free to copy.

There are five, as many as the released sets draw from, each with the mean color and the spread of one of those photographs, and always the
same ones: stems with branches at 60 degrees, as ice grows, over a fractal haze.
"""

from functools import lru_cache

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from nst_train.evaluation.corruptions.plasma import plasma

_SIDE_PX = 512
_MEANS = ((78, 149, 166), (201, 205, 214), (201, 205, 214), (138, 153, 165), (112, 123, 135))
_SPREADS = (43, 23, 23, 31, 44)
PICTURES = len(_MEANS)
_SUBPIXEL_BITS = 4


def piece_of_ice(picture: int, scale: float, shape: tuple[int, ...], random: Generator) -> NDArray[np.uint8]:
    """A random piece of a picture (0 to 4) shrunk by `scale`, of this height and width; enlarged where the picture is smaller."""
    whole = _shrunk(picture, scale)
    fit = min(1.0, len(whole) / max(shape))
    height, width = (max(1, int(side * fit)) for side in shape)
    top, left = int(random.integers(len(whole) - height + 1)), int(random.integers(len(whole) - width + 1))
    piece: NDArray[np.uint8] = whole[top : top + height, left : left + width]
    if fit < 1:
        piece = cv2.resize(piece, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return piece


@lru_cache
def _shrunk(picture: int, scale: float) -> NDArray[np.uint8]:
    side = round(_SIDE_PX * scale)
    shrunk: NDArray[np.uint8] = cv2.resize(_picture(picture), (side, side), interpolation=cv2.INTER_LINEAR)
    return shrunk


@lru_cache
def _picture(number: int) -> NDArray[np.uint8]:
    random = np.random.default_rng([number, *b"ice"])
    depth = plasma(_SIDE_PX, 1.6, random) + np.float32(1.2) * _flowers(random)
    levels = (depth - depth.mean()) / depth.std()
    colors: NDArray[np.float32] = np.array(_MEANS[number], np.float32) + _SPREADS[number] * levels[..., None]
    return np.clip(colors, 0, 255).astype(np.uint8)


def _flowers(random: Generator) -> NDArray[np.float32]:
    """Stems, branches and their twigs as lines from 0 to 1."""
    stems = 70
    start, angle, length = random.uniform(0, _SIDE_PX, (stems, 2)), random.uniform(0, 2 * np.pi, stems), random.uniform(60, 260, stems)
    canvas = np.zeros((_SIDE_PX, _SIDE_PX), dtype=np.uint8)
    for brightness, branches in ((255, 24), (190, 9), (120, 0)):
        heading = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        ends = np.stack([start, start + heading * length[:, None]], axis=1)
        lines = np.rint(ends * 2**_SUBPIXEL_BITS).astype(np.int32)
        layer = np.zeros_like(canvas)
        cv2.polylines(layer, list(lines), False, brightness, 1, cv2.LINE_AA, _SUBPIXEL_BITS)
        canvas = np.maximum(canvas, layer)
        along = np.linspace(0.05, 0.95, branches)
        start = np.repeat((start[:, None] + heading[:, None] * (length[:, None] * along)[..., None]).reshape(-1, 2), 2, axis=0)
        side = np.tile([1, -1], len(start) // 2)
        angle = np.repeat(angle, 2 * branches) + side * (np.pi / 3 + random.normal(0, 0.06, len(start)))
        length = np.repeat((length[:, None] * 0.4 * (1 - along)).ravel(), 2)
    return canvas.astype(np.float32) / np.float32(255)
