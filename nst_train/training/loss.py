"""Cross-entropy of a step: of each image against its soft or hard target, and the weighing of labeled and pseudo-labeled ones."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nst_train.settings import Weighing


def smoothed(labels: Int[Tensor, " batch"], classes: int, smoothing: float) -> Float[Tensor, "batch classes"]:
    """One-hot targets with a share of `smoothing` spread evenly over all classes."""
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def renormalized(probs: Float[Tensor, "batch classes"], temperature: float = 1.0) -> Float[Tensor, "batch classes"]:
    """Stored float16 soft labels as distributions in float32: p^(1/temperature), which sum to 1.

    What float16 flushed to 0 stays 0 at any temperature. Towards 0 the label becomes one-hot, shared where several are largest.
    """
    probs = _tempered(probs.float(), temperature)
    return probs / probs.sum(dim=1, keepdim=True)


def _tempered(probs: Float[Tensor, "batch any"], temperature: float) -> Float[Tensor, "batch any"]:
    """In proportion to p^(1/temperature); the largest is 1, so that no power flushes all to 0."""
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
    """Cross-entropy of each image against a soft label of k classes; what is left to 1 is even over the other classes.

    A temperature acts on that whole distribution: each other class takes part with its even share. Rounding to float16 can leave
    less than nothing: then the others get 0. No target of all classes is made: the others share one probability, so that
    they cost it times the sum of their log-probabilities.
    """
    others = logits.shape[1] - top_labels.shape[1]
    top_probs = top_probs.float()
    even = (1 - top_probs.sum(dim=1, keepdim=True)).clamp(min=0) / max(1, others)  # at k = classes it takes part 0 times
    probs = _tempered(torch.cat([top_probs, even], dim=1), temperature)
    named, even = probs[:, :-1], probs[:, -1]
    log_probs = logits.float().log_softmax(dim=1)
    named_log_probs = log_probs.gather(1, top_labels.long())
    costs = (named * named_log_probs).sum(dim=1) + even * (log_probs.sum(dim=1) - named_log_probs.sum(dim=1))
    return -costs / (named.sum(dim=1) + others * even)


def balanced_weights(labels: Int[np.ndarray, " images"], classes: int) -> Float[Tensor, " classes"]:
    """By which an image of a class counts so that all classes with images count the same; over the images the mean is 1.

    scikit-learn's `class_weight="balanced"`: images / (classes x images of the class). A class without images has 0.
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
    """Cross-entropy of each image of a step, the labeled ones first, and times the weight of their class.

    `pseudo` holds the columns of the pseudo-labels as they are stored: `label` for hard targets, `probs`, or `top_labels` and
    `top_probs` for soft ones; nothing for a step with labeled images only. As in the released code, smoothing is for labeled images
    and hard pseudo-labels; soft ones are soft as they are.
    """
    classes, labeled = logits.shape[1], len(labels)
    targets = smoothed(labels, classes, smoothing)
    if "top_labels" in pseudo:
        soft = top_k_cross_entropies(logits[labeled:], pseudo["top_labels"], pseudo["top_probs"], temperature)
        losses = torch.cat([cross_entropies(logits[:labeled], targets), soft])
    else:
        if "probs" in pseudo:
            targets = torch.cat([targets, renormalized(pseudo["probs"], temperature)])
        elif "label" in pseudo:
            targets = torch.cat([targets, smoothed(pseudo["label"], classes, smoothing)])
        losses = cross_entropies(logits, targets)
    if class_weights is None:
        return losses
    return torch.cat([losses[:labeled] * class_weights[labels], losses[labeled:]])


def weighed(labeled: Float[Tensor, " labeled"], pseudo: Float[Tensor, " pseudo"], weighing: Weighing, ratio: float) -> Float[Tensor, ""]:
    """The loss of a step from the cross-entropies of its images; the plain mean where there is one kind alone.

    - `concat`, section 3.1: labeled and unlabeled images are concatenated to compute the average cross-entropy.
    - `sum`, Algorithm 1: the mean over labeled plus the mean over pseudo-labeled images.
    - `code`, the released code: the mean over labeled plus `ratio` times the mean over pseudo-labeled images. With `ratio` times as
      many of them that is 1 + `ratio` times `concat`: of the same direction, longer where the optimizer lets length pass.

    Processes hold equal shares of both parts, so the mean of their gradients is the gradient over all of them, in each of the three.
    """
    if weighing == "concat" or not len(pseudo) or not len(labeled):
        return torch.cat([labeled, pseudo]).mean()
    return labeled.mean() + (ratio if weighing == "code" else 1) * pseudo.mean()
