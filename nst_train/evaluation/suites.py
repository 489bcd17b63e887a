"""What can be measured of a classifier: a suite is opened on data once and measured for each classifier.

`clean`, `corruptions`, `extra-corruptions`, `fgsm` and `pgd` take any labeled images, the others the folders that were published.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.images import decode
from nst_data.progress import Progress
from nst_data.sources import Source
from nst_data.sources.unreadable import check_readable, lost_classes, phrase
from nst_data.store.manifest import json_digest
from nst_train.classifiers.teachers import Classifier
from nst_train.evaluation import metrics
from nst_train.evaluation.conditions import Condition, Corrupted, FastGradientSign, ProjectedGradient
from nst_train.evaluation.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, SEVERITIES
from nst_train.evaluation.imagenet_classes import known_wnids
from nst_train.evaluation.imagenet_suites import (
    ALEXNET_ERROR,
    ALEXNET_FLIPS,
    NOISE,
    Place,
    classes_of,
    corrupted_places,
    corruption_errors,
    flips,
    known_to,
    mean_of,
    open_classes,
    perturbed_places,
    trial_of,
    unknown_folders,
)
from nst_train.evaluation.outcomes import Outcomes, is_read, is_right
from nst_train.evaluation.sequences import Sequences
from nst_train.evaluation.trials import Candidate, Trial, observe
from nst_train.evaluation_settings import (
    CLEAN,
    CORRUPTED,
    EXTRA_CORRUPTED,
    FGSM,
    IMAGENET_A,
    IMAGENET_C,
    IMAGENET_R,
    STEPS_LENGTH,
    EvaluateSettings,
)
from nst_train.settings import ReadSettings


@dataclass(frozen=True)
class Effort:
    """How measuring runs: `kept` is the folder where outcomes are kept, so that work goes on where it stopped."""

    kept: Path | None = None
    run: ReadSettings = field(default_factory=ReadSettings)
    progress: Progress = field(default_factory=Progress)

    def observe(self, candidate: Candidate, trial: Trial, *conditions: Condition) -> Outcomes:
        """As `trials.observe`. Raises NstError where none of the images can be read, or more of them cannot than the run allows."""
        found = observe(candidate, trial, conditions, self.kept, self.run, self.progress)
        lost = np.flatnonzero(~is_read(found).any(axis=0))
        first = _why_lost(trial.source, int(lost[0])) if len(lost) else ""
        check_readable(trial.source.location, len(trial.source), len(lost), self.run.max_unreadable, first)
        if classes := lost_classes(trial.labels, trial.class_names, lost):
            self.progress.say(f"{trial.source.location}: {phrase(classes)}")
        return found


def _why_lost(source: Source, row: int) -> str:
    """A line about an image that could not be read; outcomes keep no reason."""
    try:
        decode(source.read(row))
    except (NstError, OSError) as error:
        return f"{source.key(row)!r}: {error}"
    return repr(source.key(row))


@dataclass(frozen=True)
class Measured:
    """`result` as JSON values, `top1` and `images` among them. `by_image` has what can be compared image by image (or by sequence).

    The values there are NaN where an image could not be read; the metric is the mean of the others.
    """

    result: dict[str, Any]
    by_image: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Part:
    """What a published suite is measured without, with --partial: corruptions or perturbations, class folders; folders of no class."""

    partly: bool = False
    missing: tuple[str, ...] = ()
    missing_classes: tuple[str, ...] = ()
    unknown_folders: tuple[str, ...] = ()

    @classmethod
    def of(cls, suite: str, sources: "list[tuple[Place, Source]]", missing: list[str]) -> "Part":
        """Of what was opened; a class is missing where one of the folders lacks it."""
        classes = [wnid for wnid in classes_of(suite) if any(wnid not in (source.class_names or []) for _, source in sources)]
        unknown = sorted({name for place, _ in sources for name in unknown_folders(suite, place.folder)})
        return cls(True, tuple(missing), tuple(classes), tuple(unknown))

    def trial(self, suite: str, name: str, source: Source, classifier: Classifier) -> Trial:
        """As `trial_of`; with --partial of the classes alone that the classifier knows."""
        if not self.partly:
            return trial_of(suite, name, source, classifier)
        shown, lacking = known_to(classifier, suite, source)
        return trial_of(suite, name, shown, classifier, set(lacking))

    def marks(self, suite: str, classifier: Classifier, lost_sequences: int = 0) -> dict[str, Any]:
        """`partial` with what was left out, as JSON values; nothing where all of the suite was measured."""
        wnids = classes_of(suite)
        known = set(known_wnids(classifier.class_names, wnids)) if self.partly else set(wnids)
        found = {
            "missing": list(self.missing),
            "missing_classes": list(self.missing_classes),
            "unknown_folders": list(self.unknown_folders),
            "classes_the_model_lacks": [wnid for wnid in wnids if wnid not in known],
            "lost_sequences": lost_sequences,
        }
        found = {name: value for name, value in found.items() if value}
        return {"partial": found} if found else {}


class Suite(Protocol):
    """Opened on data. `identity` is all that decides its numbers beside the classifier."""

    @property
    def name(self) -> str:
        """As settings name it."""

    @property
    def location(self) -> str:
        """Where the data lie."""

    @property
    def identity(self) -> str:
        """Digest of data and settings."""

    def measure(self, candidate: Candidate, effort: Effort) -> Measured:
        """Raises NstError for a classifier of other classes."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy and calibration on images as they are: `clean`, ImageNet-A and ImageNet-R."""

    name: str
    source: Source
    part: "Part | None" = None

    @property
    def location(self) -> str:
        """The source's."""
        return self.source.location

    @property
    def identity(self) -> str:
        """The source's fingerprint; of ImageNet-A or -R with the name, as other classes compete on the same images."""
        return self.source.fingerprint if self.name == CLEAN else json_digest([self.source.fingerprint, self.name])

    def measure(self, candidate: Candidate, effort: Effort) -> Measured:
        """`top1`, `top5`, `nll`, `ece`, `images`, `errors`; the reliability diagram, classes and confusions; `classes_not_read`, where
        there are any: those of which no image could be read, with how many each has.
        """
        part = self.part or Part()
        trial = (
            Trial.of("evaluate", self.source, candidate.classifier)
            if self.name == CLEAN
            else part.trial(self.name, self.name, self.source, candidate.classifier)
        )
        outcomes = effort.observe(candidate, trial)[0]
        lost = lost_classes(trial.labels, trial.class_names, np.flatnonzero(~is_read(outcomes)))
        result = {
            **metrics.summary(outcomes, len(trial.class_names)),
            "reliability": metrics.reliability(outcomes),
            "classes": metrics.by_class(outcomes, trial.class_names),
            "confusions": metrics.confusions(outcomes, trial.class_names),
            **({"classes_not_read": lost} if lost else {}),
            **part.marks(self.name, candidate.classifier),
        }
        return Measured(result, {"top1": right_by_image(outcomes)})


