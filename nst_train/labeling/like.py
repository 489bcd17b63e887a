"""The rows of an edition, labeled again by a new teacher, as in the paper after its one selection (section 3.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nst_data.store.counts import ClassCounts, Counts, EditionCounts, LabelCounts
from nst_data.store.inputs import EditionInputs, Input
from nst_data.store.manifest import EditionManifest, EditionRequest, Kind, Request
from nst_data.store.store import Version
from nst_data.tables.shards import TableReader
from nst_train.labeling.plan import Errors, PartMaker, Plan

OTHER_BYTES = "differs from the image that was selected"


@dataclass(frozen=True)
class RelabelPlan(Plan):
    """The images of an edition, or the first `limit` of them, with the same copies."""

    edition: Version
    limit: int | None

    kind: ClassVar[Kind] = "edition"

    @cached_property
    def _edition_table(self) -> TableReader:
        return TableReader(self.edition.folder, "balanced")

    @property
    def rows(self) -> int:
        """The number of rows of the edition, at most `limit`."""
        return min(len(self._edition_table), self.limit or len(self._edition_table))

    @property
    def inputs(self) -> dict[str, Input]:
        """The edition, and the review it was drawn with, if any."""
        reviews = EditionManifest.from_manifest(self.edition.manifest).request.inputs.reviews
        return {"like": self.edition.lineage} | ({"reviews": reviews} if reviews else {})

    def part_maker(self, _: Path) -> PartMaker:
        """Parts whose images are found in the pool by row or, if it is not the labeled pool, by key."""
        is_same_pool = self.pool.fingerprint == EditionManifest.from_manifest(self.edition.manifest).request.inputs.pool.digest
        return lambda start, stop, _: self._create_part(is_same_pool, start, stop)

    def _create_part(self, is_same_pool: bool, start: int, stop: int) -> "_RelabelPart":
        rows = self._edition_table.take(np.arange(start, stop), ["id", "key", "image_hash", "duplicates", "copies"])
        numbers = rows["id"].to_numpy() if is_same_pool else self.pool.rows_of(rows["key"].to_pylist())
        order = np.argsort(numbers, kind="stable")
        return _RelabelPart(numbers[order], rows.take(order))

    def request(self, settings: dict[str, Any], inputs: Mapping[str, Input]) -> Request:
        """The request of an edition."""
        return EditionRequest(settings=settings, inputs=EditionInputs(**inputs))

    def counts(self, build: Path, counts: LabelCounts, teacher_counts: dict[str, Any]) -> Counts:
        """The counts of an edition: its parent's, with the classes according to the new labels."""
        parent = EditionManifest.from_manifest(self.edition.manifest).counts
        lost = {"unreadable": counts.errors - counts.no_answer, "no_answer": counts.no_answer}
        rows = (
            pl.scan_parquet(sorted((build / "balanced").glob("[!.]*.parquet")), glob=False)
            .group_by("label")
            .agg(pl.col("copies").sum(), pl.len())
            .collect()
        )
        by_label = {label: (unique, copies) for label, copies, unique in rows.iter_rows()}
        per_class = {}
        for index, (name, images) in enumerate(counts.per_class.items()):
            unique, copies = by_label.get(index, (0, 0))
            per_class[name] = ClassCounts(labeled=images, unique=unique, copies=copies)
        return EditionCounts(
            top_k=teacher_counts["top_k"],
            teacher_parameters=teacher_counts["teacher_parameters"],
            errors=counts.errors,
            labeled=parent.labeled,
            dropped=parent.dropped | {reason: images for reason, images in lost.items() if images},
            kept=max(parent.kept - counts.errors, 0),
            unique=counts.labeled,
            copies=sum(row.copies for row in per_class.values()),
            classes_without_images=[name for name, row in per_class.items() if not row.unique],
            per_class=per_class,
        )


@dataclass
class _RelabelPart:
    """Rows of an edition to label again: same images, same copies."""

    to_label: NDArray[np.int64]
    _rows: pa.Table  # image_hash, duplicates, copies; in the order of `to_label`

    def complete(self, labels: pa.Table, errors: Errors, _: int | None) -> tuple[pa.Table, Errors]:
        """Join new labels with the edition's own columns. Images whose bytes have changed become errors."""
        rows = self._rows.take(np.searchsorted(self.to_label, labels["id"].to_numpy()))
        is_same = pc.equal(labels["image_hash"], rows["image_hash"])
        for row in labels.filter(pc.invert(is_same)).select(["id", "key"]).to_pylist():
            errors = [*errors, {**row, "reason": OTHER_BYTES}]
        for name in ("duplicates", "copies"):
            labels = labels.append_column(name, rows[name])
        return labels.filter(is_same), sorted(errors, key=lambda error: error["id"])
