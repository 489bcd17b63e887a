"""How much each image needs a look, judging by its position among the features of others."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from nst_data.review.distinct_images import DistinctImages, SoftLabels
from nst_data.review.featured_images import FeaturedImages
from nst_data.review.neighbors import MAX_REFERENCES, OwnPositions, UnitVectors, neighbor_votes, outlier_scores, typicality
from nst_data.review.spreading import l2_normalize

TYPICALITY_WEIGHT = 0.25  # weight of typicality relative to margin in `mixed_scores`
OUTLIER_TYPICALITY_WEIGHT = 0.5  # and relative to the distance to labeled images in `outliers`
_MAX_REFERENCE_PROBS = 2**26

Scores = Float[np.ndarray, " images"]  # -inf for images without features


def outliers(featured: FeaturedImages, labeled: Float[np.ndarray, "labeled dimensions"], seed: int) -> Scores:
    """Scores in [0, 1] for images that are far from everything labeled and, at half the weight, typical.

    The images of a class that nobody has labeled lie near one another. Features are centered on the mean of the labeled images.
    """
    center = labeled.mean(axis=0)
    labeled_features, references = l2_normalize(labeled - center), featured.sample(MAX_REFERENCES, seed)
    reference_features, reference_places = featured.gather(references, center), _reference_positions(references, len(featured.has_features))

    def score(features: UnitVectors, places: Int[np.ndarray, " images"]) -> Scores:
        far, typical = (
            outlier_scores(features, labeled_features),
            (1 + typicality(features, reference_features, reference_places[places])) / 2,
        )
        return ((far + OUTLIER_TYPICALITY_WEIGHT * typical) / (1 + OUTLIER_TYPICALITY_WEIGHT)).astype(np.float32)

    return _score_batches(featured, score, center)


def outliers_within(featured: FeaturedImages, seed: int) -> Scores:
    """`outlier_scores` of labeled images, each relative to the others."""
    references = featured.sample(MAX_REFERENCES, seed)
    reference_features, reference_places = featured.gather(references), _reference_positions(references, len(featured.has_features))
    return _score_batches(featured, lambda features, places: outlier_scores(features, reference_features, reference_places[places]))


def mixed_scores(margins: Scores, featured: FeaturedImages, seed: int) -> Scores:
    """Unsure and typical images: the rank by margin, plus a quarter of the rank by `typicality` within the pool."""
    references = featured.sample(MAX_REFERENCES, seed)
    reference_features, reference_places = featured.gather(references), _reference_positions(references, len(margins))
    typical = _score_batches(featured, lambda features, places: typicality(features, reference_features, reference_places[places]))
    combined = ((ranks(margins) + TYPICALITY_WEIGHT * ranks(typical)) / (1 + TYPICALITY_WEIGHT)).astype(np.float32)
    return np.where(np.isfinite(margins) & featured.has_features, combined, -np.inf).astype(np.float32)


def suspicion_by_neighbors(images: DistinctImages, soft_labels: SoftLabels, n_classes: int, featured: FeaturedImages, seed: int) -> Scores:
    """How likely each label is to be wrong: 1 minus the mean probability that the image's nearest neighbors in the pool give to it."""
    references = featured.sample(max(1, min(MAX_REFERENCES, _MAX_REFERENCE_PROBS // n_classes)), seed)
    reference_features, reference_places = featured.gather(references), _reference_positions(references, len(images))
    probs = np.zeros((len(references), n_classes), np.float32)
    for numbers, batch_probs in soft_labels:
        places = images.positions_of(numbers)
        voters = np.where(places >= 0, reference_places[places], -1)
        probs[voters[voters >= 0]] = batch_probs[voters >= 0]

    def suspicion(features: UnitVectors, places: Int[np.ndarray, " images"]) -> Scores:
        return 1 - neighbor_votes(features, images.labels[places], reference_features, probs, reference_places[places])

    return _score_batches(featured, suspicion)


def ranks(scores: Scores) -> Scores:
    """The fraction of images with a lower score, in [0, 1)."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    return ((np.cumsum(counts) - counts) / max(1, len(scores))).astype(np.float32)[places]


def _score_batches(
    featured: FeaturedImages, score: Callable[[UnitVectors, NDArray[np.int64]], Scores], center: NDArray[np.float32] | float = 0
) -> Scores:
    scores = np.full(len(featured.has_features), -np.inf, np.float32)
    for places, features in featured.batches(center):
        scores[places] = score(features, places)
    return scores


def _reference_positions(references: NDArray[np.int64], n_images: int) -> OwnPositions:
    places = np.full(n_images, -1, np.int64)
    places[references] = np.arange(len(references))
    return places
