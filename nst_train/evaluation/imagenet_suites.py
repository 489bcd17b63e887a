"""ImageNet-A, -R, -C and -P as published: the layout of their folders, and the metrics that are reported on them.

ImageNet-C and its mean corruption error (mCE), ImageNet-P and its mean flip rate (mFR): Hendrycks & Dietterich, ICLR 2019 (arXiv
1903.12261), sections 4.2 and 4.3. ImageNet-A: Hendrycks et al. 2019 (1907.07174); ImageNet-R: Hendrycks et al. 2020 (2006.16241).
AlexNet's numbers are keyed by name: as lists, a wrong order would go unnoticed.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.sources import Source, labels_in, open_source
from nst_data.sources.folder import ImageFolder
from nst_data.sources.imagenet_names import imagenet_wnids
from nst_train.classifiers.classifier import Classifier
from nst_train.evaluation.corruptions import SEVERITIES
from nst_train.evaluation.imagenet_classes import known_wnids, output_columns, subset_wnids
from nst_train.evaluation.sequences import Sequences
from nst_train.evaluation.trials import Trial
from nst_train.evaluation_settings import IMAGENET_A, IMAGENET_C, IMAGENET_P, IMAGENET_R

_ADVICE = ". Complete it, or measure what is there with `partial`"

ALEXNET_ERROR: Mapping[str, float] = {  # top-1 error, mean over severities (google-research/augmix, imagenet.py)
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}

ALEXNET_FLIPS: Mapping[str, float] = {  # flip probability (clovaai/assembled-cnn, mce/eval_robustness.py)
    "gaussian_noise": 0.23653,
    "shot_noise": 0.30062,
    "motion_blur": 0.09297,
    "zoom_blur": 0.05942,
    "snow": 0.11928,
    "brightness": 0.04889,
    "translate": 0.11007,
    "rotate": 0.13104,
    "tilt": 0.07050,
    "scale": 0.23531,
}

NOISE_PERTURBATIONS = ("gaussian_noise", "shot_noise")  # frames with independent noise, not with a perturbation that grows


def corruption_errors(errors: Mapping[str, Sequence[float]], reference: Mapping[str, float]) -> dict[str, float]:
    """CE of each corruption: its errors over all severities relative to the reference's mean error; 1 is as bad as the reference."""
    return {name: fsum(of_severities) / (len(of_severities) * reference[name]) for name, of_severities in errors.items()}


def mean_of(values: Mapping[str, float]) -> float:
    """The mean over corruptions or perturbations: mCE of corruption errors, mFR of flip rates."""
    return fmean(values.values())


def flip_probabilities(predicted: NDArray[np.integer], is_noise: bool) -> NDArray[np.float64]:
    """The share of frames in each sequence whose prediction differs from that of the previous frame, shape (sequences,).

    `predicted` has shape (sequences, frames). With `is_noise`, each frame is compared with the first (section 4.3; ImageNet-P/test.py).
    """
    reference = predicted[:, :1] if is_noise else predicted[:, :-1]
    shares: NDArray[np.float64] = (predicted[:, 1:] != reference).mean(axis=1)
    return shares


def suite_wnids(suite: str) -> list[str]:
    """The WordNet ids of a suite's classes, 200 or 1,000."""
    return {IMAGENET_A: lambda: subset_wnids("imagenet_a"), IMAGENET_R: lambda: subset_wnids("imagenet_r")}.get(suite, imagenet_wnids)()


def open_classes(suite: str, folder: Path, is_partial: bool) -> Source:
    """Open the class folders of a suite, or the sequences in them.

    Raises NstError for an unknown class folder and for a missing class; with `is_partial`, only for a folder without any known class.
    """
    wnids = suite_wnids(suite)
    unknown = unknown_folders(suite, folder)
    if unknown and (not is_partial or not any((folder / wnid).is_dir() for wnid in wnids)):
        raise NstError(
            f"{folder}: unknown class folder {unknown[0]!r}; expected {suite}'s {len(wnids)}, named by WordNet ids such as {wnids[0]}"
            + ("" if is_partial else _ADVICE)
        )
    source = _open_some_classes(suite, str(folder.absolute()), set(wnids)) if is_partial else _open_all_classes(suite, folder)
    class_names = source.class_names or []
    if not is_partial and (missing := [wnid for wnid in wnids if wnid not in set(class_names)]):
        raise NstError(
            f"{folder}: expected the {len(wnids)} classes of {suite}, found {len(class_names)}; missing: {_join_names(missing)}{_ADVICE}"
        )
    return source


def unknown_folders(suite: str, folder: Path) -> list[str]:
    """The folders that do not belong to any of a suite's classes."""
    wnids = set(suite_wnids(suite))
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in wnids and path.name[0] != ".")


