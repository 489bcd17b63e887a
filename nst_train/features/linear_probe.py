"""A linear probe: multinomial logistic regression on features, as the weights of a network's last layer."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

FOLDS = 5
STRENGTHS = tuple(float(10.0**power) for power in np.arange(-5, 1.5, 0.5))
"""Inverse strengths of the penalty that cross-validation tries: scikit-learn's `C`, on features of mean variance 1."""
STATED_STRENGTH = 0.1  # where there are too few images for folds
_NEVER = -30.0  # the bias, below the lowest, of a class without images
_MOST_ITERATIONS = 1_000


@dataclass(frozen=True)
class LinearProbe:
    """Logits are `features @ weight.T + bias`. `folds` is 0 where the strength was not cross-validated."""

    weight: Float[NDArray[np.float32], "classes dimensions"]
    bias: Float[NDArray[np.float32], " classes"]
    strength: float
    folds: int
    iterations: int


def fit(
    features: Float[NDArray[np.float32], "images dimensions"],
    labels: Int[NDArray[np.int64], " images"],
    classes: int,
    seed: int = 0,
    class_weights: Literal["balanced"] | None = None,
) -> LinearProbe:
    """scikit-learn's `LogisticRegression` on centered features, with center and scale folded into weights and bias.

    One scale for all features: the deviation of each, from a few images, is mostly noise (`benchmarks/results/linear_probe.md`).

    The strength is the one of `STRENGTHS` with the best likelihood over stratified folds, as many as the rarest class has images and at
    most five; with a class of one image it is `STATED_STRENGTH`. A class without images gets a bias that never wins. With balanced
    `class_weights` all classes count the same, in the fit and in the likelihood.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    mean, std = features.mean(axis=0, dtype=np.float64), np.sqrt(features.var(axis=0, dtype=np.float64).mean()) or 1.0
    scaled = (features - mean) / std
    counts = np.bincount(labels, minlength=classes)
    folds = min(FOLDS, int(counts[counts > 0].min()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest penalties do not converge, and are not chosen
        model = LogisticRegression(C=STATED_STRENGTH, max_iter=_MOST_ITERATIONS, class_weight=class_weights)
        strength, scoring = STATED_STRENGTH, _balanced_likelihood if class_weights else "neg_log_loss"
        if folds > 1:
            split = StratifiedKFold(folds, shuffle=True, random_state=seed)
            search = GridSearchCV(model, {"C": STRENGTHS}, scoring=scoring, cv=split).fit(scaled, labels)
            model, strength = search.best_estimator_, search.best_params_["C"]
        else:
            folds, model = 0, model.fit(scaled, labels)
    found, bias = model.coef_ / std, model.intercept_ - (model.coef_ / std) @ mean
    if len(model.classes_) == 2:  # scikit-learn has the logit of the second class alone
        found, bias = np.concatenate([np.zeros_like(found), found]), np.concatenate([[0.0], bias])
    weight_of_all, bias_of_all = np.zeros((classes, features.shape[1])), np.full(classes, bias.min() + _NEVER)
    weight_of_all[model.classes_], bias_of_all[model.classes_] = found, bias
    return LinearProbe(weight_of_all.astype(np.float32), bias_of_all.astype(np.float32), strength, folds, int(np.max(model.n_iter_)))


def _balanced_likelihood(model: Any, features: NDArray[np.float64], labels: NDArray[np.int64]) -> float:  # noqa: ANN401 - scikit-learn's
    """The mean over classes of the log-likelihood of their images."""
    from sklearn.metrics import log_loss

    weights = len(labels) / np.bincount(labels)[labels]
    return -float(log_loss(labels, model.predict_proba(features), sample_weight=weights, labels=model.classes_))
