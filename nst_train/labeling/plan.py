"""The rows of a labeling, and those that the teacher must see: the whole pool here, or what `grown` and `like` define."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nst_data.sources import Source
from nst_data.store.counts import CalibrationCounts, Counts, GenerationCounts, LabelCounts
from nst_data.store.inputs import GenerationInputs, Input
from nst_data.store.manifest import GenerationRequest, Kind, Request

Errors = list[dict[str, Any]]
RowNumbers = range | NDArray[np.int64]


class Part(Protocol):
    """The rows of one shard: those the teacher must see, and what is known about the others."""

    @property
    def to_label(self) -> RowNumbers:
        """Row numbers in the pool, increasing."""

    def complete(self, labels: pa.Table, errors: Errors, stop: int | None) -> tuple[pa.Table, Errors]:
        """The next rows of the table, given the teacher's next labels: up to but excluding pool row `stop`, or all that remain if None.

        `labels` has `id`, `key`, `image_hash`, `label`, `confidence`, the soft label and `phash`.
        """


PartMaker = Callable[[int, int, Callable[[], None]], Part]
"""Makes the part from `start` to `stop`, positions in the table; calls its third argument during long work, as a sign of life."""


@dataclass(frozen=True)
class Plan(ABC):
    """The rows of a version to label, and what they add to its request and manifest besides teacher, pool and settings."""

    pool: Source

    kind: ClassVar[Kind] = "generation"  # rows are in the table `pseudo_labels`; those of an edition in `balanced`

    @property
    @abstractmethod
    def rows(self) -> int:
        """The number of rows."""

    @property
    def table(self) -> str:
        """The name of the table."""
        return "balanced" if self.kind == "edition" else "pseudo_labels"

    @property
    def inputs(self) -> dict[str, Input]:
        """Additional inputs."""
        return {}

    @property
    def calibration(self) -> CalibrationCounts | None:
        """The calibration, if it is known before the teacher has seen an image."""
        return None

    def request(self, settings: dict[str, Any], inputs: Mapping[str, Input]) -> Request:
        """The request to the store."""
        return GenerationRequest(settings=settings, inputs=GenerationInputs(**inputs))

    @abstractmethod
    def part_maker(self, work: Path) -> PartMaker:
        """A function that makes the parts of shards. It may keep temporary files in `work`."""

    def counts(self, _: Path, counts: LabelCounts, teacher_counts: dict[str, Any]) -> Counts:
        """The counts for the manifest, from the counts of the table in a build folder and those of the teacher."""
        return GenerationCounts(**counts.model_dump(), **teacher_counts)


@dataclass(frozen=True)
class FullPoolPlan(Plan):
    """Every image of a pool, or the first `limit` ones."""

    limit: int | None

    @property
    def rows(self) -> int:
        """The number of images in the pool, at most `limit`."""
        return min(len(self.pool), self.limit or len(self.pool))

    def part_maker(self, _: Path) -> PartMaker:
        """Parts in which every row is labeled."""
        return lambda start, stop, _: FullPart(range(start, stop))


@dataclass(frozen=True)
class FullPart:
    """A part in which every row is labeled."""

    to_label: range

    def complete(self, labels: pa.Table, errors: Errors, _: int | None) -> tuple[pa.Table, Errors]:
        """Return the labels and errors unchanged."""
        return labels, errors
