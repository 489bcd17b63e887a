"""The version that a card describes, sealed or not yet, and its inputs, as far as they are in the same store."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow.parquet as pq

from nst_data.store.counts import CalibrationCounts, EditionCounts, GenerationCounts, ReviewCounts
from nst_data.store.inputs import EditionInputs, GenerationInputs, Input, Inputs, TeacherInputs
from nst_data.store.manifest import EditionManifest, GenerationManifest, Manifest, ReviewManifest
from nst_data.store.metrics import Metrics
from nst_data.store.version import Number, Version

_KIND_FOLDERS = ("corpora", "teachers")


@dataclass(frozen=True)
class Described:
    """A version to describe: its files are in `folder`, and it is, or will be, at `target` in its store."""

    folder: Path
    target: Path
    manifest: Manifest

    @classmethod
    def from_version(cls, version: Version, target: Path | None = None) -> Self:
        """Describe a sealed version; `target` is its folder in a store, if that is not the folder of its files."""
        return cls(version.folder, target or version.folder, version.manifest)

    @property
    def ref(self) -> str:
        """name@version."""
        return f"{self.target.parent.name}@{self.target.name}"

    @property
    def inputs(self) -> Inputs:
        """The inputs that it was made from."""
        return self.manifest.request.inputs

    @property
    def table(self) -> str:
        """The table that has the labels."""
        if isinstance(self.manifest, ReviewManifest):
            return "review"
        return "balanced" if isinstance(self.manifest, EditionManifest) else "pseudo_labels"

    @property
    def tables(self) -> list[str]:
        """All tables of the version, the one with the labels first."""
        counts = self.manifest.counts
        if isinstance(counts, ReviewCounts):
            return [self.table]
        has_errors = counts.errors is not None if isinstance(counts, EditionCounts) else True
        has_answers = isinstance(counts, EditionCounts) and counts.answered
        return [self.table, *(["answered"] if has_answers else []), *(["errors"] if has_errors else [])]

    def files(self, table: str) -> list[Path]:
        """The parquet files of a table, in order."""
        return sorted((self.folder / table).glob("train-*.parquet"))

    @property
    def has_images(self) -> bool:
        """Whether the table contains the images themselves."""
        return any("image" in pq.read_schema(file).names for file in self.files(self.table)[:1])

    def per_class(self) -> dict[str, dict[str, int]]:
        """Images per class: `labeled` and, for an edition, `unique` and `copies`."""
        match self.manifest.counts:
            case EditionCounts(per_class=rows):
                return {name: {"labeled": row.labeled, "unique": row.unique, "copies": row.copies} for name, row in rows.items()}
            case GenerationCounts(per_class=images) | ReviewCounts(per_class=images):
                return {name: {"labeled": labeled} for name, labeled in images.items()}
        return {}

    def find_input(self, entry: Input) -> Version | None:
        """The version that an input refers to, if it is in the same store and unchanged."""
        name, _, number = entry.ref.partition("@")
        if not Number.is_valid(number) or {"/", "\\"} & set(name) or name in ("", ".", "..") or len(self.target.parents) < 3:
            return None
        for kind_folder in _KIND_FOLDERS:
            version = Version(self.target.parents[2] / kind_folder / name / number)
            if version.is_readable and version.manifest.digest == entry.digest:
                return version
        return None

    @property
    def parent(self) -> Version | None:
        """The version from which an edition takes its rows, if it is in the store."""
        entry = self.inputs.parent if isinstance(self.inputs, EditionInputs) else None
        return self.find_input(entry) if entry else None

    def teachers(self) -> dict[str, Input]:
        """The teachers that gave the labels, by role: one, or those of an ensemble. Empty if unknown."""
        parent = None if self.inputs.teachers else self.parent
        return Described.from_version(parent).teachers() if parent else self.inputs.teachers

    def labeling_version(self) -> "Described | None":
        """The version that records how the labels were made: itself or, for an edition drawn from a generation, that generation."""
        if not isinstance(self.inputs, EditionInputs) or self.inputs.like:
            return self
        return Described.from_version(self.parent) if self.parent else None

    @property
    def is_adopted(self) -> bool:
        """Whether the labels are known to have been made elsewhere."""
        labeled_by = self.labeling_version()
        return labeled_by is not None and isinstance(labeled_by.inputs, GenerationInputs) and labeled_by.inputs.adopted is not None

    @property
    def may_be_by_people(self) -> bool:
        """Whether the labels were made elsewhere and no model is named, so that they may come from people."""
        return self.is_adopted and not self.teachers()

    @property
    def calibration(self) -> CalibrationCounts | None:
        """How the labels were calibrated; None if they were not, or if that is unknown."""
        labeled_by = self.labeling_version()
        return labeled_by.manifest.counts.calibration if labeled_by and isinstance(labeled_by.manifest, GenerationManifest) else None

    @property
    def newest_review(self) -> ReviewManifest | None:
        """The newest review of the same corpus in the store."""
        folders = (folder for folder in self.target.parent.glob("review-*") if Number.is_valid(folder.name))
        versions = sorted((Version(folder) for folder in folders), key=lambda version: version.number.sort_key)
        reviews = [version.manifest for version in versions if version.is_readable]
        return next((review for review in reversed(reviews) if isinstance(review, ReviewManifest)), None)

    def lineage(self) -> Iterator[tuple[str, Input, "Described | None"]]:
        """Step back through the inputs to the first teacher: role, input and, if it is in the store, the version."""
        current: Described | None = self
        seen = {self.ref}
        while current is not None:
            role, entry = _step_back(current.inputs)
            if entry is None or entry.ref in seen:
                return
            seen.add(entry.ref)
            version = self.find_input(entry)
            current = Described.from_version(version) if version else None
            yield role, entry, current

    def metrics(self) -> Metrics:
        """The measured results of a teacher; empty if the file is missing or invalid."""
        return Metrics.read_if_valid(self.folder)


def _step_back(inputs: Inputs) -> tuple[str, Input | None]:
    match inputs:
        case TeacherInputs():
            return "edition", inputs.edition
        case EditionInputs(generation=Input()):
            return "generation", inputs.generation
    return next(iter(inputs.teachers.items()), ("", None))
