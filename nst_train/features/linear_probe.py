"""A linear probe: multinomial logistic regression on features, as weights of a network's last layer or as cross-validated probabilities."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from nst_data.progress import Task
from nst_data.review.spreading import rank_in_class

FOLDS = 5
STRENGTHS = tuple(float(10.0**power) for power in np.arange(-5, 1.5, 0.5))
"""Inverse strengths of the penalty that cross-validation tries: scikit-learn's `C`, on features of mean variance 1."""
MAX_FITTED, MAX_SEARCHED = 20_000, 1_000  # images of a cross-validation
MAX_FOLDED = 20_000
"""Number of labeled images up to which cross-validation uses all of them; of more, it uses a sample of this size."""
DEFAULT_STRENGTH = 0.1  # used if there are too few images for folds
_MIN_PER_CLASS = 5  # images of each class in the sample that is fitted
_NEVER_BIAS = -30.0  # added to the lowest bias for a class without images
_MAX_ITERATIONS = 1_000


@dataclass(frozen=True)
class LinearProbe:
    """Logits are `features @ weight.T + bias`. `folds` is 0 if the strength was not cross-validated."""

    weight: Float[np.ndarray, "classes dimensions"]
    bias: Float[np.ndarray, " classes"]
    strength: float
    folds: int
    iterations: int

    def probs(self, features: Float[np.ndarray, "images dimensions"]) -> Float[np.ndarray, "images classes"]:
        """The probability of each class."""
        logits = features @ self.weight.T + self.bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probs: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
        return probs


def fit(
    features: Float[np.ndarray, "images dimensions"],
    labels: Int[np.ndarray, " images"],
    classes: int,
    seed: int = 0,
    class_weights: Literal["balanced"] | None = None,
    strength: float | None = None,
    sample: int | None = None,
    task: Task | None = None,
) -> LinearProbe:
    """scikit-learn's `LogisticRegression` on centered features, with center and scale folded into weights and bias.

    All features share one scale: the deviation of one feature over a few images is mostly noise (`benchmarks/results/linear_probe.md`).

    The strength is the one given; or the one of `STRENGTHS` with the best likelihood over stratified folds, as many as the rarest class has
    images and at most five; or `DEFAULT_STRENGTH` if a class has one image. A class without images gets a bias that never wins, even if all
    images are of one class. With balanced `class_weights`, all classes count the same, in the fit and in the likelihood.

    For large sets, the strength is searched on a `sample` of that many images, from the strongest penalty until the likelihood has not
    improved twice in a row. Classes with fewer sampled images than folds are left out; fewer folds are used if that would drop more than
    half of the sample. All of it is in single precision. `task` is advanced for each strength tried.

    Without a `sample`, BLAS uses one thread, so the numbers are the same on any number of cores, and other work on the machine does not
    slow a fit down: two threads that wait for each other thousands of times took a hundred times as long there.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    assert strength is None or sample is None, "given, or sought"
    mean, std = features.mean(axis=0, dtype=np.float64), np.sqrt(features.var(axis=0, dtype=np.float64).mean()) or 1.0
    if sample is not None:
        scaled = features - mean.astype(np.float32)
        scaled /= np.float32(std)
    else:
        scaled = (features - mean) / std
    counts = np.bincount(labels, minlength=classes)
    folds = choose_folds(labels)
    is_given, strength = strength is not None, DEFAULT_STRENGTH if strength is None else strength
    if np.count_nonzero(counts) == 1:  # scikit-learn requires two
        bias_of_one = np.where(counts > 0, 0, _NEVER_BIAS).astype(np.float32)
        return LinearProbe(np.zeros((classes, features.shape[1]), np.float32), bias_of_one, strength, 0, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties do not converge, and are not chosen
        model = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS, class_weight=class_weights)
        scoring = _balanced_likelihood if class_weights else "neg_log_loss"
        if sample is not None:
            folds, strength = _search_on_sample(model, scaled, labels, sample, scoring, seed, task)
            model = model.set_params(C=strength).fit(scaled, labels)
        else:
            with threadpool_limits(1, user_api="blas"):
                folds = 0 if is_given else folds
                if folds:
                    strength = max(_likelihoods(model, scaled, labels, folds, scoring, seed, task), key=lambda tried: tried[1])[0]
                model = model.set_params(C=strength).fit(scaled, labels)
    weight, bias = model.coef_ / std, model.intercept_ - (model.coef_ / std) @ mean
    if len(model.classes_) == 2:  # scikit-learn has only the logit of the second class
        weight, bias = np.concatenate([np.zeros_like(weight), weight]), np.concatenate([[0.0], bias])
    weight_of_all, bias_of_all = np.zeros((classes, features.shape[1])), np.full(classes, bias.min() + _NEVER_BIAS)
    weight_of_all[model.classes_], bias_of_all[model.classes_] = weight, bias
    return LinearProbe(weight_of_all.astype(np.float32), bias_of_all.astype(np.float32), strength, folds, int(np.max(model.n_iter_)))


def choose_folds(labels: Int[np.ndarray, " images"]) -> int:
    """The number of folds over which the strength is chosen; 0 if the rarest class has one image or there is only one class."""
    counts = np.unique(labels, return_counts=True)[1]
    return 0 if len(counts) == 1 or counts.min() < 2 else min(FOLDS, int(counts.min()))


def _search_on_sample(
    model: Any,  # noqa: ANN401 - scikit-learn's
    scaled: Float[np.ndarray, "images dimensions"],
    labels: Int[np.ndarray, " images"],
    sample: int,
    scoring: Any,  # noqa: ANN401
    seed: int,
    task: Task | None,
) -> tuple[int, float]:
    """The number of folds used and the strength chosen."""
    sampled = np.sort(np.random.default_rng(seed).choice(len(labels), min(sample, len(labels)), replace=False))
    of_its_class = np.bincount(labels[sampled])[labels[sampled]]
    folds = next((count for count in range(FOLDS, 1, -1) if np.mean(of_its_class >= count) >= 0.5), FOLDS)
    sampled = sampled[of_its_class >= folds]
    if len(np.unique(labels[sampled])) < 2:
        return 0, DEFAULT_STRENGTH
    best, best_score = 0, -np.inf
    for number, (_, score) in enumerate(_likelihoods(model, scaled[sampled], labels[sampled], folds, scoring, seed, task)):
        if score > best_score:
            best, best_score = number, score
        elif number == best + 2:
            break
    return folds, STRENGTHS[best]


def _likelihoods(
    model: Any,  # noqa: ANN401 - scikit-learn's
    scaled: Float[np.ndarray, "images dimensions"],
    labels: Int[np.ndarray, " images"],
    folds: int,
    scoring: Any,  # noqa: ANN401
    seed: int,
    task: Task | None,
) -> Iterator[tuple[float, float]]:
    """Each strength with its mean likelihood over the folds, from the strongest penalty."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for strength in STRENGTHS:
        score = float(cross_val_score(model.set_params(C=strength), scaled, labels, scoring=scoring, cv=split).mean())
        if task:
            task.advance(1, f"strength {strength:.2g}, log-likelihood {score:.4g}")
        yield strength, score


