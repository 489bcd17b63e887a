"""Cross-entropy of a step: per image against its soft or hard target, and the weighting of labeled against pseudo-labeled images."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nst_train.settings import LossWeighting


def smooth_labels(labels: Int[Tensor, " batch"], classes: int, smoothing: float) -> Float[Tensor, "batch classes"]:
    """One-hot targets, with a share of `smoothing` spread evenly over all classes."""
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def renormalize(probs: Float[Tensor, "batch classes"], temperature: float = 1.0) -> Float[Tensor, "batch classes"]:
    """Stored float16 soft labels as float32 distributions: p^(1/temperature), normalized to sum to 1.

    What float16 flushed to 0 stays 0 at any temperature. As the temperature approaches 0, the label becomes one-hot, or is split evenly
    among tied maxima.
    """
    probs = _apply_temperature(probs.float(), temperature)
    return probs / probs.sum(dim=1, keepdim=True)


def _apply_temperature(probs: Float[Tensor, "batch any"], temperature: float) -> Float[Tensor, "batch any"]:
    """Values proportional to p^(1/temperature), scaled so that the largest is 1 and no power flushes all of them to 0."""
    return probs if temperature == 1 else (probs / probs.amax(dim=1, keepdim=True)) ** (1 / temperature)


def cross_entropies(logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """Cross-entropy of each image against its target distribution, in nats; uniform logits cost ln(classes)."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def top_k_cross_entropies(
    logits: Float[Tensor, "batch classes"],
    top_labels: Int[Tensor, "batch k"],
    top_probs: Float[Tensor, "batch k"],
    temperature: float = 1.0,
) -> Float[Tensor, " batch"]:
    """Cross-entropy of each image against a top-k soft label, whose remaining probability is spread evenly over the other classes.

    The temperature applies to that whole distribution: each other class takes part with its even share. If float16 rounding makes the
    top k sum to more than 1, the others get 0. No dense target is built: since the others share one probability, their cost is that
    probability times the sum of their log-probabilities.
    """
    other_classes = logits.shape[1] - top_labels.shape[1]
    top_probs = top_probs.float()
    even_share = (1 - top_probs.sum(dim=1, keepdim=True)).clamp(min=0) / max(1, other_classes)  # at k = classes it is used 0 times
    probs = _apply_temperature(torch.cat([top_probs, even_share], dim=1), temperature)
    named_probs, even_share = probs[:, :-1], probs[:, -1]
    log_probs = logits.float().log_softmax(dim=1)
    named_log_probs = log_probs.gather(1, top_labels.long())
    costs = (named_probs * named_log_probs).sum(dim=1) + even_share * (log_probs.sum(dim=1) - named_log_probs.sum(dim=1))
    return -costs / (named_probs.sum(dim=1) + other_classes * even_share)


def balanced_weights(labels: Int[np.ndarray, " images"], classes: int) -> Float[Tensor, " classes"]:
    """Weights per class so that every class that has images counts the same; the mean weight over all images is 1.

    Same as scikit-learn's `class_weight="balanced"`: images / (classes x images of the class). A class without images gets 0.
    """
    counts = np.bincount(labels, minlength=classes)
    return torch.from_numpy(len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1)) * (counts > 0)).float()


def joint_cross_entropies(
    logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " labeled"],
    pseudo: Mapping[str, Tensor],
    smoothing: float,
    temperature: float = 1.0,
    class_weights: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, " batch"]:
    """Cross-entropy of each image of a step, labeled ones first and multiplied by the weight of their class.

    `pseudo` holds the pseudo-label columns as stored: `label` for hard targets, `probs`, or `top_labels` and `top_probs`, for soft ones;
    it is empty for a step with labeled images only. As in the released code, smoothing applies to labeled images and hard
    pseudo-labels; soft pseudo-labels are used as they are.
    """
    classes, labeled = logits.shape[1], len(labels)
    targets = smooth_labels(labels, classes, smoothing)
    if "top_labels" in pseudo:
        soft_losses = top_k_cross_entropies(logits[labeled:], pseudo["top_labels"], pseudo["top_probs"], temperature)
        losses = torch.cat([cross_entropies(logits[:labeled], targets), soft_losses])
    else:
        if "probs" in pseudo:
            targets = torch.cat([targets, renormalize(pseudo["probs"], temperature)])
        elif "label" in pseudo:
            targets = torch.cat([targets, smooth_labels(pseudo["label"], classes, smoothing)])
        losses = cross_entropies(logits, targets)
    if class_weights is None:
        return losses
    return torch.cat([losses[:labeled] * class_weights[labels], losses[labeled:]])


def weighted_loss(
    labeled: Float[Tensor, " labeled"], pseudo: Float[Tensor, " pseudo"], weighting: LossWeighting, ratio: float
) -> Float[Tensor, ""]:
    """The loss of a step from the cross-entropies of its images; the plain mean if all of them are of one kind.

    - `concat`, section 3.1: labeled and unlabeled images are concatenated to compute the average cross-entropy.
    - `sum`, Algorithm 1: the mean over labeled plus the mean over pseudo-labeled images.
    - `code`, the released code: the mean over labeled plus `ratio` times the mean over pseudo-labeled images. With `ratio` times as
      many pseudo-labeled images, this is (1 + `ratio`) times `concat`: the same direction, and longer unless the optimizer normalizes it.

    Each process holds an equal share of both parts, so in all three cases the mean of their gradients is the gradient over all images.
    """
    if weighting == "concat" or not len(pseudo) or not len(labeled):
        return torch.cat([labeled, pseudo]).mean()
    return labeled.mean() + (ratio if weighting == "code" else 1) * pseudo.mean()
