"""Diverse picks: candidates with high scores, not too many per class, and among these a subset of images that differ."""

import warnings
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

CLASS_SHARE = 2  # at most this many times its even share of the picks per class
_MAX_CLUSTERED = 20_000
_ITERATIONS = 50

Spread = Literal["k-means", "k-center", "classes"]
UnitVectors = Float[np.ndarray, "candidates dimensions"]  # unit-length rows
Labels = Int[np.ndarray, " candidates"]


def max_per_class(labels: Labels, number: int) -> int:
    """The maximum number of picks with the same label, out of `number`."""
    return -(-CLASS_SHARE * number // max(1, len(np.unique(labels))))


def select_candidates(scores: Float[np.ndarray, " images"], labels: Labels, number: int, per_pick: int) -> Int[np.ndarray, " _"]:
    """The places of the images from which `number` picks are made, by descending score; non-finite scores are skipped.

    `per_pick` candidates per pick, and `per_pick` times the maximum per class. Ties keep the order of the images.
    """
    places = np.flatnonzero(np.isfinite(scores))
    ranked = places[np.argsort(-scores[places], kind="stable")]
    n_candidates = max(number, min(per_pick * number, _MAX_CLUSTERED))
    first = ranked[rank_in_class(labels[ranked]) < per_pick * max_per_class(labels[places], number)][:n_candidates]
    return first if len(first) >= number else ranked[:number]


def select_diverse(
    method: Spread, features: UnitVectors | None, labels: Labels, scores: Float[np.ndarray, " _"], number: int, seed: int
) -> NDArray[np.int64]:
    """The places of `number` of the candidates, which must be sorted by descending score, in the order in which to look at them.

    No class gets more than `CLASS_SHARE` even shares of the picks, unless others run out. Without features, the best-scored are taken.
    """
    number, class_limit = min(number, len(labels)), max_per_class(labels, number)
    if method == "classes" or features is None:
        order = np.arange(len(labels))
    elif method == "k-center":
        return _k_center(features, labels, number, class_limit)
    else:
        order = _k_means(features, scores, number, seed)
    is_allowed = rank_in_class(labels[order]) < class_limit
    return np.sort(np.concatenate([order[is_allowed], order[~is_allowed]])[:number])


def sample_images(numbers: NDArray[np.uint64], number: int, seed: int) -> NDArray[np.int64]:
    """A uniform random sample of places, in an order that depends only on the images' numbers and the seed."""
    mixed = numbers ^ np.random.default_rng(seed).integers(2**64, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):  # the finalizer of SplitMix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.argsort(mixed, kind="stable")[:number]


def l2_normalize(features: UnitVectors) -> UnitVectors:
    """Features scaled to unit length."""
    lengths = np.sqrt(np.einsum("ij,ij->i", features, features, dtype=np.float64))
    directions: NDArray[np.float32] = (features / np.maximum(lengths, 1e-12)[:, None]).astype(np.float32)
    return directions


def _k_center(features: UnitVectors, labels: Labels, number: int, limit: int) -> NDArray[np.int64]:
    """Greedy k-center (Sener and Savarese 2018, algorithm 1): the first candidate, then repeatedly the one farthest from all picks."""
    distances = np.full(len(labels), np.inf, np.float32)
    is_available, counts = np.ones(len(labels), bool), np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    picks = np.empty(number, np.int64)
    for pick in range(number):
        is_allowed = is_available & (counts[labels] < limit)
        is_allowed = is_allowed if is_allowed.any() else is_available
        place = int(np.argmax(np.where(is_allowed, distances, -1)))
        picks[pick], is_available[place] = place, False
        counts[labels[place]] += 1
        np.minimum(distances, np.maximum(0, 1 - features @ features[place]), out=distances)
    return picks


def _k_means(features: UnitVectors, scores: Float[np.ndarray, " _"], number: int, seed: int) -> NDArray[np.int64]:
    """All places, those of the candidates nearest to each cluster center first, then the others.

    There are as many clusters as picks, and candidates are weighted by score (Zhdanov 2019, "Diverse mini-batch Active Learning").
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    weights = np.maximum(scores, 0).astype(np.float32)
    with threadpool_limits(1), warnings.catch_warnings():  # multithreaded sums differ between runs
        warnings.simplefilter("ignore", ConvergenceWarning)  # raised if there are fewer distinct candidates than picks
        means = KMeans(number, n_init=1, max_iter=_ITERATIONS, random_state=seed).fit(features, sample_weight=weights + 1e-6)
    distances = np.square(features - means.cluster_centers_[means.labels_]).sum(axis=1)
    nearest_first = np.lexsort((distances, means.labels_))
    chosen = nearest_first[np.unique(means.labels_[nearest_first], return_index=True)[1]]
    return np.concatenate([np.sort(chosen), np.setdiff1d(np.arange(len(features)), chosen)])


def rank_in_class(labels: Labels) -> NDArray[np.int64]:
    """0 for the first of each class, 1 for the second, and so on."""
    order = np.argsort(labels, kind="stable")
    sizes = np.unique(labels, return_counts=True)[1]
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks
