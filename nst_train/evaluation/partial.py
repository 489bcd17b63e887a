"""Measuring a published suite of which only a part is available."""

from dataclasses import dataclass
from typing import Any, Self

from nst_data.sources import Source
from nst_train.classifiers.classifier import Classifier
from nst_train.evaluation.imagenet_classes import known_wnids
from nst_train.evaluation.imagenet_suites import Place, classes_of_suite, known_to, trial_of, unknown_folders
from nst_train.evaluation.trials import Trial


@dataclass(frozen=True)
class Part:
    """What is left out of a published suite with `partial`: corruptions or perturbations, classes, and folders of no class."""

    partly: bool = False
    missing: tuple[str, ...] = ()
    missing_classes: tuple[str, ...] = ()
    unknown_folders: tuple[str, ...] = ()

    @classmethod
    def of(cls, suite: str, sources: list[tuple[Place, Source]], missing: list[str]) -> Self:
        """The part that was opened; a class counts as missing if any of the folders lacks it."""
        classes = [wnid for wnid in classes_of_suite(suite) if any(wnid not in (source.class_names or []) for _, source in sources)]
        unknown = sorted({name for place, _ in sources for name in unknown_folders(suite, place.folder)})
        return cls(True, tuple(missing), tuple(classes), tuple(unknown))

    def trial(self, suite: str, name: str, source: Source, classifier: Classifier) -> Trial:
        """The trial of `trial_of`; with `partial`, only with the classes that the classifier has."""
        if not self.partly:
            return trial_of(suite, name, source, classifier)
        shown, lacking = known_to(classifier, suite, source)
        return trial_of(suite, name, shown, classifier, set(lacking))

    def marks(self, suite: str, classifier: Classifier, lost_sequences: int = 0) -> dict[str, Any]:
        """What was left out, as JSON values under `partial`; empty if all of the suite was measured."""
        wnids = classes_of_suite(suite)
        known = set(known_wnids(classifier.class_names, wnids)) if self.partly else set(wnids)
        left_out = {
            "missing": list(self.missing),
            "missing_classes": list(self.missing_classes),
            "unknown_folders": list(self.unknown_folders),
            "classes_the_model_lacks": [wnid for wnid in wnids if wnid not in known],
            "lost_sequences": lost_sequences,
        }
        left_out = {name: value for name, value in left_out.items() if value}
        return {"partial": left_out} if left_out else {}