def cross_validated_probs(
    features: Float[np.ndarray, "images dimensions"], labels: Int[np.ndarray, " images"], classes: int, seed: int = 0
) -> Float[np.ndarray, "images classes"]:
    """Out-of-fold probabilities of each image: five stratified folds, with one strength for all of them.

    A probe is fitted on about `MAX_FITTED` images: if there are more, on a seeded sample with some images of each class. The strength is
    searched on `MAX_SEARCHED`. If a class has a single image, its probabilities are NaN.
    """
    from sklearn.model_selection import StratifiedKFold

    rng = np.random.default_rng(seed)

    def fit_probe(rows: NDArray[np.int64], strength: float | None) -> LinearProbe:
        limit = MAX_SEARCHED if strength is None else MAX_FITTED
        if len(rows) > limit:
            sampled = rng.choice(rows, limit, replace=False)
            if strength is not None:  # otherwise each image of a class that the probe has not seen would look wrong
                sampled = np.union1d(sampled, rows[rank_in_class(labels[rows]) < _MIN_PER_CLASS])
            rows = np.sort(sampled)
        return fit(features[rows], labels[rows], classes, seed, strength=strength)

    probs, sizes = np.full((len(labels), classes), np.nan, np.float32), np.bincount(labels, minlength=classes)
    if sizes.max() < 2:  # no image can be left out
        return probs
    strength = fit_probe(np.arange(len(labels)), None).strength
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class has fewer images than there are folds
        folds = min(FOLDS, int(sizes.max()))
        for train_rows, test_rows in StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, labels):
            probs[test_rows] = fit_probe(train_rows, strength).probs(features[test_rows])
    probs[sizes[labels] == 1] = np.nan
    return probs


def _balanced_likelihood(model: Any, features: NDArray[np.float64], labels: NDArray[np.int64]) -> float:  # noqa: ANN401 - scikit-learn's
    """The log-likelihood averaged over the images of each class, then over classes."""
    from sklearn.metrics import log_loss

    weights = len(labels) / np.bincount(labels)[labels]
    return -float(log_loss(labels, model.predict_proba(features), sample_weight=weights, labels=model.classes_))
