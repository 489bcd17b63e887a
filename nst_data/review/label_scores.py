"""How much each image of a generation or an edition wants a look, by its labels alone: soft ones, and those of earlier generations."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from nst_data.review.distinct_images import DistinctImages, SoftLabels
from nst_data.review.uncertainty import uncertainty
from nst_data.store.store import Store, Version

Scores = Float[np.ndarray, " images"]  # the larger, the sooner a person should look


def uncertainties(images: DistinctImages, soft_labels: SoftLabels, by: str) -> Scores:
    """`uncertainty` of the soft label of each image."""
    scores = np.zeros(len(images), np.float32)
    for numbers, probs in soft_labels:
        places = images.places(numbers)
        scores[places[places >= 0]] = uncertainty(by, probs[places >= 0])
    return scores


def earlier_generations(store: Store, version: Version) -> list[Version]:
    """The generations of a corpus before the one of a version, with labels of the whole pool; the oldest first."""
    versions = store.versions(version.name)
    before = [one for one in versions if one.number.edition is None and one.number.generation < version.number.generation]
    return [one for one in before if one.manifest.kind == "generation"]


def churn(images: DistinctImages, earlier: Iterable[DistinctImages]) -> Scores:
    """How often the label of an image changed from one generation to the next, as a share of the times that it could; in [0, 1].

    Of images whose label changed as often, the one that is less confident now has more.
    """
    changes, times = np.zeros(len(images), np.float32), np.zeros(len(images), np.float32)
    last = np.full(len(images), -1, np.int64)

    def count(labels: NDArray[np.int64]) -> None:
        both = (last >= 0) & (labels >= 0)
        np.add(times, both, out=times)
        np.add(changes, both & (last != labels), out=changes)

    for before in earlier:
        places = before.places(images.numbers)
        labels = np.where(places >= 0, before.labels[places], -1)
        count(labels)
        last = np.where(labels >= 0, labels, last)
    count(images.labels)
    return ((changes + (1 - images.confidences)) / (times + 1)).astype(np.float32)


def ensemble_suspicion(images: DistinctImages, generations: Iterable[SoftLabels]) -> Scores:
    """How probably each label is wrong, by several generations: 1 less their mean probability of it."""
    sums, votes = np.zeros(len(images), np.float32), np.zeros(len(images), np.float32)
    for soft_labels in generations:
        for numbers, probs in soft_labels:
            places = images.places(numbers)
            rows = np.flatnonzero(places >= 0)
            sums[places[rows]] += probs[rows, images.labels[places[rows]]]
            votes[places[rows]] += 1
    return (1 - sums / np.maximum(votes, 1)).astype(np.float32)
