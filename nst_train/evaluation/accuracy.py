"""Accuracy and calibration on clean images."""

from dataclasses import dataclass

import numpy as np

from nst_data.sources import Source
from nst_data.sources.unreadable import lost_classes
from nst_data.store.manifest import json_digest
from nst_train.evaluation import metrics
from nst_train.evaluation.measuring import Measurement, SuiteRunner, correct_by_image
from nst_train.evaluation.outcomes import is_readable
from nst_train.evaluation.partial import SuitePart
from nst_train.evaluation.trials import Candidate, Trial
from nst_train.evaluation_settings import CLEAN


@dataclass(frozen=True)
class Accuracy:
    """Accuracy and calibration on clean images: `clean`, ImageNet-A and ImageNet-R."""

    name: str
    source: Source
    part: SuitePart | None = None

    @property
    def location(self) -> str:
        """Location of the source."""
        return self.source.location

    @property
    def identity(self) -> str:
        """The source's fingerprint; for ImageNet-A and -R with the name, as different classes compete on the same images."""
        return self.source.fingerprint if self.name == CLEAN else json_digest([self.source.fingerprint, self.name])

    def measure(self, candidate: Candidate, runner: SuiteRunner) -> Measurement:
        """Measure `top1`, `top5`, `nll`, `ece`, `images`, `errors`, the reliability diagram, classes and confusions.

        `classes_not_read`, if there are any, are the classes of which no image could be read, with their numbers of images.
        """
        part = self.part or SuitePart()
        trial = (
            Trial.from_source("evaluate", self.source, candidate.classifier)
            if self.name == CLEAN
            else part.trial(self.name, self.name, self.source, candidate.classifier)
        )
        outcomes = runner.observe(candidate, trial)[0]
        not_read = lost_classes(trial.labels, trial.class_names, np.flatnonzero(~is_readable(outcomes)))
        result = {
            **metrics.summary(outcomes, len(trial.class_names)),
            "reliability": metrics.reliability(outcomes),
            "classes": metrics.by_class(outcomes, trial.class_names),
            "confusions": metrics.confusions(outcomes, trial.class_names),
            **({"classes_not_read": not_read} if not_read else {}),
            **part.omissions(self.name, candidate.classifier),
        }
        return Measurement(result, {"top1": correct_by_image(outcomes)})
