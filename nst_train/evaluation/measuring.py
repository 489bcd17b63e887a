"""The interface of suites, their results, and how they are run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nst_data.errors import NstError
from nst_data.images import decode
from nst_data.progress import Progress
from nst_data.sources import Source
from nst_data.sources.unreadable import check_readable, describe_lost_classes, lost_classes
from nst_train.evaluation.conditions import Condition
from nst_train.evaluation.outcomes import Outcomes, is_correct, is_readable
from nst_train.evaluation.trials import Candidate, Trial, observe
from nst_train.settings import ReadSettings


@dataclass(frozen=True)
class SuiteRunner:
    """How suites are run. `cache_folder` is the folder where outcomes are cached, so that interrupted work resumes."""

    cache_folder: Path | None = None
    run: ReadSettings = field(default_factory=ReadSettings)
    progress: Progress = field(default_factory=Progress)

    def observe(self, candidate: Candidate, trial: Trial, *conditions: Condition) -> Outcomes:
        """Run `trials.observe`. Raises NstError if no image can be read, or if more are unreadable than the run settings allow."""
        outcomes = observe(candidate, trial, conditions, self.cache_folder, self.run, self.progress)
        lost = np.flatnonzero(~is_readable(outcomes).any(axis=0))
        first = _unreadable_reason(trial.source, int(lost[0])) if len(lost) else ""
        check_readable(trial.source.location, len(trial.source), len(lost), self.run.max_unreadable, first)
        if classes := lost_classes(trial.labels, trial.class_names, lost):
            self.progress.say_once(f"{trial.source.location}: {describe_lost_classes(classes)}")
        return outcomes


def _unreadable_reason(source: Source, row: int) -> str:
    """One line about an image that could not be read, which is read again since outcomes do not record reasons."""
    try:
        decode(source.read(row))
    except (NstError, OSError) as error:
        return f"{source.key(row)!r}: {error}"
    return repr(source.key(row))


@dataclass(frozen=True)
class Measurement:
    """What a suite measured: `result` as JSON values, including `top1` and `images`, and metrics `by_image` (or by sequence).

    The values in `by_image` are NaN for unreadable images; the metric is the mean of the others.
    """

    result: dict[str, Any]
    by_image: dict[str, NDArray[np.float64]]


class Suite(Protocol):
    """A suite, opened on its data. Apart from the classifier, its results depend only on its `identity`."""

    @property
    def name(self) -> str:
        """The name of the suite in settings."""

    @property
    def location(self) -> str:
        """The location of the data."""

    @property
    def identity(self) -> str:
        """Digest of data and settings."""

    def measure(self, candidate: Candidate, runner: SuiteRunner) -> Measurement:
        """Measure a classifier. Raises NstError if it has other classes."""


def correct_by_image(outcomes: Outcomes) -> NDArray[np.float64]:
    """1 if the most probable class is the label, else 0; NaN if the image could not be read."""
    return np.where(is_readable(outcomes), is_correct(outcomes).astype(np.float64), np.nan)
