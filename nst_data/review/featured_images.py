"""Distinct images with their features, which are read from disk in batches, so that memory does not grow with their number."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nst_data.features.features import Features
from nst_data.review.distinct_images import DistinctImages, image_numbers
from nst_data.review.spreading import l2_normalize


class FeaturedImages:
    """`has_features` marks the images that have features; places are positions among the images."""

    def __init__(self, images: DistinctImages, features: Features) -> None:
        self.features, self._images = features, images
        self.has_features = np.zeros(len(images), bool)
        places = images.positions_of(image_numbers(features.rows()["image_hash"]))
        self.has_features[places[places >= 0]] = True

    def batches(self, center: NDArray[np.float32] | float = 0) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield places of images and their unit-length features after subtracting `center`.

        An image that occurs in several rows is yielded several times.
        """
        for rows, matrix in self.features.batches():
            places = self._images.positions_of(image_numbers(rows["image_hash"]))
            is_present = places >= 0
            yield places[is_present], l2_normalize(matrix[is_present] - np.float32(center))

    def gather(self, positions: NDArray[np.int64], center: NDArray[np.float32] | float = 0) -> NDArray[np.float32]:
        """The features of some images as `batches` yields them, in this order, shape (positions, dimensions); all must have features."""
        features = np.empty((len(positions), self.features.about.dimensions), np.float32)
        output_rows = np.full(len(self._images), -1, np.int64)
        output_rows[positions] = np.arange(len(positions))
        for batch_places, matrix in self.batches(center):
            is_requested = output_rows[batch_places] >= 0
            features[output_rows[batch_places[is_requested]]] = matrix[is_requested]
        return features

    def sample(self, limit: int, seed: int) -> NDArray[np.int64]:
        """The sorted places of all images with features, or of a seeded sample of `limit` of them."""
        places = np.flatnonzero(self.has_features)
        return np.sort(np.random.default_rng(seed).choice(places, limit, replace=False)) if len(places) > limit else places
