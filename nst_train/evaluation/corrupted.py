"""Accuracy under corruptions of any labeled images, and the metrics that are shared with ImageNet-C."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nst_data.sources import Source
from nst_data.store.manifest import json_digest
from nst_train.evaluation.conditions import Corrupted
from nst_train.evaluation.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from nst_train.evaluation.imagenet_suites import corruption_errors, mean_of
from nst_train.evaluation.measuring import Measurement, SuiteRunner, correct_by_image
from nst_train.evaluation.trials import Candidate, Trial
from nst_train.evaluation_settings import CORRUPTED, EXTRA_CORRUPTED


@dataclass(frozen=True)
class Corruptions:
    """The fifteen corruptions at five severities, of any labeled images of 32 pixels or more; with `extra-corruptions` the other four.

    With a `reference`, errors are relative to its errors. The extra corruptions have none, as they do not count towards mCE.
    """

    source: Source
    seed: int
    reference: Candidate | None = None
    name: str = CORRUPTED

    @property
    def location(self) -> str:
        """Location of the source."""
        return self.source.location

    @property
    def identity(self) -> str:
        """Digest of the source's fingerprint, the seed and the reference's identity; for the extra corruptions with the name."""
        extra = [self.name] if self.name == EXTRA_CORRUPTED else []
        return json_digest([self.source.fingerprint, self.seed, self.reference and self.reference.identity, *extra])

    def measure(self, candidate: Candidate, runner: SuiteRunner) -> Measurement:
        """Measure as in `corruption_metrics`.

        If the reference makes no error under a corruption, `mce_missing` says so in place of `mce`.
        """
        reference = None
        if self.reference:
            errors = self._correct_by_corruption(self.reference, runner)
            reference = {name: 1 - float(np.nanmean(values)) for name, values in errors.items()}
            if flawless := [name for name, error in reference.items() if error == 0]:
                measured = corruption_metrics(self._correct_by_corruption(candidate, runner), None, None)
                measured.result["mce_missing"] = (
                    f"{self.reference.ref} makes no error under {', '.join(flawless)} to which one could be relative"
                )
                return measured
        return corruption_metrics(self._correct_by_corruption(candidate, runner), reference, self.reference.ref if self.reference else None)

    def _correct_by_corruption(self, candidate: Candidate, runner: SuiteRunner) -> dict[str, list[NDArray[np.float64]]]:
        trial = Trial.from_source(f"corruptions of {candidate.ref}", self.source, candidate.classifier)
        names = EXTRA_CORRUPTIONS if self.name == EXTRA_CORRUPTED else CORRUPTIONS
        conditions = [Corrupted(name, severity, self.seed) for name in names for severity in SEVERITIES]
        outcomes = iter(correct_by_image(runner.observe(candidate, trial, *conditions)))
        return {name: [next(outcomes) for _ in SEVERITIES] for name in names}


def corruption_metrics(
    correct: Mapping[str, list[NDArray[np.float64]]],
    reference: Mapping[str, float] | None,
    reference_name: str | None,
    is_paired: bool = True,
) -> Measurement:
    """Metrics from whether each image was right (1, 0 or NaN), by corruption and severity.

    They are `error` at each severity, `mean_error` over all, and `top1` likewise; given a reference's mean error for each corruption, also
    `ce` relative to that, and their mean `mce`. `is_paired` says that all corruptions and severities have the same images.
    """
    errors = {name: [1 - float(np.nanmean(values)) for values in of_severities] for name, of_severities in correct.items()}
    mean_error = mean_of({name: float(np.mean(of_severities)) for name, of_severities in errors.items()})
    n_unreadable = max(int(np.isnan(values).sum()) for of_severities in correct.values() for values in of_severities)
    images = max(len(values) for of_severities in correct.values() for values in of_severities)
    result = {"top1": 1 - mean_error, "mean_error": mean_error, "error": errors}
    by_image = {name: 1 - np.mean(of_severities, axis=0) for name, of_severities in correct.items()} if is_paired else {}
    compared = {"mean_error": np.mean(list(by_image.values()), axis=0)} if is_paired else {}
    if reference is not None:
        ce = corruption_errors(errors, reference)
        result |= {"mce": mean_of(ce), "ce": ce, "relative_to": reference_name}
        if is_paired:
            compared["mce"] = np.mean([values / reference[name] for name, values in by_image.items()], axis=0)
    result |= {"images": images - n_unreadable, "errors": n_unreadable}
    return Measurement(result, compared)
