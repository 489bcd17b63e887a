"""The suites that classifiers can be measured by: each is opened on its data once and run for each classifier.

`clean`, `corruptions`, `extra-corruptions`, `fgsm` and `pgd` take any labeled images, the others their published folders.
"""

from pathlib import Path

from nst_data.errors import NstError
from nst_data.sources import Source
from nst_train.evaluation.accuracy import Accuracy
from nst_train.evaluation.attacked import Attacks
from nst_train.evaluation.corrupted import Corruptions
from nst_train.evaluation.corruptions import check_opencv
from nst_train.evaluation.imagenet_suites import (
    ALEXNET_ERROR,
    ALEXNET_FLIPS,
    SuiteFolder,
    corruption_folders,
    open_classes,
    perturbation_folders,
)
from nst_train.evaluation.measuring import Suite
from nst_train.evaluation.partial import SuitePart
from nst_train.evaluation.published_folders import PublishedCorruptions, PublishedPerturbations
from nst_train.evaluation.trials import Candidate
from nst_train.evaluation_settings import CLEAN, CORRUPTED, EXTRA_CORRUPTED, IMAGENET_A, IMAGENET_C, IMAGENET_R, EvaluateSettings


def open_suite(name: str, data: Path | Source, settings: EvaluateSettings, reference: Candidate | None = None) -> Suite:
    """Open a suite on its data: a labeled source, or a published suite's folder.

    `reference` is the classifier that `settings.relative_to` names. Raises NstError for missing data, and UsageError if the package that
    corruptions need is not installed.
    """
    if isinstance(data, Source):
        if name == CLEAN:
            return Accuracy(CLEAN, data)
        if name in (CORRUPTED, EXTRA_CORRUPTED):
            check_opencv()
        if name == EXTRA_CORRUPTED:
            return Corruptions(data, settings.seed, name=name)
        return Corruptions(data, settings.seed, reference) if name == CORRUPTED else Attacks(name, data, settings)
    if not data.is_dir():
        raise NstError(f"{data}: no such folder; expected {name} as published")
    is_partial = settings.partial
    if name in (IMAGENET_A, IMAGENET_R):
        source = open_classes(name, data, is_partial)
        return Accuracy(name, source, SuitePart.from_sources(name, [(SuiteFolder(name, None, data), source)], []) if is_partial else None)
    places = corruption_folders(data, is_partial) if name == IMAGENET_C else perturbation_folders(data, is_partial)
    sources = [(place, open_classes(name, place.folder, is_partial)) for place in places]
    present = {place.name for place in places}
    missing = [expected for expected in (ALEXNET_ERROR if name == IMAGENET_C else ALEXNET_FLIPS) if expected not in present]
    part = SuitePart.from_sources(name, sources, missing) if is_partial else None
    return (PublishedCorruptions if name == IMAGENET_C else PublishedPerturbations)(name, str(data.absolute()), sources, part)
