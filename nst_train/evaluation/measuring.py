"""What a suite is, what it gives, and the effort that measuring it may take."""

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
from nst_train.evaluation.conditions import Condition
from nst_train.evaluation.outcomes import Outcomes, is_read, is_right
from nst_train.evaluation.trials import Candidate, Trial, observe
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


def right_by_image(outcomes: Outcomes) -> NDArray[np.float64]:
    """1 where the most probable class is the label, 0 where not, NaN where the image could not be read."""
    return np.where(is_read(outcomes), is_right(outcomes).astype(np.float64), np.nan)
