"""A labeling by the workers of a Ray cluster: what each worker opens, and what the driver does."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nst_data.errors import NstError
from nst_data.labeled_version import LabeledVersion
from nst_data.progress import Progress, Task
from nst_data.sources import Source
from nst_data.store.counts import Counts, LabelCounts
from nst_data.store.inputs import Input
from nst_data.store.store import Staging, Store
from nst_train.cluster.job import SourceAddress, describe_missing_teacher, portable_model
from nst_train.cluster.workers import Workers, open_workers
from nst_train.labeling.grown import GrownPoolPlan
from nst_train.labeling.labeling import Labeling, NoAnswerError
from nst_train.labeling.like import RelabelPlan
from nst_train.labeling.plan import FullPoolPlan, Plan
from nst_train.labeling.prepared import PreparedTeacher
from nst_train.settings import LabelRunSettings, LabelSettings
from nst_train.zero_shot_settings import ZeroShot


@dataclass(frozen=True)
class LabelJob:
    """A version in progress and what it is labeled from, as names and addresses that each worker opens."""

    store: str
    ref: str
    teachers: tuple[str | ZeroShot, ...]
    digests: dict[str, str]
    settings: LabelSettings
    run: LabelRunSettings
    pool: SourceAddress
    calibration: Source | None
    plan_type: type[Plan]
    earlier_ref: str  # the version whose rows are labeled again, or whose pool has grown

    def describe_missing(self) -> str:
        """Whether this machine lacks the store, the pool or a local teacher."""
        if self._find_staging(Store(self.store)) is None:
            return f"does not see the store {self.store}; put it on a file system that all nodes share, or on s3://"
        return next(filter(None, [self.pool.describe_missing(), *map(describe_missing_teacher, self.teachers)]), "")

    def open(self, threads: int) -> "LabelWork":
        """Open store, pool and teachers, and the labeling. Raises NstError if a teacher differs from the driver's."""
        store = Store(self.store)
        staging = self._find_staging(store)
        if staging is None:
            raise NstError(f"cannot see {self.ref} in the store {self.store}")
        pool = self.pool.open(store.indexes)
        run = self.run.model_copy(update={"decode_threads": self.run.decode_threads or threads})
        collected = _CollectedProgress([])
        prepared = PreparedTeacher(store, self.teachers, self.settings, run, collected, self.calibration)
        if {role: entry.digest for role, entry in prepared.teachers.items()} != self.digests:
            raise NstError(f"has a different teacher under the name {', '.join(map(str, self.teachers))} than the driver")
        return LabelWork(prepared.labeling(staging, self._create_plan(store, pool, run)), collected)

    def _find_staging(self, store: Store) -> Staging | None:
        name = self.ref.partition("@")[0]
        store.refresh(name)
        return next((staging for staging in store.stagings(name) if staging.ref == self.ref), None)

    def _create_plan(self, store: Store, pool: Source, run: LabelRunSettings) -> Plan:
        if self.plan_type is RelabelPlan:
            return RelabelPlan(pool, store.open(self.earlier_ref, "edition"), self.settings.limit)
        if self.plan_type is GrownPoolPlan:
            return GrownPoolPlan(pool, store.open(self.earlier_ref, "generation"), run.decode_threads)
        return FullPoolPlan(pool, self.settings.limit)


@dataclass(frozen=True)
class TeacherInfo:
    """What the driver has to know about the teacher and its computation."""

    class_names: list[str]
    machine: dict[str, Any]
    temperature: float
    teacher_counts: dict[str, Any]


@dataclass(frozen=True)
class LabelWork:
    """A labeling on one worker."""

    labeling: Labeling
    collected: "_CollectedProgress"

    @property
    def about(self) -> TeacherInfo:
        """Classes, machine, temperature and counts of the teacher."""
        labeling = self.labeling
        return TeacherInfo(labeling.version.class_names, labeling.version.machine, labeling.temperature, labeling.teacher_counts)

    def fill(self, shard: int) -> Iterator[int]:
        """Label one shard. Yields the number of rows done since the last yield."""
        return self.labeling.fill_shard(shard)

    def read_again(self) -> list[str]:
        """Retry the images that could not be read. Returns the lines to show."""
        self.labeling.read_again()
        return self.collected.lines


@dataclass(frozen=True)
class _CollectedProgress(Progress):
    """Collects what a worker reports, for its driver to show."""

    lines: list[str]

    def say(self, line: str) -> None:
        """Keep a line."""
        self.lines.append(line)


@contextmanager
def labeling_on_ray(prepared: PreparedTeacher, staging: Staging, plan: Plan) -> Iterator["RayLabeling"]:
    """A labeling whose teacher is loaded by the workers of a cluster, never in this process."""
    run, shards = prepared.run, prepared.shards(staging, plan)
    plan.pool.store_listing(prepared.store.indexes)  # for the workers
    job = LabelJob(
        prepared.store.location,
        staging.ref,
        tuple(portable_model(name) for name in prepared.teacher_names),
        {role: entry.digest for role, entry in prepared.teachers.items()},
        LabelSettings.model_validate(prepared.settings.model_dump(include=set(LabelSettings.model_fields))),
        run,
        SourceAddress.from_source(plan.pool),
        prepared.calibration,
        type(plan),
        _earlier_ref(plan),
    )
    with open_workers(job, run, len(shards.missing()), prepared.progress) as workers:
        about: TeacherInfo = workers.about
        version = LabeledVersion(
            staging, shards, plan.pool, about.class_names, "label", about.machine, prepared.progress, run.max_unreadable
        )
        yield RayLabeling(version, plan, workers, about)


def _earlier_ref(plan: Plan) -> str:
    inputs: dict[str, Input] = plan.inputs
    return next((inputs[role].ref for role in ("like", "extended") if role in inputs), "")


@dataclass
class RayLabeling:
    """Turns the workers' predictions into the labels of a version."""

    version: LabeledVersion
    plan: Plan
    workers: Workers
    about: TeacherInfo

    @property
    def teacher_counts(self) -> dict[str, Any]:
        """Counts that go into the manifest in addition to those of the table."""
        return self.about.teacher_counts

    def fill(self, task: Task, since: float) -> None:
        """Have the workers label until no shard is missing. `since` is when this work started."""
        shards = self.version.shards
        for step in self.workers.fill(shards.missing(), shards.is_done):
            task.advance(shards.plan.size(step.shard) if step.is_by_others else step.rows)
            if step.is_complete:
                since = self.version.staging.add_seconds(since)

    def read_again(self) -> None:
        """Have one of the workers retry the images that could not be read."""
        for line in self.workers.ask("read_again"):
            self.version.progress.say(line)

    def counts(self, counts: LabelCounts) -> Counts:
        """The counts of the plan. Raises NoAnswerError if the teacher has no finite answer to any image."""
        if counts.no_answer and not counts.labeled:
            raise NoAnswerError.for_version(self.version, f"{counts.no_answer:,}", self.about.temperature)
        return self.plan.counts(self.version.staging.build, counts, self.about.teacher_counts)
