"""How much each image needs a look, judging by its position among the features of others."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from nst_data.review.distinct_images import DistinctImages, SoftLabels
from nst_data.review.featured_images import FeaturedImages
from nst_data.review.neighbors import MOST_REFERENCES, Own, Unit, neighbor_votes, outlier_scores, typicality
from nst_data.review.spreading import unit_length

TYPICAL = 0.25  # weight of typicality relative to margin in `mixed`
TYPICAL_OUTLIER = 0.5  # and relative to the distance to labeled images in `outlier`
_NUMBERS_OF_VOTERS = 2**26

Scores = Float[np.ndarray, " images"]  # -inf for images without features


def outliers(featured: FeaturedImages, labeled: Float[np.ndarray, "labeled dimensions"], seed: int) -> Scores:
    """Scores in [0, 1] for images that are far from everything labeled and, at half the weight, typical.

    The images of a class that nobody has labeled lie near one another. Features are centered on the mean of the labeled images.
    """
    center = labeled.mean(axis=0)
    labeled_features, references = unit_length(labeled - center), featured.sample(MOST_REFERENCES, seed)
    reference_features, place_of = featured.of(references, center), _places_among(references, len(featured.is_here))

    def score(features: Unit, places: Int[np.ndarray, " images"]) -> Scores:
        far, typical = outlier_scores(features, labeled_features), (1 + typicality(features, reference_features, place_of[places])) / 2
        return ((far + TYPICAL_OUTLIER * typical) / (1 + TYPICAL_OUTLIER)).astype(np.float32)

    return _scored(featured, score, center)


def outliers_within(featured: FeaturedImages, seed: int) -> Scores:
    """`outlier_scores` of labeled images, each relative to the others."""
    references = featured.sample(MOST_REFERENCES, seed)
    reference_features, place_of = featured.of(references), _places_among(references, len(featured.is_here))
    return _scored(featured, lambda features, places: outlier_scores(features, reference_features, place_of[places]))


def mixed(margins: Scores, featured: FeaturedImages, seed: int) -> Scores:
    """Unsure and typical images: the rank by margin, plus a quarter of the rank by `typicality` within the pool."""
    references = featured.sample(MOST_REFERENCES, seed)
    reference_features, place_of = featured.of(references), _places_among(references, len(margins))
    typical = _scored(featured, lambda features, places: typicality(features, reference_features, place_of[places]))
    combined = ((ranks(margins) + TYPICAL * ranks(typical)) / (1 + TYPICAL)).astype(np.float32)
    return np.where(np.isfinite(margins) & featured.is_here, combined, -np.inf).astype(np.float32)


def suspicion_by_neighbors(images: DistinctImages, soft_labels: SoftLabels, classes: int, featured: FeaturedImages, seed: int) -> Scores:
    """How likely each label is to be wrong: 1 minus the mean probability that the image's nearest neighbors in the pool give to it."""
    references = featured.sample(max(1, min(MOST_REFERENCES, _NUMBERS_OF_VOTERS // classes)), seed)
    reference_features, place_of = featured.of(references), _places_among(references, len(images))
    probs = np.zeros((len(references), classes), np.float32)
    for numbers, batch_probs in soft_labels:
        places = images.places(numbers)
        voters = np.where(places >= 0, place_of[places], -1)
        probs[voters[voters >= 0]] = batch_probs[voters >= 0]

    def suspicion(features: Unit, places: Int[np.ndarray, " images"]) -> Scores:
        return 1 - neighbor_votes(features, images.labels[places], reference_features, probs, place_of[places])

    return _scored(featured, suspicion)


def ranks(scores: Scores) -> Scores:
    """The fraction of images with a lower score, in [0, 1)."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    return ((np.cumsum(counts) - counts) / max(1, len(scores))).astype(np.float32)[places]


def _scored(
    featured: FeaturedImages, score: Callable[[Unit, NDArray[np.int64]], Scores], center: NDArray[np.float32] | float = 0
) -> Scores:
    scores = np.full(len(featured.is_here), -np.inf, np.float32)
    for places, features in featured.batches(center):
        scores[places] = score(features, places)
    return scores


def _places_among(references: NDArray[np.int64], images: int) -> Own:
    places = np.full(images, -1, np.int64)
    places[references] = np.arange(len(references))
    return places
