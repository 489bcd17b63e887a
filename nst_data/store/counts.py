"""The counts of a manifest. They are validated when a manifest is read, so that code that uses them does not have to."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from nst_data.settings import Later
from nst_data.store.as_written import AsWritten

Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
_CountIfNonzero = Annotated[Count, Later(0)]  # left out while it is zero
_REASON_DESCRIPTIONS = {
    "held_out": "excluded",
    "near_held_out": "near-duplicate of excluded",
}  # "held out" refers only to a recipe's test images


def describe_reason(reason: str) -> str:
    """A reason in `dropped` as it is worded for users."""
    return _REASON_DESCRIPTIONS.get(reason, reason.replace("_", " "))


class _CountGroup(BaseModel):
    """Base class for numbers that are always given together."""

    model_config = ConfigDict(extra="allow", frozen=True)


class ClassCounts(_CountGroup):
    """Images of one class in an edition: before selection, after it, and after it with copies counted."""

    labeled: Count
    unique: Count
    copies: Count


class NearDuplicates(_CountGroup):
    """Images of the pool that were candidate near-duplicates of excluded ones."""

    compared: Count
    unreadable: Count


class ShardCounts(_CountGroup):
    """Images and entries (copies counted) in each shard of a self-contained edition."""

    images: list[Count]
    entries: list[Count]


class CalibrationCounts(AsWritten):
    """The temperature fitted on labeled images, with the calibration error and negative log-likelihood before and after applying it."""

    temperature: float
    images: Count
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float
    at_edge: bool = False  # whether the likelihood has no maximum among the temperatures tried
    unreadable: _CountIfNonzero = 0
    no_answer: _CountIfNonzero = 0


class Counts(AsWritten):
    """The counts of any version."""


class LabelCounts(Counts):
    """What became of the images of a pool. Of the `errors`, `no_answer` images got no finite output; the others could not be read."""

    pool: Count
    labeled: Count
    errors: Count
    no_answer: _CountIfNonzero = 0
    per_class: dict[str, Count] = Field({})


class GenerationCounts(LabelCounts):
    """The counts of a generation. `unlabeled` images are missing from its adopted table; `top_k` is None for dense soft labels."""

    calibration: Annotated[CalibrationCounts | None, Later(None)] = None
    unlabeled: Count = 0
    top_k: Count | None = None
    teacher_parameters: Count


class EditionCounts(Counts):
    """The counts of an edition: what happened to every image of its generation, by reason and by class."""

    labeled: Count
    dropped: dict[str, Count] = Field({})
    kept: Count
    unique: Count
    copies: Count
    quota: Count | None = None
    classes_without_images: list[str] = Field([])
    per_class: dict[str, ClassCounts] = Field({})
    near_duplicates: NearDuplicates | None = None
    held_out_unreadable: _CountIfNonzero = 0
    answered: _CountIfNonzero = 0  # images in its table `answered`, to which people gave a class
    teacher_parameters: Count
    top_k: Count | None = None
    errors: Count | None = None  # only if it was labeled again and thus has a table `errors`
    shards: ShardCounts | None = None


class ReviewCounts(Counts):
    """The counts of a review: `answered` images, of which those in `excluded`, by reason, have no class."""

    answered: Count
    excluded: dict[str, Count] = Field({})
    per_class: dict[str, Count] = Field({})
    picked_by: dict[str, Count] = Field({})
    reviewers: dict[str, Count] = Field({})  # answers of each reviewer; empty if they are not named


class ProbeCounts(_CountGroup):
    """A linear probe: scikit-learn's `C` and the number of folds used to choose it, 0 if there were too few images."""

    strength: float
    folds: Count


class TeacherCounts(Counts):
    """The counts of a training. Its `pseudo_labeled` images make up `entries`, copies counted; people gave `reviewed` labels."""

    parameters: Count
    steps: Count
    best_step: Annotated[Count | None, Later(None)] = None  # the one with the best validation score
    labeled: Count = 0
    unreadable: Count = 0
    unreadable_validation: _CountIfNonzero = 0
    classes_without_images: Annotated[list[str], Later([])] = Field([])
    reviewed: _CountIfNonzero = 0
    pseudo_labeled: Count = 0
    entries: Count = 0
    probe: Annotated[ProbeCounts | None, Later(None)] = None
