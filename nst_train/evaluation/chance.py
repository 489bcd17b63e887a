"""Whether a difference between two classifiers is larger than chance: the paired bootstrap over images.

Both classified the same images, which are resampled with replacement together with both results (Efron & Tibshirani 1993, chapter 13: the
percentile interval).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_MIN_IMAGES = 6  # five images are all on one side in 1 of 16 cases
_MAX_COUNTED_VALUES = 512  # up to as many distinct differences are resampled by their counts, at a cost independent of the number of images


@dataclass(frozen=True)
class Difference:
    """The mean difference over `images`, and the interval with 95% of the means over resampled images."""

    mean: float
    low: float
    high: float
    images: int

    @property
    def is_larger_than_chance(self) -> bool:
        """Whether 0 lies outside the interval; False with so few images that all might be on one side by chance."""
        return self.images >= _MIN_IMAGES and not self.low <= 0 <= self.high


def paired_bootstrap(first: NDArray[np.float64], second: NDArray[np.float64], seed: int = 0) -> Difference:
    """The mean of `second - first`, for values of the same images in the same order. Images with NaN in either are left out.

    The same seed draws the same images. At least one image must be left.
    """
    differences = second - first
    differences = differences[~np.isnan(differences)]
    images, draw = len(differences), np.random.default_rng(seed)
    values, counts = np.unique(differences, return_counts=True)
    if len(values) <= _MAX_COUNTED_VALUES:
        means = draw.multinomial(images, counts / images, size=RESAMPLES) @ values / images
    else:
        means = np.array([differences[draw.integers(0, images, images)].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, (0.025, 0.975))
    return Difference(float(differences.mean()), float(low), float(high), images)
