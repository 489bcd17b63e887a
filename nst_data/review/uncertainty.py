"""How unsure a model is about an image, from its predicted probabilities: higher values should be looked at sooner."""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

UNCERTAINTIES = ("margin", "entropy", "confidence")


def uncertainty(by: str, probs: Float[np.ndarray, "images classes"]) -> Float[np.ndarray, " images"]:
    """One of `UNCERTAINTIES`, each in [0, 1] (Settles 2009, section 3.1).

    `margin` is 1 minus the lead of the top class over the second, `confidence` is 1 minus the top probability, and `entropy` is the
    entropy of all probabilities relative to its maximum.
    """
    values: NDArray[np.float32]
    if by == "entropy":
        values = -(probs * np.log(np.maximum(probs, np.float32(1e-12)))).sum(axis=1) / np.log(probs.shape[1])
    elif by == "confidence":
        values = 1 - probs.max(axis=1)
    else:
        second, first = np.partition(probs, -2, axis=1)[:, -2:].T
        values = 1 - (first - second)
    return values.astype(np.float32)
