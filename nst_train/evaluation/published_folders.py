"""ImageNet-C and ImageNet-P, from their published folders."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.sources import Source
from nst_data.store.manifest import json_digest
from nst_train.evaluation.corrupted import corruption_metrics
from nst_train.evaluation.imagenet_suites import ALEXNET_ERROR, ALEXNET_FLIPS, NOISE_PERTURBATIONS, SuiteFolder, flip_probabilities, mean_of
from nst_train.evaluation.measuring import Measurement, SuiteRunner, correct_by_image
from nst_train.evaluation.outcomes import is_readable
from nst_train.evaluation.partial import SuitePart
from nst_train.evaluation.sequences import Sequences
from nst_train.evaluation.trials import Candidate


@dataclass(frozen=True)
class _PublishedFolders:
    """A published suite of several folders: all of them, or with `part` some."""

    name: str
    location: str
    sources: list[tuple[SuiteFolder, Source]]
    part: SuitePart | None = None

    @property
    def identity(self) -> str:
        """Digest of all folders' names and fingerprints."""
        return json_digest([[place.name, place.severity, source.fingerprint] for place, source in self.sources])


class PublishedCorruptions(_PublishedFolders):
    """ImageNet-C."""

    def measure(self, candidate: Candidate, runner: SuiteRunner) -> Measurement:
        """Measure as in `corruption_metrics`, relative to AlexNet."""
        correct: dict[str, list[NDArray[np.float64]]] = {}
        part, trial_sources = self.part or SuitePart(), []
        for place, source in self.sources:
            trial = part.trial(self.name, f"{place.name} {place.severity}", source, candidate.classifier)
            trial_sources.append(trial.source)
            correct.setdefault(place.name, []).append(correct_by_image(runner.observe(candidate, trial)[0]))
        measured = corruption_metrics(correct, ALEXNET_ERROR, "AlexNet", _are_same_images(trial_sources))
        measured.result.update(part.omissions(self.name, candidate.classifier))
        return measured


class PublishedPerturbations(_PublishedFolders):
    """ImageNet-P."""

    @property
    def identity(self) -> str:
        """Differs from that of earlier records, whose `top1` was the mean over perturbations."""
        return json_digest([super().identity, "top1 over all frames"])

    def measure(self, candidate: Candidate, runner: SuiteRunner) -> Measurement:
        """Measure `fr` of each perturbation relative to AlexNet, their mean `mfr`, the flip probabilities `flips`, and `top1` (A.5)."""
        by_sequence: dict[str, NDArray[np.float64]] = {}
        correct, frames, names = list[NDArray[np.float64]](), {}, []
        part = self.part or SuitePart()
        for place, source in self.sources:
            trial = part.trial(self.name, place.name, source, candidate.classifier)
            assert isinstance(trial.source, Sequences)
            names.append(trial.source.names)
            outcomes = runner.observe(candidate, trial)[0]
            correct.append(correct_by_image(outcomes))
            outcomes = outcomes.reshape(-1, trial.source.frames)
            shares = flip_probabilities(outcomes["predicted"], place.name in NOISE_PERTURBATIONS)
            is_complete = is_readable(outcomes).all(axis=1)
            if not is_complete.any():
                raise NstError(f"{place.folder}: none of its {len(shares):,} sequences can be read whole; unpack {place.name} again")
            by_sequence[place.name] = np.where(is_complete, shares, np.nan)
            frames[place.name] = outcomes.shape[1]
        probabilities = {name: float(np.nanmean(shares)) for name, shares in by_sequence.items()}
        rates = {name: share / ALEXNET_FLIPS[name] for name, share in probabilities.items()}
        lost = sum(int(np.isnan(shares).sum()) for shares in by_sequence.values())
        result = {
            "mfr": mean_of(rates),
            "fr": rates,
            "flips": probabilities,
            "top1": float(np.nanmean(np.concatenate(correct))),
            "frames": frames,
            "sequences": sum(map(len, by_sequence.values())) - lost,
            "images": sum((len(shares) - int(np.isnan(shares).sum())) * frames[name] for name, shares in by_sequence.items()),
            "errors": lost,
            **part.omissions(self.name, candidate.classifier, lost),
        }
        paired = all(of_source == names[0] for of_source in names)
        weighted = [shares / ALEXNET_FLIPS[name] for name, shares in by_sequence.items()]
        return Measurement(result, {"mfr": np.mean(weighted, axis=0)} if paired else {})


def _are_same_images(sources: list[Source]) -> bool:
    names = [source.listing()["name"] for source in sources]
    return all(of_source.equals(names[0]) for of_source in names)
