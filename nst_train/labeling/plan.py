"""Which rows a labeling has, and which of them the teacher must see: all of a pool, here, or as `grown` and `like` say."""

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
    """The rows of one shard: those that the teacher must see, and what is known of the others."""

    @property
    def to_label(self) -> RowNumbers:
        """Row numbers in the pool, increasing."""

    def complete(self, labels: pa.Table, errors: Errors, stop: int | None) -> tuple[pa.Table, Errors]:
        """The next rows of the table, from the teacher's next answers: up to and without pool row `stop`, or all that are left.

        `labels` has `id`, `key`, `image_hash`, `label`, `confidence`, the soft label and `phash`.
        """


PartMaker = Callable[[int, int, Callable[[], None]], Part]
"""From positions in the table, start and stop; calls its third argument while it works at length, as a sign of life."""


@dataclass(frozen=True)
class Plan(ABC):
    """The rows of a version that is to be labeled, and what its request and manifest say of them beside teacher, pool and settings."""

    pool: Source

    kind: ClassVar[Kind] = "generation"  # in the table `pseudo_labels`; an edition in `balanced`

    @property
    @abstractmethod
    def rows(self) -> int:
        """How many rows there are."""

    @property
    def table(self) -> str:
        """The table that they stand in."""
        return "balanced" if self.kind == "edition" else "pseudo_labels"

    @property
    def inputs(self) -> dict[str, Input]:
        """What else it is made from."""
        return {}

    @property
    def calibration(self) -> CalibrationCounts | None:
        """The temperature where it is known before the teacher has seen an image."""
        return None

    def request(self, settings: dict[str, Any], inputs: Mapping[str, Input]) -> Request:
        """What the store is asked for."""
        return GenerationRequest(settings=settings, inputs=GenerationInputs(**inputs))

    @abstractmethod
    def parts(self, work: Path) -> PartMaker:
        """What the shards consist of. What only the labeling needs may lie below `work`."""

    def counts(self, _: Path, counts: LabelCounts, of_teacher: dict[str, Any]) -> Counts:
        """The counts of the manifest, from those of the table below a folder and those of the teacher."""
        return GenerationCounts(**counts.model_dump(), **of_teacher)


@dataclass(frozen=True)
class Whole(Plan):
    """Every image of a pool or, with a `limit`, the first ones."""

    limit: int | None

    @property
    def rows(self) -> int:
        """As many as the pool has."""
        return min(len(self.pool), self.limit or len(self.pool))

    def parts(self, _: Path) -> PartMaker:
        """Every row is labeled."""
        return lambda start, stop, _: WholePart(range(start, stop))


@dataclass(frozen=True)
class WholePart:
    """Every row is labeled."""

    to_label: range

    def complete(self, labels: pa.Table, errors: Errors, _: int | None) -> tuple[pa.Table, Errors]:
        """As they come."""
        return labels, errors