@dataclass(frozen=True)
class Corruptions:
    """The fifteen corruptions at five severities, made of any labeled images of 32 pixels or more; as `extra-corruptions` the other four.

    Errors are relative to those of `reference`, where there is one; the extra ones have none, as they do not count towards mCE.
    """

    source: Source
    seed: int
    reference: Candidate | None = None
    name: str = CORRUPTED

    @property
    def location(self) -> str:
        """The source's."""
        return self.source.location

    @property
    def identity(self) -> str:
        """The source's, the seed and the reference's; of the extra ones with the name."""
        extra = [self.name] if self.name == EXTRA_CORRUPTED else []
        return json_digest([self.source.fingerprint, self.seed, self.reference and self.reference.identity, *extra])

    def measure(self, candidate: Candidate, effort: Effort) -> Measured:
        """As `of_corruptions`; where the reference is never wrong under some corruption, `mce_missing` says so in place of `mce`."""
        reference = None
        if self.reference:
            errors = self._right(self.reference, effort)
            reference = {name: 1 - float(np.nanmean(values)) for name, values in errors.items()}
            if flawless := [name for name, error in reference.items() if error == 0]:
                found = of_corruptions(self._right(candidate, effort), None, None)
                found.result["mce_missing"] = (
                    f"{self.reference.ref} makes no error under {', '.join(flawless)} to which one could be relative"
                )
                return found
        return of_corruptions(self._right(candidate, effort), reference, self.reference.ref if self.reference else None)

    def _right(self, candidate: Candidate, effort: Effort) -> dict[str, list[NDArray[np.float64]]]:
        trial = Trial.of(f"corruptions of {candidate.ref}", self.source, candidate.classifier)
        names = EXTRA_CORRUPTIONS if self.name == EXTRA_CORRUPTED else CORRUPTIONS
        conditions = [Corrupted(name, severity, self.seed) for name in names for severity in SEVERITIES]
        outcomes = iter(right_by_image(effort.observe(candidate, trial, *conditions)))
        return {name: [next(outcomes) for _ in SEVERITIES] for name in names}


