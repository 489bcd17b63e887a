"""Accuracy under attacks of increasing size."""

from dataclasses import dataclass

import numpy as np

from nst_data.sources import Source
from nst_data.store.manifest import json_digest
from nst_train.evaluation.conditions import Condition, FastGradientSign, ProjectedGradient
from nst_train.evaluation.measuring import Measurement, SuiteRunner, correct_by_image
from nst_train.evaluation.outcomes import is_readable
from nst_train.evaluation.trials import Candidate, Trial
from nst_train.evaluation_settings import FGSM, STEPS_LENGTH, EvaluateSettings


@dataclass(frozen=True)
class Attacks:
    """Accuracy under the attack `fgsm` or `pgd` at several sizes, on any labeled images."""

    name: str
    source: Source
    settings: EvaluateSettings

    @property
    def location(self) -> str:
        """Location of the source."""
        return self.source.location

    @property
    def identity(self) -> str:
        """Digest of the source's fingerprint, the attack and its settings."""
        return json_digest([self.source.fingerprint, self.name, self.settings.suite_settings(self.name)])

    def measure(self, candidate: Candidate, runner: SuiteRunner) -> Measurement:
        """Measure `by_epsilon`, top-1 at each size, starting with 0 for clean images, and `top1` at the largest size."""
        levels = (0.0, *self.settings.epsilon)
        conditions = [Condition(), *map(self._condition, self.settings.epsilon)]
        trial = Trial.from_source(f"{self.name} on {candidate.ref}", self.source, candidate.classifier)
        outcomes = runner.observe(candidate, trial, *conditions)
        correct = [correct_by_image(values) for values in outcomes]
        points = [{"epsilon": epsilon, "top1": float(np.nanmean(values))} for epsilon, values in zip(levels, correct, strict=True)]
        n_read = int(is_readable(outcomes[0]).sum())
        about = {"settings": self.settings.suite_settings(self.name), "images": n_read, "errors": outcomes.shape[1] - n_read}
        by_image = {f"top1 at {255 * epsilon:g}/255": values for epsilon, values in zip(levels[1:], correct[1:], strict=True)}
        return Measurement({"top1": points[-1]["top1"], "by_epsilon": points, **about}, by_image)

    def _condition(self, epsilon: float) -> Condition:
        if self.name == FGSM:
            return FastGradientSign(epsilon)
        settings = self.settings
        step_size = settings.step_size or min(1.0, STEPS_LENGTH * epsilon / settings.steps)
        return ProjectedGradient(epsilon, settings.steps, step_size, settings.seed if settings.random_start else None)
