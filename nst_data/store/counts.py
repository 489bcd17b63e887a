"""The counts of a manifest. What they may hold is checked where a manifest is read, so that nobody who uses them has to."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from nst_data.settings import Later
from nst_data.store.as_written import AsWritten

Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
_Some = Annotated[Count, Later(0)]  # is written where there are any
_IN_WORDS = {"held_out": "excluded", "near_held_out": "near-duplicate of excluded"}  # "held out" are a recipe's test images alone


def in_words(reason: str) -> str:
    """What people read in place of a reason of `dropped`."""
    return _IN_WORDS.get(reason, reason.replace("_", " "))


class _Together(BaseModel):
    """Numbers that are always given together."""

    model_config = ConfigDict(extra="allow", frozen=True)


class ClassCounts(_Together):
    """Images of a class in an edition: before selection, after it, and with copies."""

    labeled: Count
    unique: Count
    copies: Count


class NearDuplicates(_Together):
    """Images of the pool that may be near-duplicates of excluded ones."""

    compared: Count
    unreadable: Count


class ShardCounts(_Together):
    """Images and entries (copies counted) of each shard that holds its images."""

    images: list[Count]
    entries: list[Count]


class CalibrationCounts(AsWritten):
    """The temperature that was fitted on labeled images, and the calibration error and likelihood without it and with it."""

    temperature: float
    images: Count
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float
    at_edge: bool = False  # whether the likelihood has no maximum among the temperatures that are tried
    unreadable: _Some = 0
    no_answer: _Some = 0


class Counts(AsWritten):
    """The counts of any version."""


class LabelCounts(Counts):
    """What became of the images of a pool. `no_answer` of the `errors` got no finite answer; the others could not be read."""

    pool: Count
    labeled: Count
    errors: Count
    no_answer: _Some = 0
    per_class: dict[str, Count] = Field({})


class GenerationCounts(LabelCounts):
    """Of a generation. `unlabeled` images of its pool have no label in an adopted table; `top_k` is None for dense soft labels."""

    calibration: Annotated[CalibrationCounts | None, Later(None)] = None
    unlabeled: Count = 0
    top_k: Count | None = None
    teacher_parameters: Count


class EditionCounts(Counts):
    """Of an edition: what happened to every image of its generation, by reason and by class."""

    labeled: Count
    dropped: dict[str, Count] = Field({})
    kept: Count
    unique: Count
    copies: Count
    quota: Count | None = None
    classes_without_images: list[str] = Field([])
    per_class: dict[str, ClassCounts] = Field({})
    near_duplicates: NearDuplicates | None = None
    held_out_unreadable: _Some = 0
    answered: _Some = 0  # of the images that people gave a class, those that stand in its table of them
    teacher_parameters: Count
    top_k: Count | None = None
    errors: Count | None = None  # of one that was labeled again, which has a table of them
    shards: ShardCounts | None = None


class ReviewCounts(Counts):
    """Of a review: images with an answer, of which `excluded` by reason have no class."""

    answered: Count
    excluded: dict[str, Count] = Field({})
    per_class: dict[str, Count] = Field({})
    picked_by: dict[str, Count] = Field({})
    reviewers: dict[str, Count] = Field({})  # the answers of each; empty where they are not named


class ProbeCounts(_Together):
    """Of a linear probe: scikit-learn's `C`, and over how many folds it was chosen; 0 where there were too few images."""

    strength: float
    folds: Count


class TeacherCounts(Counts):
    """Of a training. `pseudo_labeled` images stand in it as `entries`, copies counted. People gave `reviewed` labels."""

    parameters: Count
    steps: Count
    best_step: Annotated[Count | None, Later(None)] = None  # of the best validation score
    labeled: Count = 0
    unreadable: Count = 0
    unreadable_validation: _Some = 0
    classes_without_images: Annotated[list[str], Later([])] = Field([])
    reviewed: _Some = 0
    pseudo_labeled: Count = 0
    entries: Count = 0
    probe: Annotated[ProbeCounts | None, Later(None)] = None
