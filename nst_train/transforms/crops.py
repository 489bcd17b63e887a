"""Random crops for training, from encoded bytes: an image is decoded no larger than necessary, cropped, and resized once.

Resizing antialiases, as timm's evaluation transform does; the released code's bicubic does not.
"""

import math
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.transforms import str_to_pil_interp
from torch.nn import functional as F

from nst_data.decoding.jpeg import jpeg_header
from nst_data.images import reduced_factor, upright_size
from nst_train.settings import CropDraw
from nst_train.transforms.preprocessing import decode_pixels, to_pillow

_OVERSIZE = 2  # a JPEG is decoded so that the crop has at least twice the size that it is then resized to
_ASPECTS = (3 / 4, 4 / 3)
_ATTEMPTS = 10
_TORCH_INTERPOLATIONS = ("bicubic", "bilinear", "lanczos")  # what it resizes with antialiasing; nearest, box and hamming are left to Pillow
_COVERED, _AROUND_PX = 0.1, 32  # of the released code: `min_object_covered` and `CROP_PADDING` (preprocessing.py)


class Box(NamedTuple):
    """A rectangle in an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


def center_square(width: int, height: int) -> Box:
    """The largest centered square of an image."""
    side = min(width, height)
    return Box((width - side) // 2, (height - side) // 2, side, side)


def random_box(width: int, height: int, scale_min: float, random: Random) -> Box:
    """Draw a box with `scale_min` to all of the image's area and an aspect ratio from 3/4 to 4/3, as timm and torchvision do.

    With `scale_min` 1 it is always the largest centered square.
    """
    if scale_min == 1:
        return center_square(width, height)
    for _ in range(_ATTEMPTS):
        area = random.uniform(scale_min, 1.0) * width * height
        aspect = math.exp(random.uniform(math.log(_ASPECTS[0]), math.log(_ASPECTS[1])))
        wide, high = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        if wide <= width and high <= height:
            top = random.randint(0, height - high)
            return Box(random.randint(0, width - wide), top, wide, high)
    wide, high = min(width, round(height * _ASPECTS[1])), min(height, round(width / _ASPECTS[0]))
    return Box((width - wide) // 2, (height - high) // 2, wide, high)


def released_box(width: int, height: int, scale_min: float, size_px: int, random: Random) -> Box:
    """Draw a box as the released code does for a square of `size_px`: by TensorFlow's `sample_distorted_bounding_box`.

    Its height is uniform, not its area, and it covers at least a tenth of the image, so small boxes are more frequent than with
    `random_box`. It never touches the right or the lower edge, unless it is as wide or as high as the image. If ten attempts fail, or
    the whole image is drawn, it is the center crop of evaluation. With `scale_min` 1 it is the largest centered square.
    """
    if scale_min == 1:
        return center_square(width, height)
    area = width * height
    min_area = scale_min * area
    for _ in range(_ATTEMPTS):
        aspect = random.uniform(*_ASPECTS)
        highest = min(height, round(math.sqrt(area / aspect)), int((width + 0.5) / aspect))
        high = random.randint(min(round(math.sqrt(min_area / aspect)), highest), highest)
        wide = round(high * aspect)
        if wide * high < min_area:
            high += 1
        elif wide * high > area:
            high -= 1
        wide = round(high * aspect)
        if high > height or wide > width or not max(min_area, _COVERED * area) <= wide * high:
            continue
        if wide * high == area:
            break
        top = random.randrange(height - high) if high < height else 0
        return Box(random.randrange(width - wide) if wide < width else 0, top, wide, high)
    side = max(1, int(size_px / (size_px + _AROUND_PX) * min(width, height)))
    return Box((width - side + 1) // 2, (height - side + 1) // 2, side, side)


class RandomResizedCrop:
    """Decode an image, crop it at random, and resize the crop."""

    def __init__(self, scale_min: float, size_px: tuple[int, int], interpolation: str, method: CropDraw = "torchvision") -> None:
        """`size_px` is (height, width); `interpolation` is bicubic, bilinear or another of timm's."""
        self._scale_min, self._size, self._interpolation, self._draw = scale_min, size_px, interpolation, method

    def __call__(self, encoded: bytes | memoryview, random: Random) -> Image.Image:
        """An RGB image of size `size_px`. Raises ImageError for bytes that cannot be decoded."""
        header, box = jpeg_header(encoded), None
        min_side_px = None
        if header is not None and min(header.width, header.height) >= 2 * _OVERSIZE * max(self._size):
            width, height = upright_size(encoded)
            box = self._sample_box(width, height, random)
            factor = reduced_factor(box.width, box.height, _OVERSIZE * max(self._size))
            min_side_px = min(width, height) // factor if factor > 1 else None
        pixels = decode_pixels(encoded, min_side_px).permute(1, 2, 0)
        if box is None:
            box = self._sample_box(pixels.shape[1], pixels.shape[0], random)
        else:
            box = _scale_box(box, pixels.shape[1] / width, pixels.shape[0] / height)
        cropped = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
        return Image.fromarray(_resize(cropped, self._size, self._interpolation))

    def _sample_box(self, width: int, height: int, random: Random) -> Box:
        if self._draw == "released":
            return released_box(width, height, self._scale_min, min(self._size), random)
        return random_box(width, height, self._scale_min, random)


def _scale_box(box: Box, x_scale: float, y_scale: float) -> Box:
    left, right = round(box.left * x_scale), round((box.left + box.width) * x_scale)
    top, bottom = round(box.top * y_scale), round((box.top + box.height) * y_scale)
    return Box(left, top, right - left, bottom - top)


def _resize(pixels: torch.Tensor, size_px: tuple[int, int], interpolation: str) -> NDArray[np.uint8]:
    """Resize uint8 pixels of shape (h, w, 3) to (height, width, 3). The memory stays channels last, the fastest layout for torch."""
    if pixels.shape[:2] != size_px and interpolation not in _TORCH_INTERPOLATIONS:
        resized = to_pillow(pixels.permute(2, 0, 1)).resize(size_px[::-1], str_to_pil_interp(interpolation))
        return np.array(resized)
    if pixels.shape[:2] != size_px:
        batch = pixels[None].permute(0, 3, 1, 2)
        pixels = F.interpolate(batch, size=size_px, mode=interpolation, antialias=True)[0].permute(1, 2, 0)
    array: NDArray[np.uint8] = np.ascontiguousarray(pixels.numpy())
    return array


class PaddedCrop:
    """Reflect-pad an image and crop it at random to its own size (SVHN in the released code)."""

    def __init__(self, padding_px: int, size_px: tuple[int, int]) -> None:
        """`size_px` is (height, width) of the images."""
        self._padding, self._size = padding_px, size_px
        self._rows, self._columns = (np.pad(np.arange(side), padding_px, mode="reflect") for side in size_px)

    def __call__(self, image: Image.Image, random: Random) -> Image.Image:
        """A crop of the padded image, of the same size as the image."""
        top, left = random.randint(0, 2 * self._padding), random.randint(0, 2 * self._padding)
        rows, columns = self._rows[top : top + self._size[0]], self._columns[left : left + self._size[1]]
        return Image.fromarray(np.asarray(image).take(rows, axis=0).take(columns, axis=1))
