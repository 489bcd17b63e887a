"""What can be measured of a classifier: a suite is opened on data once and measured for each classifier.

`clean`, `corruptions`, `fgsm` and `pgd` take any labeled images, the others the folders that were published.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nst_data.corruptions import CORRUPTIONS, SEVERITIES
from nst_data.errors import NstError
from nst_data.manifest import json_digest
from nst_data.progress import Progress
from nst_data.sources import Source
from nst_train import metrics
from nst_train.conditions import Condition, Corrupted, FastGradientSign, ProjectedGradient
from nst_train.evaluation_settings import (
    CLEAN,
    CORRUPTED,
    FGSM,
    IMAGENET_A,
    IMAGENET_C,
    IMAGENET_P,
    IMAGENET_R,
    STEPS_LENGTH,
    EvaluateSettings,
)
from nst_train.imagenet_suites import (
    ALEXNET_ERROR,
    ALEXNET_FLIPS,
    NOISE,
    Place,
    corrupted_places,
    corruption_errors,
    flips,
    mean_of,
    open_classes,
    perturbed_places,
    trial_of,
)
from nst_train.outcomes import Outcomes, is_read, is_right
from nst_train.settings import ReadSettings
from nst_train.trials import Candidate, Trial, observe


@dataclass(frozen=True)
class Effort:
    """How measuring runs: `kept` is the folder where outcomes are kept, so that work goes on where it stopped."""

    kept: Path | None = None
    run: ReadSettings = field(default_factory=ReadSettings)
    progress: Progress = field(default_factory=Progress)

    def observe(self, candidate: Candidate, trial: Trial, *conditions: Condition) -> Outcomes:
        """As `trials.observe`. Raises NstError where not one image can be read."""
        found = observe(candidate, trial, conditions, self.kept, self.run, self.progress)
        if not is_read(found).any():
            raise NstError(f"{trial.source.location}: none of its {len(trial.source)} images could be read")
        return found


@dataclass(frozen=True)
class Measured:
    """`result` as JSON values, `top1` and `images` among them. `by_image` has what can be compared image by image (or by sequence).

    The values there are NaN where an image could not be read; the metric is the mean of the others.
    """

    result: dict[str, Any]
    by_image: dict[str, NDArray[np.float64]]


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

    @property
    def location(self) -> str:
        """The source's."""
        return self.source.location

    @property
    def identity(self) -> str:
        """The source's fingerprint; of ImageNet-A or -R with the name, as other classes compete on the same images."""
        return self.source.fingerprint if self.name == CLEAN else json_digest([self.source.fingerprint, self.name])

    def measure(self, candidate: Candidate, effort: Effort) -> Measured:
        """`top1`, `top5`, `nll`, `ece`, `images`, `errors`; the reliability diagram, classes and confusions."""
        clean = self.name == CLEAN
        trial = (
            Trial.of("evaluate", self.source, candidate.classifier)
            if clean
            else trial_of(self.name, self.name, self.source, candidate.classifier)
        )
        outcomes = effort.observe(candidate, trial)[0]
        result = {
            **metrics.summary(outcomes, len(trial.class_names)),
            "reliability": metrics.reliability(outcomes),
            "classes": metrics.by_class(outcomes, trial.class_names),
            "confusions": metrics.confusions(outcomes, trial.class_names),
        }
        return Measured(result, {"top1": right_by_image(outcomes)})


@dataclass(frozen=True)
class Corruptions:
    """The fifteen corruptions at five severities, made of any labeled images of 32 pixels or more.

    Errors are relative to those of `reference`, where there is one.
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
        """The source's, the seed and the reference's."""
        return json_digest([self.source.fingerprint, self.seed, self.reference and self.reference.identity])

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
        conditions = [Corrupted(name, severity, self.seed) for name in CORRUPTIONS for severity in SEVERITIES]
        outcomes = iter(right_by_image(effort.observe(candidate, trial, *conditions)))
        return {name: [next(outcomes) for _ in SEVERITIES] for name in CORRUPTIONS}


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
class PublishedCorruptions:
    """ImageNet-C."""

    location: str
    sources: list[tuple[Place, Source]]
    name: str = IMAGENET_C

    @property
    def identity(self) -> str:
        """All the folders'."""
        return _identity(self.sources)

    def measure(self, candidate: Candidate, effort: Effort) -> Measured:
        """As `of_corruptions`, relative to AlexNet."""
        right: dict[str, list[NDArray[np.float64]]] = {}
        for place, source in self.sources:
            trial = trial_of(self.name, f"{place.name} {place.severity}", source, candidate.classifier)
            right.setdefault(place.name, []).append(right_by_image(effort.observe(candidate, trial)[0]))
        return of_corruptions(right, ALEXNET_ERROR, "AlexNet", _are_same_images([source for _, source in self.sources]))


@dataclass(frozen=True)
class PublishedPerturbations:
    """ImageNet-P."""

    location: str
    sources: list[tuple[Place, Source]]
    name: str = IMAGENET_P

    @property
    def identity(self) -> str:
        """All the folders'."""
        return _identity(self.sources)

    def measure(self, candidate: Candidate, effort: Effort) -> Measured:
        """`mfr` and `fr` of each perturbation relative to AlexNet's, `flips`: their flip probabilities; `top1` over all frames."""
        by_sequence: dict[str, NDArray[np.float64]] = {}
        accuracies, frames = [], {}
        for place, source in self.sources:
            outcomes = effort.observe(candidate, trial_of(self.name, place.name, source, candidate.classifier))[0]
            accuracies.append(np.nanmean(right_by_image(outcomes)))
            outcomes = outcomes.reshape(-1, source.frames)  # type: ignore[attr-defined]
            shares = flips(outcomes["predicted"], place.name in NOISE)
            whole = is_read(outcomes).all(axis=1)
            if not whole.any():
                raise NstError(f"{place.folder}: none of its {len(whole):,} sequences can be read whole; unpack {place.name} again")
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
        }
        names = [source.names for _, source in self.sources]  # type: ignore[attr-defined]
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
        return Corruptions(data, settings.seed, reference) if name == CORRUPTED else Attacks(name, data, settings)
    if not data.is_dir():
        raise NstError(f"{data}: no such folder; expected {name} as published")
    partly = settings.partial
    if name in (IMAGENET_A, IMAGENET_R):
        return Accuracy(name, open_classes(name, data, partly))
    places = corrupted_places(data, partly) if name == IMAGENET_C else perturbed_places(data, partly)
    sources = [(place, open_classes(name, place.folder, partly)) for place in places]
    return (PublishedCorruptions if name == IMAGENET_C else PublishedPerturbations)(str(data.absolute()), sources)


def _identity(sources: list[tuple[Place, Source]]) -> str:
    return json_digest([[place.name, place.severity, source.fingerprint] for place, source in sources])


def _are_same_images(sources: list[Source]) -> bool:
    names = [source.listing()["name"] for source in sources]
    return all(one.equals(names[0]) for one in names)
