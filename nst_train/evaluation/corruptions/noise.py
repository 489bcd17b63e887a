"""Noise, which changes each value of an image independently. Arrays are images of shape (height, width, 3) with levels from 0 to 255."""

from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Levels = NDArray[np.float32]


def gaussian_noise(pixels: NDArray[np.uint8], random: Generator, std: float) -> Levels:
    """Add normal noise; `std` is a share of the range, here and below."""
    return pixels + np.float32(255 * std) * _normal(pixels.shape, random)


def shot_noise(pixels: NDArray[np.uint8], random: Generator, photons: float) -> Levels:
    """Poisson noise of a sensor that counts `photons` photons for a white pixel."""
    counts = random.poisson(pixels * (photons / 255))
    return counts.astype(np.float32) * np.float32(255 / photons)


def impulse_noise(pixels: NDArray[np.uint8], random: Generator, share: float) -> NDArray[np.uint8]:
    """Salt and pepper noise: this share of the values becomes 0 or 255, equally often."""
    uniform = random.random(pixels.shape, dtype=np.float32)
    return np.where(uniform < share / 2, np.uint8(0), np.where(uniform >= 1 - share / 2, np.uint8(255), pixels))


def speckle_noise(pixels: NDArray[np.uint8], random: Generator, std: float) -> Levels:
    """Normal noise proportional to the level."""
    return pixels * (1 + np.float32(std) * _normal(pixels.shape, random))


def _normal(shape: tuple[Any, ...], random: Generator) -> Levels:
    return random.standard_normal(shape, dtype=np.float32)
