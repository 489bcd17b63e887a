"""Clouds: fractal height maps by the diamond-square algorithm (Fournier, Fussell and Carpenter 1982)."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


def plasma(side: int, decay: float, random: Generator) -> NDArray[np.float32]:
    """A periodic height map from 0 to 1 by the diamond-square algorithm, shape (side, side); `side` is a power of two.

    Each time the grid is halved, the uniform noise is divided by the square of `decay`, as in the published code.
    """
    heights = np.zeros((1, 1), dtype=np.float32)
    size = 1.0
    while len(heights) < side:
        above_left, above_right = heights, np.roll(heights, -1, axis=1)
        noise = random.uniform(-size, size, (3, *heights.shape)).astype(np.float32)
        below = np.roll(above_left, -1, axis=0)
        middle = (above_left + above_right + below + np.roll(above_right, -1, axis=0)) / 4 + noise[0]
        upper = (above_left + above_right + middle + np.roll(middle, 1, axis=0)) / 4 + noise[1]
        left = (above_left + below + middle + np.roll(middle, 1, axis=1)) / 4 + noise[2]
        finer = np.empty((2 * len(heights),) * 2, dtype=np.float32)
        finer[::2, ::2], finer[1::2, 1::2], finer[::2, 1::2], finer[1::2, ::2] = heights, middle, upper, left
        heights, size = finer, size / decay**2
    heights -= heights.min()
    scaled: NDArray[np.float32] = heights / heights.max()
    return scaled
