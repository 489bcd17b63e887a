"""Finding wrong labels with confident learning, from out-of-sample probabilities: of a model that was not trained on the images.

Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", section 3.
"""

import numpy as np
from jaxtyping import Float, Int

Probs = Float[np.ndarray, "images classes"]
Labels = Int[np.ndarray, " images"]


def suspicion_of_labels(probs: Probs, labels: Labels) -> Float[np.ndarray, " images"]:
    """How likely each label is to be wrong: 1 minus the probability of the given label, which is the paper's self-confidence."""
    return np.asarray(1 - probs[np.arange(len(labels)), labels], np.float32)


def confident_joint(probs: Probs, labels: Labels) -> Int[np.ndarray, "given true"]:
    """Count the images by given label and confident class (equation 1).

    The confident class of an image is the most probable among the classes whose threshold it reaches; the threshold of a class is its mean
    probability over the images labeled as it (equation 2). An image that reaches no threshold is not counted.
    """
    classes = probs.shape[1]
    self_confidence = np.bincount(labels, probs[np.arange(len(labels)), labels].astype(np.float64), classes)
    images = np.bincount(labels, minlength=classes)
    thresholds = np.where(images > 0, self_confidence / np.maximum(images, 1), np.inf)
    confident_probs = np.where(probs >= thresholds, probs, -1)
    is_confident = confident_probs.max(axis=1) >= 0
    joint = np.zeros((classes, classes), np.int64)
    np.add.at(joint, (labels[is_confident], confident_probs.argmax(axis=1)[is_confident]), 1)
    return joint


def estimate_errors(joint: Int[np.ndarray, "given true"], labels: Labels) -> float:
    """Estimate the number of wrong labels: off-diagonal counts of the joint, each row scaled to the images with that label (equation 3)."""
    images = np.bincount(labels, minlength=len(joint))
    confident = joint.sum(axis=1)
    wrong = confident - joint.diagonal()
    return float((images * wrong / np.maximum(confident, 1)).sum())
