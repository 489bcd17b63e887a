"""Cross-entropy on soft targets, averaged over labeled and pseudo-labeled images together (section 3.1)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def smoothed(labels: Int[Tensor, " batch"], classes: int, smoothing: float) -> Float[Tensor, "batch classes"]:
    """One-hot targets with a share of `smoothing` spread evenly over all classes."""
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def renormalized(probs: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
    """Stored float16 soft labels as distributions in float32."""
    probs = probs.float()
    return probs / probs.sum(dim=1, keepdim=True)


def dense(top_labels: Int[Tensor, "batch k"], top_probs: Float[Tensor, "batch k"], classes: int) -> Float[Tensor, "batch classes"]:
    """Soft labels of k classes as float32 of all: what is left to 1 is even over the other classes.

    Rounding to float16 can leave less than nothing: then the others get 0. `renormalized` makes distributions of what comes.
    """
    top_probs = top_probs.float()
    rest = (1 - top_probs.sum(dim=1, keepdim=True)).clamp(min=0)
    others = max(1, classes - top_probs.shape[1])  # none at k = classes, where nothing of `rest` stays
    return (rest / others).repeat(1, classes).scatter(1, top_labels.long(), top_probs)


def cross_entropies(logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """Cross-entropy of each image against its target distribution, in nats; uniform logits cost ln(classes)."""
    return F.cross_entropy(logits.float(), targets, reduction="none")


def concatenated(losses: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Section 3.1: labeled and unlabeled images are concatenated to compute the average cross-entropy."""
    return torch.mean(losses)
