"""The version that a card is about, sealed or about to be, and what it was made from, as far as that is in the same store."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow.parquet as pq

from nst_data.store.manifest import Input, Kind, Request
from nst_data.store.places import METRICS
from nst_data.store.staging import Staging
from nst_data.store.version import Number, Version

_ROOMS = ("corpora", "teachers")
_PARENTS: dict[Kind, tuple[str, ...]] = {
    "teacher": ("edition",),
    "edition": ("generation", "teacher", "teacher_1"),
    "generation": ("teacher", "teacher_1"),
}


@dataclass(frozen=True)
class Described:
    """A version that is described: its files are in `folder`, and it is, or will be, at `target` in its store."""

    folder: Path
    target: Path
    request: Request
    class_names: Sequence[str]
    counts: Mapping[str, Any]

    @classmethod
    def of(cls, version: Version, target: Path | None = None) -> Self:
        """A sealed version; `target` is its place in a store, where that is not its folder."""
        manifest = version.manifest
        return cls(version.folder, target or version.folder, manifest.request, manifest.class_names, manifest.counts)

    @classmethod
    def staged(cls, staging: Staging, class_names: Sequence[str], counts: Mapping[str, Any]) -> Self:
        """A version that is about to be sealed."""
        return cls(staging.build, staging.target, staging.request, class_names, counts)

    @property
    def ref(self) -> str:
        """name@version."""
        return f"{self.target.parent.name}@{self.target.name}"

    @property
    def table(self) -> str:
        """The table with its labels."""
        return "balanced" if self.request.kind == "edition" else "pseudo_labels"

    @property
    def tables(self) -> list[str]:
        """The tables that it has, that with the labels first."""
        has_errors = self.request.kind == "generation" or "errors" in self.counts  # `nst label --like` has errors of its own
        return [self.table, "errors"] if has_errors else [self.table]

    def files(self, table: str) -> list[Path]:
        """The parquet files of a table, in order."""
        return sorted((self.folder / table).glob("train-*.parquet"))

    @property
    def has_images(self) -> bool:
        """Whether the images stand beside their labels."""
        return any("image" in pq.read_schema(file).names for file in self.files(self.table)[:1])

    def count(self, name: str) -> int:
        """A count of the manifest; 0 for what it does not have, or not as a number."""
        return whole(self.counts.get(name))

    def per_class(self) -> dict[str, dict[str, int]]:
        """Images of each class: `labeled` or, in an edition, `labeled`, `unique` and `copies`."""
        found = self.counts.get("per_class")
        names = ("labeled", "unique", "copies") if self.request.kind == "edition" else ("labeled",)
        rows = found if isinstance(found, dict) else {}
        return {
            name: {column: whole(row.get(column)) for column in names} if isinstance(row, dict) else {"labeled": whole(row)}
            for name, row in rows.items()
        }

    def found(self, made_from: Input) -> Version | None:
        """An input that is in the same store, unchanged."""
        name, _, number = made_from.ref.partition("@")
        if not Number.is_one(number) or {"/", "\\"} & set(name) or name in ("", ".", "..") or len(self.target.parents) < 3:
            return None
        for room in _ROOMS:
            version = Version(self.target.parents[2] / room / name / number)
            if version.is_readable and version.manifest.digest == made_from.digest:
                return version
        return None

    @property
    def parent(self) -> Version | None:
        """The version whose rows an edition has, where it is here."""
        inputs = self.request.inputs
        entry = inputs.get("generation") or inputs.get("like")
        return self.found(entry) if entry and self.request.kind == "edition" else None

    def teachers(self) -> dict[str, Input]:
        """Who gave the labels, by role: one teacher, or those of an ensemble. Empty where that is not known."""
        own = {role: one for role, one in self.request.inputs.items() if role.startswith("teacher")}
        if own or self.request.kind != "edition":
            return own
        return Described.of(self.parent).teachers() if self.parent else {}

    def labeled_by(self) -> "Described | None":
        """What knows how the labels were given: itself or, for an edition drawn from a generation, that generation."""
        if self.request.kind == "generation" or "like" in self.request.inputs:
            return self
        return Described.of(self.parent) if self.parent else None

    @property
    def calibration(self) -> dict[str, Any]:
        """How its labels were calibrated; empty where they were not, or where that is not known."""
        labeled_by = self.labeled_by()
        found = labeled_by.counts.get("calibration") if labeled_by else None
        return found if isinstance(found, dict) else {}

    def lineage(self) -> Iterator[tuple[str, Input, "Described | None"]]:
        """What it was made from, step by step back to the first teacher: role, entry and, where it is here, the version."""
        at: Described | None = self
        seen = {self.ref}
        while at is not None:
            role = next((role for role in _PARENTS[at.request.kind] if role in at.request.inputs), None)
            if role is None or at.request.inputs[role].ref in seen:
                return
            entry = at.request.inputs[role]
            seen.add(entry.ref)
            version = self.found(entry)
            at = Described.of(version) if version else None
            yield role, entry, at

    def metrics(self) -> dict[str, Any]:
        """What was measured of a teacher, by name; nothing where its file is missing or holds something else."""
        try:
            content = json.loads((self.folder / METRICS).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def whole(value: object) -> int:
    """A count as a number; 0 for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
