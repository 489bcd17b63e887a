"""A pool that has grown since it was labeled: earlier labels are taken over, and new images are labeled by the same teacher."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import ValidationError

from nst_data.errors import NstError, UsageError
from nst_data.prefetch import cpus_of_this_process
from nst_data.sources import Source
from nst_data.sources.hashing import image_hashes
from nst_data.store.counts import CalibrationCounts
from nst_data.store.inputs import Input
from nst_data.store.manifest import GenerationManifest
from nst_data.store.store import Store, Version
from nst_train.labeling.earlier_labels import EarlierLabels
from nst_train.labeling.plan import Errors, PartMaker, Plan
from nst_train.settings import LabelSettings
from nst_train.teacher_names import TeacherName, is_in_store
from nst_train.zero_shot_settings import ZeroShot


@dataclass(frozen=True)
class GrownPoolPlan(Plan):
    """All of a grown pool: rows with the same bytes as a labeled image, joined by `image_hash`, are taken over."""

    earlier: Version
    threads: int | None

    @property
    def rows(self) -> int:
        """The current number of images in the pool."""
        return len(self.pool)

    @property
    def inputs(self) -> dict[str, Input]:
        """The earlier generation, and its teachers and calibration images as recorded there."""
        fitted = self._earlier_manifest.request.inputs.calibration
        return {**self._teacher_inputs, **({"calibration": fitted} if fitted else {}), "extended": self.earlier.lineage}

    @property
    def calibration(self) -> CalibrationCounts | None:
        """The calibration of the earlier generation."""
        return self._earlier_manifest.counts.calibration

    @property
    def _earlier_manifest(self) -> GenerationManifest:
        return GenerationManifest.from_manifest(self.earlier.manifest)

    @property
    def _teacher_inputs(self) -> dict[str, Input]:
        return self._earlier_manifest.request.inputs.teachers

    def pinned_teachers(self, store: Store) -> list[TeacherName]:
        """The names of the earlier teachers, each pinned to the commit that its revision meant then.

        Raises UsageError if the labels were adopted, or if the manifest was downloaded and its teacher is not in the store: a folder or
        repository that such a manifest names is not opened.
        """
        if self._earlier_manifest.request.inputs.adopted:
            raise UsageError(f"{self.earlier.ref} was adopted, so its teacher is unknown; label the whole pool without `extend`")
        for entry in self._teacher_inputs.values():
            if entry.pulled and not is_in_store(entry.ref, store):
                raise UsageError(
                    f"`extend` {self.earlier.ref}: its teacher {entry.ref!r} comes from a downloaded manifest and is not in the store; "
                    "`pull(...)` it, or label the whole pool with any teacher, without `extend`"
                )
        return [_pinned_name(entry) for entry in self._teacher_inputs.values()]

    def earlier_settings(self) -> LabelSettings:
        """The settings of the earlier generation, without its limit. Raises UsageError if this nst does not support them."""
        try:
            return LabelSettings.from_request(self._earlier_manifest.request.settings | {"limit": None})
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"])) or "settings"
            raise UsageError(
                f"`extend` {self.earlier.ref}: its manifest has settings that this nst does not support "
                f"({place}: {error.errors()[0]['msg']}); label the whole pool, without `extend`"
            ) from None

    def check_same_weights(self, teachers: Mapping[str, Input]) -> None:
        """Raises NstError if a teacher has changed under its name."""
        for role, entry in self._teacher_inputs.items():
            if teachers[role].digest != entry.digest:
                raise NstError(f"{entry.ref}: its weights are not those that labeled {self.earlier.ref}; label the whole pool again")

    def part_maker(self, work: Path) -> PartMaker:
        """Parts with both earlier and new labels; the index of the earlier ones is in `work`."""
        labels = EarlierLabels(self.earlier, work)
        return lambda start, stop, show_life: _create_part(self.pool, labels, start, stop, self.threads, show_life)


def _pinned_name(teacher: Input) -> TeacherName:
    name = f"{teacher.ref.partition('@')[0]}@{teacher.revision}" if teacher.revision and "/" in teacher.ref else teacher.ref
    if teacher.texts is None:
        return name
    return ZeroShot(model=name, class_names=teacher.texts.synonyms, prompts=teacher.texts.prompts)


@dataclass
class _GrownPart:
    """Rows of a grown pool: those whose bytes were labeled before are taken over, the others are labeled."""

    to_label: NDArray[np.int64]
    _labeled_rows: pa.Table  # id, key, image_hash, and `position` among the earlier rows; sorted by id
    _earlier: EarlierLabels

    def complete(self, labels: pa.Table, errors: Errors, stop: int | None) -> tuple[pa.Table, Errors]:
        """New and earlier rows, sorted by row number in the pool."""
        count = self._labeled_rows.num_rows if stop is None else int(np.searchsorted(self._labeled_rows["id"].to_numpy(), stop))
        labeled, self._labeled_rows = self._labeled_rows.slice(0, count), self._labeled_rows.slice(count)
        values = self._earlier.take(labeled["position"].to_numpy())
        for name in ("id", "key", "image_hash"):
            values = values.append_column(name, labeled[name])
        rows = pa.concat_tables([labels, values.select(labels.column_names).cast(labels.schema)])
        return rows.sort_by("id"), errors


def _create_part(
    pool: Source, earlier: EarlierLabels, start: int, stop: int, threads: int | None, heartbeat: Callable[[], None]
) -> _GrownPart:
    """Rows `start` to `stop` of a pool; every image is read and hashed, none is decoded. `heartbeat` is called after each."""
    keys, hashes = list[str](), list[str]()
    for row, hashed in image_hashes(pool.rows(range(start, stop)), threads or cpus_of_this_process()):
        keys.append(row.key)
        hashes.append(hashed)
        heartbeat()
    readable = [index for index, hashed in enumerate(hashes) if hashed]
    positions = np.full(len(keys), -1, np.int64)
    positions[readable] = earlier.find([hashes[index] for index in readable])
    labeled = np.flatnonzero(positions >= 0)
    columns = {
        "id": start + labeled,
        "key": pa.array([keys[index] for index in labeled], pa.string()),
        "image_hash": pa.array([hashes[index] for index in labeled], pa.string()),
        "position": positions[labeled],
    }
    return _GrownPart(start + np.flatnonzero(positions < 0), pa.table(columns), earlier)
