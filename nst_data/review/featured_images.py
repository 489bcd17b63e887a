"""Distinct images with their features, which are read from disk in batches, so that memory does not grow with their number."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nst_data.features.features import Features
from nst_data.review.distinct_images import DistinctImages, image_numbers
from nst_data.review.spreading import unit_length


class FeaturedImages:
    """`is_here` marks the images that have features; places are positions among the images."""

    def __init__(self, images: DistinctImages, features: Features) -> None:
        self.features, self._images = features, images
        self.is_here = np.zeros(len(images), bool)
        places = images.places(image_numbers(features.rows()["image_hash"]))
        self.is_here[places[places >= 0]] = True

    def batches(self, center: NDArray[np.float32] | float = 0) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield places of images and their unit-length features after subtracting `center`.

        An image that occurs in several rows is yielded several times.
        """
        for rows, matrix in self.features.batches():
            places = self._images.places(image_numbers(rows["image_hash"]))
            is_present = places >= 0
            yield places[is_present], unit_length(matrix[is_present] - np.float32(center))

    def of(self, places: NDArray[np.int64], center: NDArray[np.float32] | float = 0) -> NDArray[np.float32]:
        """The features of the given images as `batches` yields them, in this order, shape (places, dimensions); all must have features."""
        features = np.empty((len(places), self.features.about.dimensions), np.float32)
        row_of = np.full(len(self._images), -1, np.int64)
        row_of[places] = np.arange(len(places))
        for batch_places, matrix in self.batches(center):
            is_wanted = row_of[batch_places] >= 0
            features[row_of[batch_places[is_wanted]]] = matrix[is_wanted]
        return features

    def sample(self, most: int, seed: int) -> NDArray[np.int64]:
        """The sorted places of all images with features, or of a seeded sample of `most` of them."""
        places = np.flatnonzero(self.is_here)
        return np.sort(np.random.default_rng(seed).choice(places, most, replace=False)) if len(places) > most else places
