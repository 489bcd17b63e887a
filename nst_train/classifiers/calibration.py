"""How well a classifier's probabilities are calibrated, and the temperature that calibrates them.

Guo et al. 2017, "On Calibration of Modern Neural Networks" (arXiv 1706.04599), equation 3 and section 4.2. Everything is computed
in float64 on the CPU. `log_probs` are the logits of one network or the logarithms of an ensemble's mean probabilities; adding a
constant to a row changes nothing. -inf is a probability of 0 at every temperature, except at the image's true class: there it must
be a rounding error, and counts as the smallest normal float32.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nst_data.errors import NstError
from nst_data.inspection import quality

MIN_TEMPERATURE, MAX_TEMPERATURE = 1 / 64, 64.0
_CHUNK_VALUES = 2**22  # bounds the float64 copies in memory
_SMALLEST = math.log(torch.finfo(torch.float32).tiny)
_MAX_PASSES = 200
_PRECISION = 1e-11  # of the temperature, as a relative error


@dataclass(frozen=True)
class Calibration:
    """A temperature and its effect on the images it was fitted on. NLL in nats per image, ECE in [0, 1] over 15 bins."""

    temperature: float
    at_edge: bool  # the likelihood still rises beyond the searched range: labels that fit perfectly, or not at all
    images: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float


def calibrate(log_probs: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> Calibration:
    """Fit a temperature on labeled images that no network was trained on. Raises NstError like `fit_temperature`."""
    temperature = fit_temperature(log_probs, labels)
    return Calibration(
        temperature=temperature,
        at_edge=temperature in (MIN_TEMPERATURE, MAX_TEMPERATURE),
        images=len(labels),
        nll_before=negative_log_likelihood(log_probs, labels),
        nll_after=negative_log_likelihood(log_probs, labels, temperature),
        ece_before=_calibration_error(log_probs, labels, 1.0),
        ece_after=_calibration_error(log_probs, labels, temperature),
    )


def fit_temperature(log_probs: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> float:
    """The T in [1/64, 64] that minimizes the negative log-likelihood of softmax(log_probs / T) (section 4.2).

    Exactly an end of that range if the minimum is there or beyond; 1 if T has no effect (uniform rows).
    Raises NstError if there are no images, or if the largest value of a row is not finite.
    """

    def derivatives(inverse: float) -> tuple[float, float]:
        """First and second derivative of the mean negative log-likelihood with respect to 1/T, in which it is convex."""
        first, second = 0.0, 0.0
        for rows, of_label in _chunks(log_probs, labels):
            probs = (rows * inverse).softmax(dim=1)
            values = rows.masked_fill(rows.isneginf(), 0)  # their probability is 0
            mean = (probs * values).sum(dim=1, keepdim=True)
            first += float((mean.squeeze(1) - of_label).sum())
            second += float((probs * (values - mean) ** 2).sum())
        return first / len(labels), second / len(labels)

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    at_low, at_high = derivatives(low)[0], derivatives(high)[0]
    if at_low == at_high == 0:
        return 1.0
    if at_low >= 0:
        return MAX_TEMPERATURE
    if at_high <= 0:
        return MIN_TEMPERATURE
    return 1 / _find_root(derivatives, low, high)


def negative_log_likelihood(log_probs: Float[Tensor, "images classes"], labels: Int[Tensor, " images"], temperature: float = 1.0) -> float:
    """Mean of -log softmax(log_probs / temperature) at the label, in nats per image; uniform rows cost ln(classes)."""
    chunks = ((rows / temperature, of_label / temperature) for rows, of_label in _chunks(log_probs, labels))
    return sum(float((rows.logsumexp(dim=1) - of_label).sum()) for rows, of_label in chunks) / len(labels)


def _calibration_error(log_probs: Float[Tensor, "images classes"], labels: Int[Tensor, " images"], temperature: float) -> float:
    """Expected calibration error over bins of equal width (equation 3), in [0, 1]."""
    tops = [(rows / temperature).softmax(dim=1).max(dim=1) for rows, _ in _chunks(log_probs, labels)]
    predicted, confidence = (torch.cat([getattr(top, name) for top in tops]).numpy() for name in ("indices", "values"))
    judged = pl.DataFrame({"label": predicted, "truth": labels.cpu().numpy(), "confidence": confidence})
    return quality.calibration_error(quality.reliability(judged.lazy(), quality.ECE_BINS).collect())


def _chunks(
    log_probs: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]
) -> Iterator[tuple[Float[Tensor, "rows classes"], Float[Tensor, " rows"]]]:
    """Yield chunks of rows in float64, shifted so that their largest value is 0, with the value at each row's label."""
    if not len(labels):
        raise NstError("no labeled image to calibrate on: expected at least one that can be read; give other `calibration` images")
    images = max(1, _CHUNK_VALUES // log_probs.shape[1])
    for start in range(0, len(labels), images):
        rows = log_probs[start : start + images].detach().cpu().double()
        index = labels[start : start + images].cpu().long()[:, None]
        largest = rows.amax(dim=1, keepdim=True)
        if not largest.isfinite().all():
            raise NstError("a logit is NaN, or none is finite: the network's weights are damaged; retrain it")
        rows = rows - largest
        of_label = rows.gather(1, index)
        of_label = of_label.masked_fill(of_label.isneginf(), _SMALLEST)
        yield rows.scatter(1, index, of_label), of_label.squeeze(1)


def _find_root(derivatives: Callable[[float], tuple[float, float]], low: float, high: float) -> float:
    """Root of an increasing function, negative at `low` > 0 and positive at `high`, by Newton's method with bisection where it is slow."""
    x, step = 1.0, high - low
    for _ in range(_MAX_PASSES):
        value, derivative = derivatives(x)
        if value == 0:
            return x
        low, high = (x, high) if value < 0 else (low, x)
        newton = x - value / derivative if derivative > 0 else math.inf
        fast = low <= newton <= high and abs(newton - x) < step / 2
        next_x = newton if fast else math.sqrt(low * high)
        step = abs(next_x - x)
        x = next_x
        if step <= _PRECISION * x:
            break
    return x
