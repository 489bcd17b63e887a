"""Soft labels for a pool from an un-noised teacher, shard by shard (Algorithm 1, step 2)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nst_data.arguments import with_checked_arguments
from nst_data.corpora import newest_labels
from nst_data.errors import NstError, UsageError
from nst_data.progress import Progress, terminal_progress
from nst_data.sources import Source, labels_in, match_classes
from nst_data.sources.labeled_pool import open_labeled_pool
from nst_data.store.inputs import Input
from nst_data.store.manifest import EditionRequest, Request
from nst_data.store.store import Store, Version
from nst_train.classifiers.lineage import calibration_input, teacher_entries
from nst_train.labeling.begin import find_or_stage
from nst_train.labeling.earlier_labels import ReuseCounts
from nst_train.labeling.grown import GrownPoolPlan
from nst_train.labeling.like import RelabelPlan
from nst_train.labeling.plan import FullPoolPlan, Plan
from nst_train.labeling.task import LabelTask
from nst_train.settings import LabelRunSettings, LabelSettings, ReadSettings
from nst_train.teacher_names import TeacherName
from nst_train.zero_shot_settings import ZeroShot

if TYPE_CHECKING:
    from nst_train.labeling.prepared import PreparedTeacher

_POOL_HINT = "was made from it; give its current location as `pool`"
Teachers = str | Version | ZeroShot | Sequence[str | Version | ZeroShot]


@with_checked_arguments
def label(
    store: Store,
    corpus: str,
    teacher: Teachers,
    pool: Source,
    settings: LabelSettings | None = None,
    *,
    calibration: Source | None = None,
    generation: int | None = None,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> Version:
    """Label every image of a pool with an un-noised teacher (Algorithm 1, step 2) and seal the soft labels as a generation of `corpus`.

    Labels that exist already, including those of a killed run, are kept. Any number of processes may run this at once: they share the
    shards, and the result has the same bytes.

    Args:
        store: The store that holds the generation.
        corpus: The name that gets a new generation.
        teacher: A version of the store or its `name@gen-N`, `hf-hub:OWNER/NAME`, OWNER/NAME for transformers, `local-dir:FOLDER` or a timm
            name; or `ZeroShot(...)`, an image-text model with the words of the classes. Several teachers form an ensemble: the mean of
            their probabilities.
        pool: The images to label; any labels are ignored.
        settings: Settings that determine the labels.
        calibration: Labeled images, unseen by the teacher, to fit the temperature on.
        generation: Use this generation number, from 1, instead of the next free one.
        run: How the labeling runs; changes no result.
        progress: How progress is shown; by default as lines on standard error.

    Returns:
        The sealed generation. Each image is in its table `pseudo_labels`, with a float16 probability for each class, or in `errors` with
        a reason.

    Raises:
        UsageError: The teacher does not exist, or the arguments do not go together.
        NstError: The pool has changed during the labeling, or too many of its images cannot be read.
    """
    settings = settings or LabelSettings()
    if calibration is not None and settings.noise:
        raise UsageError("`calibration` requires a teacher without `noise`; remove one of them")
    if calibration is not None:
        labels_in(calibration)
    for ref, request in _requests_by_ref(store, corpus).items():
        if (
            ref.startswith(f"{corpus}@gen-{generation}.") and isinstance(request, EditionRequest) and request.inputs.like
        ):  # the edition would seem to be drawn from this generation
            raise NstError(f"{ref} is a relabeled edition without its pool; omit the generation to get the next one")
    driver = _Driver(
        store, _teacher_names(teacher, store), settings, LabelRunSettings.from_run(run), progress or terminal_progress(), calibration
    )
    return driver.label_and_seal(FullPoolPlan(pool, settings.limit), corpus, generation)


@with_checked_arguments
def extend(
    store: Store,
    version: Version | str,
    pool: Source | None = None,
    *,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> Version:
    """Label only the images added to a pool since an earlier generation, with the same teacher and settings, as a new generation.

    The new generation covers the whole pool: rows with the same bytes as a labeled image, joined by `image_hash`, are taken over. This
    temporarily needs an index of the earlier images in the store: 48 bytes per row, only part of which is in memory.

    Args:
        store: The store that holds both generations.
        version: The generation to extend, or its `name@gen-N`.
        pool: The grown pool; by default the location of the earlier one.
        run: How the labeling runs; changes no result.
        progress: How progress is shown; by default as lines on standard error.

    Returns:
        The new generation, of the same corpus.

    Raises:
        UsageError: The generation was adopted, or its teacher comes from a downloaded manifest and is not in the store.
        NstError: The teacher's weights have changed, or too many images cannot be read.
    """
    run, generation = LabelRunSettings.from_run(run), store.open(version, "generation")
    plan = GrownPoolPlan(pool or open_labeled_pool(generation, store.indexes, _POOL_HINT, as_labeled=False), generation, run.decode_threads)
    progress, earlier_refs = progress or terminal_progress(), [version.ref for version in store.versions(generation.name)]
    driver = _Driver(store, plan.pinned_teachers(store), plan.earlier_settings(), run, progress)
    plan.check_same_weights(driver.teachers)
    extended = driver.label_and_seal(plan, generation.name)
    if (
        extended.ref not in earlier_refs and store.address is None and run.rank_and_size[0] == 0
    ):  # at an address, this would download its tables
        progress.say(_reuse_report(generation, extended, store.root))
    return extended


@with_checked_arguments
def label_like(
    store: Store,
    version: Version | str,
    teacher: Teachers,
    pool: Source | None = None,
    settings: LabelSettings | None = None,
    *,
    generation: int | None = None,
    run: ReadSettings | None = None,
    progress: Progress | None = None,
) -> Version:
    """Label the images of an edition again, with the same copies, as the first edition of a new generation.

    This is what the paper does after its one selection (section 3.1), and "reassign" in the released code.

    Args:
        store: The store that holds both editions.
        version: The edition whose images are labeled again, or its `name@gen-N.K`.
        teacher: As for `label`.
        pool: The pool of the images; by default the one that was labeled.
        settings: Settings that determine the labels.
        generation: Use this generation number instead of the next free one.
        run: How the labeling runs; changes no result.
        progress: How progress is shown; by default as lines on standard error.

    Returns:
        The new edition, of the same corpus.

    Raises:
        UsageError: The edition or the teacher does not exist.
        NstError: The teacher has other classes than the edition, the pool lacks some of its images, or too many cannot be read.
    """
    settings, edition = settings or LabelSettings(), store.open(version, "edition")
    pool, corpus = pool or open_labeled_pool(edition, store.indexes, _POOL_HINT, as_labeled=False), edition.name
    if generation is not None and f"{corpus}@gen-{generation}" in _requests_by_ref(store, corpus):
        raise NstError(f"{corpus}@gen-{generation} labels the whole pool; omit the generation to get the next one")
    driver = _Driver(store, _teacher_names(teacher, store), settings, LabelRunSettings.from_run(run), progress or terminal_progress())
    driver.check_same_classes(edition, f"Name a teacher with the classes of {edition.ref}, or label the pool as another corpus")
    return driver.label_and_seal(RelabelPlan(pool, edition, settings.limit), corpus, generation)


def _reuse_report(earlier: Version, extended: Version, scratch: Path) -> str:
    reused = ReuseCounts.count_between(earlier, extended, scratch)
    if not reused.taken_over:
        return (
            f"warning: {extended.ref}: no labels were taken over, since the pool has none of the {reused.gone:,} images of {earlier.ref}; "
            f"if it is another pool, `store.remove({extended.ref!r})` and label it under another corpus name"
        )
    return (
        f"{extended.ref}: labels taken over from {earlier.ref}: {reused.taken_over:,}, newly made: {reused.new:,}; "
        f"images of {earlier.ref} that are not in this pool: {reused.gone:,}"
    )


def _teacher_names(teacher: Teachers, store: Store) -> list[TeacherName]:
    """The names of the teachers. Raises UsageError if there is none, or if a version is not a teacher."""
    teachers = [teacher] if isinstance(teacher, str | Version | ZeroShot) else teacher
    if not teachers:
        raise UsageError("`teacher`: expected a teacher or several, found none")
    return [store.open(entry, "teacher").ref if isinstance(entry, Version) else entry for entry in teachers]


def _requests_by_ref(store: Store, corpus: str) -> dict[str, Request]:
    """The request of each version of a corpus, by its reference, including versions in progress."""
    requests = {staging.ref: staging.request for staging in store.stagings(corpus)}
    return requests | {version.ref: version.manifest.request for version in store.versions(corpus) if version.is_readable}


@dataclass
class _Driver(LabelTask):
    """What all ways of labeling share: find or start the version, and label what is missing.

    A finished version is found without importing a network library if its teachers are in the store.
    """

    @property
    def teachers(self) -> dict[str, Input]:
        """The lineage entries of the teachers."""
        entries = teacher_entries(self.teacher_names, self.store)
        return self._prepared.teachers if entries is None else entries

    def check_same_classes(self, version: Version, advice: str) -> None:
        """Raises NstError, ending in `advice`, if the teacher has other classes than a version. Teachers in the store are not loaded."""
        entries = list(self.teachers.values())
        in_store = teacher_entries(self.teacher_names[:1], self.store) is not None
        names = self.store.open(entries[0].ref, "teacher").manifest.class_names if in_store else self._prepared.class_names
        match_classes(names, version.manifest.class_names, entries[0].ref, advice=advice)

    def _warn_other_classes(self, corpus: str) -> None:
        """Warn if the newest labels of a corpus have other classes than the teacher."""
        newest = newest_labels(self.store, corpus)
        if newest is None:
            return
        advice = (
            f"These are the classes of {newest.ref}; choose another `corpus` name, unless the classes of {corpus!r} are meant to change"
        )
        try:
            self.check_same_classes(newest, advice)
        except NstError as error:
            self.progress.say(f"warning: {error}")

    @cached_property
    def _prepared(self) -> "PreparedTeacher":
        from nst_train.labeling.prepared import PreparedTeacher

        return PreparedTeacher(self.store, self.teacher_names, self.settings, self.run, self.progress, self.calibration)

    def label_and_seal(self, plan: Plan, corpus: str, generation: int | None = None) -> Version:
        """Label what is missing, and seal. If another process seals first, its version is returned."""
        inputs, sources = {**self.teachers, "pool": plan.pool.lineage, **plan.inputs}, {"pool": plan.pool}
        if self.calibration is not None:
            inputs["calibration"] = calibration_input(self.store, inputs, self.settings, self.calibration)
            sources["calibration"] = self.calibration
        request = plan.request(self.settings.for_request(), inputs)
        staged = find_or_stage(self.store, request, corpus, generation, sources, self.settings.limit, self.run, self.progress)
        if isinstance(staged, Version):
            return staged
        self._warn_other_classes(corpus)
        from nst_train.labeling.make import run_labeling

        return staged.run_as_worker(lambda: run_labeling(self._prepared, staged, plan, sources))
