"""The order of training images as a pure function of (seed, position): no permutation in memory, nothing to replay on resume."""

import numpy as np
from numpy.typing import NDArray

from nst_train.seeds import derive_seed

_ROUNDS = 6


def shuffled_rows(positions: NDArray[np.int64], rows: int, seed: int, part: str) -> NDArray[np.int64]:
    """The row at each position of an endless stream of epochs, shape (positions,).

    Position p lies in epoch p // rows; each epoch contains every row once, in its own order.
    """
    epochs = positions // rows
    sampled = np.empty_like(positions)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        sampled[in_epoch] = permute(positions[in_epoch] % rows, rows, derive_seed(seed, part, "order", int(epoch)))
    return sampled


def permute(index: NDArray[np.int64], rows: int, key: int) -> NDArray[np.int64]:
    """A keyed permutation of range(rows) applied to `index`.

    A Feistel network over the next even number of bits, with cycle walking: values outside the range are permuted until they are inside
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    half = np.uint64(max(1, -(-(rows - 1).bit_length() // 2)))
    values = _feistel(index.astype(np.uint64), half, key)
    outside = values >= rows
    while outside.any():
        values[outside] = _feistel(values[outside], half, key)
        outside = values >= rows
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half: np.uint64, key: int) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for turn in range(_ROUNDS):
        left, right = right, left ^ (_splitmix64(right, derive_seed(key, turn)) & mask)
    return (left << half) | right


def _splitmix64(values: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """The 64-bit finalizer of splitmix64 applied to value and key; products wrap on purpose."""
    x = values + np.uint64((key << 32) | key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed
