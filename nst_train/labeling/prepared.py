"""A labeling prepared in this process: its teachers, their computation, and the temperature."""

import dataclasses
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nst_data.labeled_version import LabeledVersion
from nst_data.settings import default_top_k
from nst_data.sources.changes import HASH, ReadRecord
from nst_data.store.counts import CalibrationCounts
from nst_data.store.inputs import Input
from nst_data.store.store import Staging
from nst_data.tables.schema import balanced_schema, pseudo_labels_schema
from nst_data.tables.shards import ShardPlan, Shards
from nst_train.classifiers.inference import Computation, choose_computation, restore_computation
from nst_train.classifiers.lineage import teacher_entries
from nst_train.classifiers.teacher_calibration import calibrate_teacher
from nst_train.classifiers.teachers import Teacher, load_teacher
from nst_train.labeling.labeling import Labeling
from nst_train.labeling.plan import Plan
from nst_train.labeling.task import LabelTask

_log = logging.getLogger(__name__)


@dataclass
class PreparedTeacher(LabelTask):
    """A teacher with its settings, for the rows of any plan."""

    @cached_property
    def teachers(self) -> dict[str, Input]:
        """The lineage entries of the teachers. Teachers in the store are not loaded for this."""
        entries = teacher_entries(self.teacher_names, self.store)
        return self._loaded_teacher[1] if entries is None else entries

    @property
    def class_names(self) -> list[str]:
        """The teacher's classes."""
        return self._loaded_teacher[0].class_names

    @cached_property
    def _loaded_teacher(self) -> tuple[Teacher, dict[str, Input]]:
        settings = self.settings
        return load_teacher(
            self.teacher_names, self.store, settings.exact_transform, settings.seed if settings.noise else None, settings.noise_transform
        )

    def shards(self, staging: Staging, plan: Plan) -> Shards:
        """The shards of a version in progress."""
        return Shards(staging.build, staging.work, ShardPlan(plan.rows, self.settings.rows_per_shard, plan.table), staging.remote_run)

    def labeling(self, staging: Staging, plan: Plan) -> Labeling:
        """The labeling of a version in progress, computed as the first process chose."""
        teacher, computation = self._loaded_teacher[0], self._choose_computation(staging)
        classes, settings = len(teacher.class_names), self.settings
        top_k = settings.top_k if settings.top_k is not None else default_top_k(classes)
        schema = (balanced_schema if plan.kind == "edition" else pseudo_labels_schema)(teacher.class_names, top_k)
        calibration = plan.calibration or self._fit_calibration(staging, teacher, computation)
        shards = self.shards(staging, plan)
        temperature = calibration.temperature if calibration else settings.temperature
        counts = {"calibration": calibration, "top_k": top_k, "teacher_parameters": teacher.parameters}
        class_names, machine = list(teacher.class_names), dataclasses.asdict(computation)
        version = LabeledVersion(staging, shards, plan.pool, class_names, "label", machine, self.progress, self.run.max_unreadable)
        parts, threads = plan.part_maker(staging.work), self.run.decode_threads
        return Labeling(version, plan, parts, teacher, computation, temperature, schema, counts, threads, self.run.rank_and_size)

    def _choose_computation(self, staging: Staging) -> Computation:
        """The computation that the first process of this labeling chose."""
        path, settings = staging.work / "computation.json", self.settings
        fresh = (
            None
            if path.exists()
            else choose_computation(self._loaded_teacher[0], settings.batch_size, settings.precision, settings.compile)
        )
        computation = restore_computation(staging.get_or_store("computation", dataclasses.asdict(fresh) if fresh else {}), staging.ref)
        _log.info("%s: computed with %s", staging.ref, computation)
        return computation

    def _fit_calibration(self, staging: Staging, teacher: Teacher, computation: Computation) -> CalibrationCounts | None:
        """The fitted temperature and its effect, for the manifest and the card; None if calibration was not requested."""
        if self.calibration is None:
            return None
        fitted: dict[str, Any] = {}
        if not (staging.work / "calibration.json").exists():
            hashes = np.zeros(len(self.calibration), HASH)
            fitted = calibrate_teacher(teacher, computation, self.calibration, self.run.decode_threads, self.run.max_unreadable, hashes)
            ReadRecord(staging.build, "calibration").store_hashes(hashes)
        return CalibrationCounts(**staging.get_or_store("calibration", fitted))
