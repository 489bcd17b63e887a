"""Weather effects. Arrays are images of shape (height, width, 3) with levels from 0 to 255; lengths are in pixels."""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from nst_train.evaluation.corruptions.blur import blur_along, enlarge, smooth
from nst_train.evaluation.corruptions.ice import N_PICTURES, crop_ice
from nst_train.evaluation.corruptions.plasma import plasma

Levels = NDArray[np.float32]


def snow(
    pixels: NDArray[np.uint8],
    random: Generator,
    mean: float,
    std: float,
    flake_px: float,
    threshold: float,
    radius: float,
    sigma: float,
    darkness: float,
) -> Levels:
    """Flakes falling within 45 degrees of straight down over a whitened image, added twice, the second time rotated by 180 degrees.

    Flakes are where normal noise, enlarged by `flake_px`, exceeds the threshold; the original image has weight `darkness`.
    """
    flakes = enlarge((mean + std * random.standard_normal(pixels.shape[:2])).astype(np.float32), flake_px)
    flakes[flakes < threshold] = 0
    streaks = np.rint(blur_along((np.clip(flakes, 0, 1) * 255).astype(np.uint8), radius, sigma, random.uniform(-135, -45)))
    levels = pixels.astype(np.float32)
    white = np.maximum(levels, cv2.cvtColor(levels, cv2.COLOR_RGB2GRAY)[..., None] * 1.5 + 127.5)
    snowy: Levels = np.float32(darkness) * levels + np.float32(1 - darkness) * white + (streaks + streaks[::-1, ::-1])[..., None]
    return snowy


def frost(pixels: NDArray[np.uint8], random: Generator, image_share: float, ice_share: float, scale: float) -> Levels:
    """A weighted sum of the image and a piece of an icy window, from a picture shrunk by `scale`."""
    ice = crop_ice(int(random.integers(N_PICTURES)), scale, pixels.shape[:2], random)
    return np.float32(image_share) * pixels + np.float32(ice_share) * ice


def fog(pixels: NDArray[np.uint8], random: Generator, thickness: float, decay: float) -> Levels:
    """Add a fractal cloud of this thickness, scaled so that the brightest level stays at most the same."""
    height, width = pixels.shape[:2]
    cloud = plasma(1 << (max(height, width) - 1).bit_length(), decay, random)[:height, :width, None]
    brightest, thick = np.float32(pixels.max()), np.float32(255 * thickness)
    foggy: Levels = (pixels + thick * cloud) * (brightest / (brightest + thick))
    return foggy


def brightness(pixels: NDArray[np.uint8], random: Generator, addition: float) -> Levels:
    """Increase HSV's value by this share of the range, up to its maximum; black becomes gray."""
    levels = pixels.astype(np.float32)
    value = levels.max(axis=2, keepdims=True)
    brighter = np.minimum(value + np.float32(255 * addition), 255)
    lit: Levels = np.where(value > 0, levels * (brighter / np.maximum(value, 1)), brighter)
    return lit


def spatter(
    pixels: NDArray[np.uint8], random: Generator, mean: float, std: float, sigma: float, threshold: float, strength: float, mud: float
) -> Levels:
    """Drops of water, or if `mud` is 1 of mud, where smoothed normal noise exceeds the threshold.

    `strength` is the weight of water at the brightest drop, or the standard deviation of the filter that rounds drops of mud.
    """
    layer = smooth(mean + std * random.standard_normal(pixels.shape[:2]), sigma)
    if mud:
        cover = smooth(layer > threshold, strength)
        cover = np.where(cover < 0.8, np.float32(0), cover)[..., None]
        return pixels * (1 - cover) + np.array([63, 42, 20], dtype=np.float32) * cover
    shine = _shine((np.where(layer < threshold, 0, layer) * 255).astype(np.uint8))
    return pixels + np.float32(strength) * shine[..., None] * np.array([175, 238, 238], dtype=np.float32)


def _shine(drops: NDArray[np.uint8]) -> Levels:
    """Light on drops, with a maximum of 1: the distance to their rims, equalized and embossed from one side."""
    to_rim: Levels = np.minimum(cv2.distanceTransform(255 - cv2.Canny(drops, 50, 150), cv2.DIST_L2, 5), 20)
    relief = cv2.equalizeHist(cv2.blur(to_rim, (3, 3)).astype(np.uint8))
    lit = cv2.filter2D(relief, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float32))
    shine: Levels = drops * cv2.blur(lit, (3, 3)).astype(np.float32)
    scaled: Levels = shine / max(shine.max(), np.float32(1))
    return scaled
