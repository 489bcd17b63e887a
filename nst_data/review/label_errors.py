"""Which given labels are wrong, from probabilities that a model gives to images it was not trained on: confident learning.

Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", section 3.
"""

import numpy as np
from jaxtyping import Float, Int

Probs = Float[np.ndarray, "images classes"]
Labels = Int[np.ndarray, " images"]


def suspicion_of_labels(probs: Probs, labels: Labels) -> Float[np.ndarray, " images"]:
    """1 less the probability of the given label, the paper's self-confidence: how probably each label is wrong."""
    return np.asarray(1 - probs[np.arange(len(labels)), labels], np.float32)


def confident_joint(probs: Probs, labels: Labels) -> Int[np.ndarray, "given true"]:
    """How many images are labeled as one class and confidently of another (equation 1).

    An image is confidently of the most probable class among those whose threshold it reaches, which is the mean probability of the
    class over the images that are labeled as it (equation 2). One that reaches none is not counted.
    """
    classes = probs.shape[1]
    of_own = np.bincount(labels, probs[np.arange(len(labels)), labels].astype(np.float64), classes)
    images = np.bincount(labels, minlength=classes)
    thresholds = np.where(images > 0, of_own / np.maximum(images, 1), np.inf)
    reached = np.where(probs >= thresholds, probs, -1)
    is_confident = reached.max(axis=1) >= 0
    joint = np.zeros((classes, classes), np.int64)
    np.add.at(joint, (labels[is_confident], reached.argmax(axis=1)[is_confident]), 1)
    return joint


def estimated_errors(joint: Int[np.ndarray, "given true"], labels: Labels) -> float:
    """How many labels are wrong: what lies off the diagonal of the joint, each row scaled to the images with that label (equation 3)."""
    images = np.bincount(labels, minlength=len(joint))
    confident = joint.sum(axis=1)
    wrong = confident - joint.diagonal()
    return float((images * wrong / np.maximum(confident, 1)).sum())