@dataclass(frozen=True)
class Attacks:
    """Accuracy by the size of an attack, `fgsm` or `pgd`, on any labeled images."""

    name: str
    source: Source
    settings: EvaluateSettings

    @property
    def location(self) -> str:
        """The source's."""
        return self.source.location

    @property
    def identity(self) -> str:
        """The source's and the settings of the attack."""
        return json_digest([self.source.fingerprint, self.name, self.settings.of_suite(self.name)])

    def measure(self, candidate: Candidate, effort: Effort) -> Measured:
        """`by_epsilon`: top-1 at each size, from 0, the images as they are; `top1` at the largest."""
        levels = (0.0, *self.settings.epsilon)
        conditions = [Condition(), *map(self._condition, self.settings.epsilon)]
        trial = Trial.of(f"{self.name} on {candidate.ref}", self.source, candidate.classifier)
        outcomes = effort.observe(candidate, trial, *conditions)
        right = [right_by_image(one) for one in outcomes]
        points = [{"epsilon": epsilon, "top1": float(np.nanmean(one))} for epsilon, one in zip(levels, right, strict=True)]
        read = int(is_read(outcomes[0]).sum())
        about = {"settings": self.settings.of_suite(self.name), "images": read, "errors": outcomes.shape[1] - read}
        by_image = {f"top1 at {255 * epsilon:g}/255": one for epsilon, one in zip(levels[1:], right[1:], strict=True)}
        return Measured({"top1": points[-1]["top1"], "by_epsilon": points, **about}, by_image)

    def _condition(self, epsilon: float) -> Condition:
        if self.name == FGSM:
            return FastGradientSign(epsilon)
        settings = self.settings
        step_size = settings.step_size or min(1.0, STEPS_LENGTH * epsilon / settings.steps)
        return ProjectedGradient(epsilon, settings.steps, step_size, settings.seed if settings.random_start else None)


@dataclass(frozen=True)
class _PublishedFolders:
    """A published suite of several folders, all of them or, with `part`, some."""

    name: str
    location: str
    sources: list[tuple[Place, Source]]
    part: "Part | None" = None

    @property
    def identity(self) -> str:
        """All the folders'."""
        return json_digest([[place.name, place.severity, source.fingerprint] for place, source in self.sources])


class PublishedCorruptions(_PublishedFolders):
    """ImageNet-C."""

    def measure(self, candidate: Candidate, effort: Effort) -> Measured:
        """As `of_corruptions`, relative to AlexNet."""
        right: dict[str, list[NDArray[np.float64]]] = {}
        part, shown = self.part or Part(), []
        for place, source in self.sources:
            trial = part.trial(self.name, f"{place.name} {place.severity}", source, candidate.classifier)
            shown.append(trial.source)
            right.setdefault(place.name, []).append(right_by_image(effort.observe(candidate, trial)[0]))
        found = of_corruptions(right, ALEXNET_ERROR, "AlexNet", _are_same_images(shown))
        found.result.update(part.marks(self.name, candidate.classifier))
        return found


class PublishedPerturbations(_PublishedFolders):
    """ImageNet-P."""

    def measure(self, candidate: Candidate, effort: Effort) -> Measured:
        """`mfr` and `fr` of each perturbation relative to AlexNet's, `flips`: their flip probabilities; `top1` over all frames."""
        by_sequence: dict[str, NDArray[np.float64]] = {}
        accuracies, frames, names = [], {}, []
        part = self.part or Part()
        for place, source in self.sources:
            trial = part.trial(self.name, place.name, source, candidate.classifier)
            assert isinstance(trial.source, Sequences)
            names.append(trial.source.names)
            outcomes = effort.observe(candidate, trial)[0]
            accuracies.append(np.nanmean(right_by_image(outcomes)))
            outcomes = outcomes.reshape(-1, trial.source.frames)
            shares = flips(outcomes["predicted"], place.name in NOISE)
            whole = is_read(outcomes).all(axis=1)
            if not whole.any():
                raise NstError(f"{place.folder}: none of its {len(shares):,} sequences can be read whole; unpack {place.name} again")
            by_sequence[place.name] = np.where(whole, shares, np.nan)
            frames[place.name] = outcomes.shape[1]
        found = {name: float(np.nanmean(shares)) for name, shares in by_sequence.items()}
        rates = {name: share / ALEXNET_FLIPS[name] for name, share in found.items()}
        lost = sum(int(np.isnan(shares).sum()) for shares in by_sequence.values())
        result = {
            "mfr": mean_of(rates),
            "fr": rates,
            "flips": found,
            "top1": float(np.mean(accuracies)),
            "frames": frames,
            "sequences": sum(map(len, by_sequence.values())) - lost,
            "images": sum((len(shares) - int(np.isnan(shares).sum())) * frames[name] for name, shares in by_sequence.items()),
            "errors": lost,
            **part.marks(self.name, candidate.classifier, lost),
        }
        paired = all(one == names[0] for one in names)
        weighted = [shares / ALEXNET_FLIPS[name] for name, shares in by_sequence.items()]
        return Measured(result, {"mfr": np.mean(weighted, axis=0)} if paired else {})


