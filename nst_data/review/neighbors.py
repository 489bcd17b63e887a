"""Nearest neighbors in feature space: how far images are from labeled ones, how typical they are, and how neighbors are labeled."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

MAX_REFERENCES = 5_000  # compare each image with at most this many; if there are more, with a seeded sample
_NEAREST_LABELED, _VOTERS, _NEIGHBORS = 3, 10, 20
_NUMBERS_AT_ONCE = 2**24  # cosine similarities in memory at once: 64 MB

UnitVectors = Float[np.ndarray, "images dimensions"]  # unit-length rows
Scores = Float[np.ndarray, " images"]
OwnPositions = Int[
    np.ndarray, " images"
]  # each image's position among the references, so that it is not its own neighbor; -1 if it is not one


def outlier_scores(features: UnitVectors, labeled: UnitVectors, own_positions: OwnPositions | None = None) -> Scores:
    """Distance of each image from everything labeled, in [0, 1]: half of 1 minus the mean cosine to the nearest 3 labeled images.

    The distance to near neighbors on unit-length features detects images of unknown classes (Sun et al. 2022, who use only the k-th
    neighbor; here few images are labeled).
    """
    scores = np.empty(len(features), np.float32)
    for chunk, cosines, _ in _nearest_references(features, labeled, own_positions, _NEAREST_LABELED):
        scores[chunk] = (1 - cosines.mean(axis=1)) / 2
    return scores


def typicality(features: UnitVectors, references: UnitVectors, own_positions: OwnPositions) -> Scores:
    """The mean cosine to the nearest 20 references: high if there are many similar images."""
    scores = np.empty(len(features), np.float32)
    for chunk, cosines, _ in _nearest_references(features, references, own_positions, _NEIGHBORS):
        scores[chunk] = cosines.mean(axis=1)
    return scores


def neighbor_votes(
    features: UnitVectors,
    labels: Int[np.ndarray, " images"],
    references: UnitVectors,
    probs: Float[np.ndarray, "references classes"],
    own_positions: OwnPositions,
) -> Scores:
    """The mean probability that the nearest 10 references give to each image's label."""
    votes = np.empty(len(features), np.float32)
    for chunk, _, voters in _nearest_references(features, references, own_positions, _VOTERS):
        votes[chunk] = probs[voters, labels[chunk, None]].mean(axis=1, dtype=np.float32)
    return votes


def _nearest_references(
    features: UnitVectors, references: UnitVectors, own_positions: OwnPositions | None, k: int
) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.int64]]]:
    """Yield, per chunk of images, its slice, the cosines to the nearest references, and the positions of those, unordered."""
    k = max(1, min(k, len(references) - (own_positions is not None)))
    size = max(1, _NUMBERS_AT_ONCE // max(1, len(references)))
    for start in range(0, len(features), size):
        chunk = slice(start, min(start + size, len(features)))
        cosines = features[chunk] @ references.T
        if own_positions is not None:
            images = np.flatnonzero(own_positions[chunk] >= 0)
            cosines[images, own_positions[chunk][images]] = -np.inf
        places = np.argpartition(cosines, -k, axis=1)[:, -k:]
        yield chunk, np.take_along_axis(cosines, places, axis=1), places
