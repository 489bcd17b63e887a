"""How much each image of a generation or an edition needs a look, judging by labels only: its soft label and earlier generations."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from nst_data.review.distinct_images import DistinctImages, SoftLabels
from nst_data.review.uncertainty import uncertainty
from nst_data.store.store import Store, Version

Scores = Float[np.ndarray, " images"]  # higher scores should be looked at sooner


def uncertainties(images: DistinctImages, soft_labels: SoftLabels, by: str) -> Scores:
    """The `uncertainty` of each image's soft label."""
    scores = np.zeros(len(images), np.float32)
    for numbers, probs in soft_labels:
        places = images.positions_of(numbers)
        scores[places[places >= 0]] = uncertainty(by, probs[places >= 0])
    return scores


def earlier_generations(store: Store, version: Version) -> list[Version]:
    """The generations of a corpus before that of `version`, oldest first, without editions."""
    versions = store.versions(version.name)
    earlier = [v for v in versions if v.number.edition is None and v.number.generation < version.number.generation]
    return [v for v in earlier if v.manifest.kind == "generation"]


def churn_scores(images: DistinctImages, earlier: Iterable[DistinctImages]) -> Scores:
    """How often an image's label changed between consecutive generations, relative to how often it could have; in [0, 1].

    Among images whose labels changed equally often, less confident ones score higher.
    """
    changes, comparisons = np.zeros(len(images), np.float32), np.zeros(len(images), np.float32)
    last_labels = np.full(len(images), -1, np.int64)

    def count(labels: NDArray[np.int64]) -> None:
        comparable = (last_labels >= 0) & (labels >= 0)
        np.add(comparisons, comparable, out=comparisons)
        np.add(changes, comparable & (last_labels != labels), out=changes)

    for generation in earlier:
        places = generation.positions_of(images.numbers)
        labels = np.where(places >= 0, generation.labels[places], -1)
        count(labels)
        last_labels = np.where(labels >= 0, labels, last_labels)
    count(images.labels)
    return ((changes + (1 - images.confidences)) / (comparisons + 1)).astype(np.float32)


def ensemble_suspicion(images: DistinctImages, generations: Iterable[SoftLabels]) -> Scores:
    """How likely each label is to be wrong according to several generations: 1 minus their mean probability for it."""
    sums, votes = np.zeros(len(images), np.float32), np.zeros(len(images), np.float32)
    for soft_labels in generations:
        for numbers, probs in soft_labels:
            places = images.positions_of(numbers)
            rows = np.flatnonzero(places >= 0)
            sums[places[rows]] += probs[rows, images.labels[places[rows]]]
            votes[places[rows]] += 1
    return (1 - sums / np.maximum(votes, 1)).astype(np.float32)
