"""Metrics over outcomes: accuracy, likelihood and calibration, by class and by pair of classes."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, Self

import numpy as np
import polars as pl

from nst_data.inspection import quality
from nst_data.tables.histogram import bin_bounds
from nst_train.evaluation.outcomes import Outcomes, is_correct, is_readable

MAX_PAIRS = 10_000


@dataclass(frozen=True)
class Score:
    """Counts and sums over images, which can be added over processes."""

    top1: int
    top5: int
    nll: float
    images: int
    errors: int

    @classmethod
    def from_outcomes(cls, outcomes: Outcomes) -> Self:
        """Score outcomes, of which there may be none."""
        readable = outcomes[is_readable(outcomes)]
        nll = float(readable["nll"].sum(dtype=np.float64))
        return cls(int(is_correct(readable).sum()), int(readable["top5"].sum()), nll, len(readable), len(outcomes) - len(readable))

    @property
    def numbers(self) -> list[float]:
        """All fields as floats."""
        return [float(value) for value in astuple(self)]

    @classmethod
    def from_numbers(cls, numbers: Sequence[float]) -> Self:
        """The inverse of `numbers`."""
        top1, top5, nll, images, errors = numbers
        return cls(int(top1), int(top5), nll, int(images), int(errors))

    def as_metrics(self, classes: int) -> dict[str, Any]:
        """`top1` and, with more than five classes, `top5` as fractions; `nll` in nats per image; `images` and `errors`."""
        top5 = {"top5": self.top5 / self.images} if classes > 5 else {}
        return {"top1": self.top1 / self.images, **top5, "nll": self.nll / self.images, "images": self.images, "errors": self.errors}


def summary(outcomes: Outcomes, classes: int) -> dict[str, Any]:
    """Accuracy, likelihood and calibration of outcomes with at least one image that was read.

    `top1` and, with more than five classes, `top5` as fractions; `nll` in nats per image; `ece`, the expected calibration error in [0, 1]
    over 15 bins; `images` scored and `errors` that could not be read.
    """
    counted = Score.from_outcomes(outcomes).as_metrics(classes)
    images = {name: counted.pop(name) for name in ("images", "errors")}
    return {**counted, "ece": quality.calibration_error(_bin_outcomes(outcomes[is_readable(outcomes)], quality.ECE_BINS)), **images}


def reliability(outcomes: Outcomes, bins: int = quality.ECE_BINS) -> list[dict[str, Any]]:
    """The reliability diagram (Guo et al. 2017, section 2): `images`, `accuracy` and mean `confidence` of each bin (low, high].

    The last two are None for a bin without images.
    """
    by_bin = {row["bin"]: row for row in _bin_outcomes(outcomes[is_readable(outcomes)], bins).iter_rows(named=True)}
    rows = []
    for number in range(bins):
        low, high = bin_bounds(number, bins)
        row = by_bin.get(number)
        means = {
            name: row[column] / row["images"] if row else None for name, column in (("accuracy", "correct"), ("confidence", "confidence"))
        }
        rows.append({"low": low, "high": high, "images": row["images"] if row else 0, **means})
    return rows


def by_class(outcomes: Outcomes, class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`images` and `top1` of each class that has images."""
    readable = outcomes[is_readable(outcomes)]
    images = np.bincount(readable["label"], minlength=len(class_names))
    correct = np.bincount(readable["label"][is_correct(readable)], minlength=len(class_names))
    return {
        class_names[label]: {"images": int(images[label]), "top1": int(correct[label]) / int(images[label])}
        for label in np.flatnonzero(images).tolist()
    }


def confusions(outcomes: Outcomes, class_names: Sequence[str], limit: int = MAX_PAIRS) -> list[dict[str, Any]]:
    """The confused pairs of classes, the most frequent first: `truth`, `predicted` and the number of `images`.

    Unless more than `limit` pairs occur, this and `by_class` make up the whole confusion matrix without its zeros.
    """
    readable = outcomes[is_readable(outcomes)]
    wrong = readable[~is_correct(readable)]
    pairs, images = np.unique(wrong["label"].astype(np.int64) * len(class_names) + wrong["predicted"], return_counts=True)
    order = np.lexsort((pairs, -images))[:limit]
    return [
        {"truth": class_names[pair // len(class_names)], "predicted": class_names[pair % len(class_names)], "images": count}
        for pair, count in zip(pairs[order].tolist(), images[order].tolist(), strict=True)
    ]


def _bin_outcomes(readable: Outcomes, bins: int) -> pl.DataFrame:
    judged = pl.DataFrame({"label": readable["predicted"], "truth": readable["label"], "confidence": readable["confidence"]})
    return quality.reliability(judged.lazy(), bins).collect()
