"""Measuring a published suite of which only a part is available."""

from dataclasses import dataclass
from typing import Any, Self

from nst_data.sources import Source
from nst_train.classifiers.classifier import Classifier
from nst_train.evaluation.imagenet_classes import known_wnids
from nst_train.evaluation.imagenet_suites import SuiteFolder, create_trial, restrict_to_known, suite_wnids, unknown_folders
from nst_train.evaluation.trials import Trial


@dataclass(frozen=True)
class SuitePart:
    """What is left out of a published suite with `partial`: corruptions or perturbations, classes, and folders of no class."""

    is_partial: bool = False
    missing: tuple[str, ...] = ()
    missing_classes: tuple[str, ...] = ()
    unknown_folders: tuple[str, ...] = ()

    @classmethod
    def from_sources(cls, suite: str, sources: list[tuple[SuiteFolder, Source]], missing: list[str]) -> Self:
        """The part that was opened; a class counts as missing if any of the folders lacks it."""
        classes = [wnid for wnid in suite_wnids(suite) if any(wnid not in (source.class_names or []) for _, source in sources)]
        unknown = sorted({name for place, _ in sources for name in unknown_folders(suite, place.folder)})
        return cls(True, tuple(missing), tuple(classes), tuple(unknown))

    def trial(self, suite: str, name: str, source: Source, classifier: Classifier) -> Trial:
        """The trial of `create_trial`; with `partial`, only with the classes that the classifier has."""
        if not self.is_partial:
            return create_trial(suite, name, source, classifier)
        known_source, missing_wnids = restrict_to_known(classifier, suite, source)
        return create_trial(suite, name, known_source, classifier, set(missing_wnids))

    def omissions(self, suite: str, classifier: Classifier, lost_sequences: int = 0) -> dict[str, Any]:
        """What was left out, as JSON values under `partial`; empty if all of the suite was measured."""
        wnids = suite_wnids(suite)
        model_wnids = set(known_wnids(classifier.class_names, wnids)) if self.is_partial else set(wnids)
        left_out = {
            "missing": list(self.missing),
            "missing_classes": list(self.missing_classes),
            "unknown_folders": list(self.unknown_folders),
            "classes_the_model_lacks": [wnid for wnid in wnids if wnid not in model_wnids],
            "lost_sequences": lost_sequences,
        }
        left_out = {name: value for name, value in left_out.items() if value}
        return {"partial": left_out} if left_out else {}
