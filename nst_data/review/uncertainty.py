"""How unsure a model is of an image, from the probabilities that it gives: the larger, the sooner a person should look."""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

UNCERTAINTIES = ("margin", "entropy", "confidence")


def uncertainty(by: str, probs: Float[np.ndarray, "images classes"]) -> Float[np.ndarray, " images"]:
    """One of `UNCERTAINTIES`, in [0, 1] each (Settles 2009, section 3.1).

    `margin` is 1 less the lead of the first class over the second, `confidence` 1 less the probability of the first, `entropy` that of
    all classes as a share of the largest there is.
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
