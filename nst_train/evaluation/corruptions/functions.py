"""The corruption functions by name."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nst_train.evaluation.corruptions.blur import LEVEL_TOLERANCE, defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from nst_train.evaluation.corruptions.digital import contrast, elastic_transform, jpeg_compression, pixelate, saturate
from nst_train.evaluation.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from nst_train.evaluation.corruptions.parameters import parameters_of
from nst_train.evaluation.corruptions.weather import brightness, fog, frost, snow, spatter

cv2.setNumThreads(1)  # callers process images in parallel; OpenCV's own threads do not survive a fork

_FUNCTIONS: dict[str, Callable[..., NDArray[Any]]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
    "speckle_noise": speckle_noise,
    "gaussian_blur": gaussian_blur,
    "spatter": spatter,
    "saturate": saturate,
}


def apply_corruption(name: str, pixels: NDArray[np.uint8], random: np.random.Generator, severity: int) -> NDArray[np.uint8]:
    """A corrupted copy of an RGB image, uint8, shape (height, width, 3); `random` determines all draws."""
    levels = _FUNCTIONS[name](pixels, random, *parameters_of(name, severity, min(pixels.shape[:2])))
    return levels if levels.dtype == np.uint8 else (np.clip(levels, 0, 255) + np.float32(LEVEL_TOLERANCE)).astype(np.uint8)