def of_corruptions(
    right: Mapping[str, list[NDArray[np.float64]]], reference: Mapping[str, float] | None, named: str | None, paired: bool = True
) -> Measured:
    """The numbers of corruptions: of each, whether each image was right (1, 0 or NaN) at each severity.

    `error` at each severity, `mean_error` over all, `top1` likewise; with a reference's mean error of each corruption `ce`, relative to
    that, and their mean `mce`. `paired` says that all saw the same images.
    """
    errors = {name: [1 - float(np.nanmean(values)) for values in of_severities] for name, of_severities in right.items()}
    mean_error = mean_of({name: float(np.mean(of_severities)) for name, of_severities in errors.items()})
    unread = max(int(np.isnan(values).sum()) for of_severities in right.values() for values in of_severities)
    images = max(len(values) for of_severities in right.values() for values in of_severities)
    result = {"top1": 1 - mean_error, "mean_error": mean_error, "error": errors}
    by_image = {name: 1 - np.mean(of_severities, axis=0) for name, of_severities in right.items()} if paired else {}
    compared = {"mean_error": np.mean(list(by_image.values()), axis=0)} if paired else {}
    if reference is not None:
        ce = corruption_errors(errors, reference)
        result |= {"mce": mean_of(ce), "ce": ce, "relative_to": named}
        if paired:
            compared["mce"] = np.mean([values / reference[name] for name, values in by_image.items()], axis=0)
    result |= {"images": images - unread, "errors": unread}
    return Measured(result, compared)


def right_by_image(outcomes: Outcomes) -> NDArray[np.float64]:
    """1 where the most probable class is the label, 0 where not, NaN where the image could not be read."""
    return np.where(is_read(outcomes), is_right(outcomes).astype(np.float64), np.nan)


def open_suite(name: str, data: Path | Source, settings: EvaluateSettings, reference: Candidate | None = None) -> Suite:
    """A suite on its data: a labeled source, or a published suite's folder. Raises NstError for what is missing there.

    `reference` is the classifier that `settings.relative_to` names.
    """
    if isinstance(data, Source):
        if name == CLEAN:
            return Accuracy(CLEAN, data)
        if name == EXTRA_CORRUPTED:
            return Corruptions(data, settings.seed, name=name)
        return Corruptions(data, settings.seed, reference) if name == CORRUPTED else Attacks(name, data, settings)
    if not data.is_dir():
        raise NstError(f"{data}: no such folder; expected {name} as published")
    partly = settings.partial
    if name in (IMAGENET_A, IMAGENET_R):
        source = open_classes(name, data, partly)
        return Accuracy(name, source, Part.of(name, [(Place(name, None, data), source)], []) if partly else None)
    places = corrupted_places(data, partly) if name == IMAGENET_C else perturbed_places(data, partly)
    sources = [(place, open_classes(name, place.folder, partly)) for place in places]
    there = {place.name for place in places}
    missing = [one for one in (ALEXNET_ERROR if name == IMAGENET_C else ALEXNET_FLIPS) if one not in there]
    part = Part.of(name, sources, missing) if partly else None
    return (PublishedCorruptions if name == IMAGENET_C else PublishedPerturbations)(name, str(data.absolute()), sources, part)


def _are_same_images(sources: list[Source]) -> bool:
    names = [source.listing()["name"] for source in sources]
    return all(one.equals(names[0]) for one in names)