def _open_all_classes(suite: str, folder: Path) -> Source:
    return Sequences(str(folder)) if suite == IMAGENET_P else open_source(str(folder), labeled=True)


def _open_some_classes(suite: str, folder: str, wnids: set[str]) -> Source:
    """Open some class folders. Raises NstError if they are empty."""
    source = Sequences(folder, True, wnids) if suite == IMAGENET_P else ImageFolder(folder, True, wnids)
    if not len(source):
        raise NstError(f"{folder}: expected images in class folders named by WordNet ids such as {min(wnids)}, found none")
    return source


def restrict_to_known(classifier: Classifier, suite: str, source: Source) -> tuple[Source, list[str]]:
    """The images of a suite whose classes a classifier has, and the suite's classes that it lacks.

    Raises NstError if it has none of the classes that have images.
    """
    wnids, present = suite_wnids(suite), set(source.class_names or [])
    model_wnids = set(known_wnids(classifier.class_names, wnids))
    if not model_wnids & present:
        output_columns(classifier.class_names, wnids, suite)
    missing_wnids = [wnid for wnid in wnids if wnid not in model_wnids]
    return (source if present <= model_wnids else _open_some_classes(suite, source.location, model_wnids & present)), missing_wnids


def create_trial(suite: str, name: str, source: Source, classifier: Classifier, missing_wnids: Container[str] = ()) -> Trial:
    """The trial of a classifier on a suite. All classes of the suite compete, except those that it is `missing_wnids`, and no others.

    Raises NstError if the classifier does not have these classes.
    """
    wnids = [wnid for wnid in suite_wnids(suite) if wnid not in missing_wnids]
    columns = output_columns(classifier.class_names, wnids, suite)
    places = {wnid: place for place, wnid in enumerate(wnids)}
    labels = np.array([places[class_name] for class_name in source.class_names or []], dtype=np.int64)[labels_in(source)]
    all_in_order = len(columns) == len(classifier.class_names) and bool((columns == range(len(columns))).all())
    is_cropped = suite in (IMAGENET_C, IMAGENET_P)  # published as crops of 224 px
    return Trial(name, source, wnids, labels, None if all_in_order else columns, is_cropped)


@dataclass(frozen=True)
class SuiteFolder:
    """A folder of a suite: a corruption at a severity, or a perturbation."""

    name: str
    severity: int | None
    folder: Path


def corruption_folders(folder: Path, is_partial: bool) -> list[SuiteFolder]:
    """The folders CORRUPTION/SEVERITY of ImageNet-C, with corruptions in the paper's order.

    Raises NstError that names what is missing; with `is_partial`, corruptions with a missing severity are left out.
    """
    expected = {name: [(severity, _find_folder(folder, name) / str(severity)) for severity in SEVERITIES] for name in ALEXNET_ERROR}
    missing = {name: [f"{name}/{severity}" for severity, path in places if not _has_content(path)] for name, places in expected.items()}
    names = _complete_names(folder, missing, is_partial, "15 corruptions with severities 1 to 5")
    return [SuiteFolder(name, severity, path) for name in names for severity, path in expected[name]]


def perturbation_folders(folder: Path, is_partial: bool) -> list[SuiteFolder]:
    """The folders PERTURBATION of ImageNet-P, in the paper's order. Raises NstError that names what is missing."""
    expected = {name: _find_folder(folder, name) for name in ALEXNET_FLIPS}
    missing = {name: [] if _has_content(path) else [name] for name, path in expected.items()}
    return [SuiteFolder(name, None, expected[name]) for name in _complete_names(folder, missing, is_partial, "10 perturbations")]


def _has_content(folder: Path) -> bool:
    """Whether any folder inside this one has content."""
    return next(folder.glob("*/*"), None) is not None


def _complete_names(folder: Path, missing: Mapping[str, Sequence[str]], is_partial: bool, expected: str) -> list[str]:
    missing_places = [place for places in missing.values() for place in places]
    complete = [name for name, places in missing.items() if not places]
    if missing_places and (not is_partial or not complete):
        raise NstError(f"{folder}: expected the folders of {expected}, missing: {_join_names(missing_places)}{_ADVICE if complete else ''}")
    return complete


def _find_folder(folder: Path, name: str) -> Path:
    """`folder`/name, or one level down, as in folder/noise/name: the archives get unpacked either way."""
    return next(iter([path for path in _possible_folders(folder, name) if path.is_dir()]), folder / name)


def _possible_folders(folder: Path, name: str) -> Iterator[Path]:
    yield folder / name
    yield from sorted(folder.glob(f"*/{name}"))


def _join_names(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
